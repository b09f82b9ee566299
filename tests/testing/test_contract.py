"""The contract that every adapter keeps, run on ours and on a stranger's; and that it can fail."""

import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.chameleon.modeling_chameleon import ChameleonVQVAE

from mm_cca import load_adapter
from mm_cca.adapters.base import ImageHead, UnifiedModel
from mm_cca.adapters.common import StandardDecoder
from mm_cca.cli.commands.export import export_model
from mm_cca.config.shipped import ADAPTERS
from mm_cca.errors import UserError
from mm_cca.testing import contract
from tests.support import runs
from tests.support.closeness import assert_close
from tests.support.stranger import STRANGER, where_of


@pytest.mark.parametrize("name", [*ADAPTERS, STRANGER])
def test_adapter_keeps_the_contract(name: str, folders: Path):
    size = [32, 32] if name == "emu3" else [64, 64]
    measured = contract.check_adapter(name, image_size=size, **where_of(folders, name))
    assert max(measured.values()) < 1e-4, measured


def test_a_strangers_model_goes_the_whole_way(folders: Path, tmp_path: Path):
    where = where_of(folders, STRANGER)
    values = runs.tiny_recipe(tmp_path, Path(str(where["path"])), runs.two_splits(tmp_path / "d"))
    values["model"].update(adapter=STRANGER, image_tokenizer=where["image_tokenizer"])
    values["data"]["image_size"] = [64, 64]
    path = runs.write_recipe(tmp_path / "recipe.yaml", values)
    runs.do(path, "sample.top_k=8", stages=["prepare", "train", "sample", "eval", "report"])
    assert (tmp_path / "run" / "report.html").exists()
    trained = LlamaForCausalLM.from_pretrained(tmp_path / "run" / "train" / "model")
    assert trained.config.vocab_size == LlamaConfig.from_pretrained(where["path"]).vocab_size


def test_plain_peft_reads_a_strangers_lora_once_told_the_prefix(folders: Path, tmp_path: Path):
    """The lines of CONTRIBUTING; and that they are needed."""
    where = where_of(folders, STRANGER)
    values = runs.tiny_recipe(tmp_path, Path(str(where["path"])), runs.two_splits(tmp_path / "d"))
    values["model"].update(adapter=STRANGER, image_tokenizer=where["image_tokenizer"])
    values["data"]["image_size"] = [64, 64]
    values["train"].update(tuning="lora", reference="lora", lora_rank=2)
    runs.do(runs.write_recipe(tmp_path / "recipe.yaml", values))
    adapter = str(tmp_path / "run" / "train" / "model")

    @torch.no_grad()
    def logits(**told: object) -> torch.Tensor:
        llama = LlamaForCausalLM.from_pretrained(where["path"])
        ids = torch.tensor([[1, 5, 9]])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return PeftModel.from_pretrained(llama, adapter, **told)(input_ids=ids).logits

    export_model(tmp_path / "run", tmp_path / "merged", merge=True)
    merged = LlamaForCausalLM.from_pretrained(tmp_path / "merged")
    expected = merged(input_ids=torch.tensor([[1, 5, 9]])).logits
    told = logits(key_mapping={r"^language\.": ""})
    assert_close(told, expected, 1e-4)
    assert (logits() - told).abs().max() > 1e-3


def test_the_lines_for_peft_are_those_of_contributing():
    text = (Path(__file__).parents[2] / "CONTRIBUTING.md").read_text()
    assert 'key_mapping={r"^language\\.": ""}' in text


@pytest.fixture
def stranger(folders: Path) -> UnifiedModel:
    where = where_of(folders, STRANGER)
    model = load_adapter(STRANGER, where["path"], image_tokenizer=where["image_tokenizer"])
    model.module.eval()
    return model


GRID = (4, 4)


def _swapped_rows(model: UnifiedModel, patch: pytest.MonkeyPatch) -> None:
    """Codes scored with each other's rows."""
    right = type(model).image_head

    def wrong(self, *, whole_vocabulary: bool = False) -> ImageHead:
        head = right(self, whole_vocabulary=whole_vocabulary)
        return ImageHead(head.weight, head.bias, head.row_of_code.clamp(max=62))

    patch.setattr(type(model), "image_head", wrong)
    contract.check_codes(model, GRID)


def _blind_positions(model: UnifiedModel, patch: pytest.MonkeyPatch) -> None:
    """Positions that count the padding, so that a short prompt depends on its neighbours."""
    right = type(model).hidden_states

    def wrong(self, embeds, mask, position_ids, cache=None):
        places = torch.arange(embeds.shape[1])[None].expand(len(embeds), -1) * 2
        return right(self, embeds, torch.ones_like(mask), places, cache)

    patch.setattr(type(model), "hidden_states", wrong)
    contract.check_logps(model, GRID)


def _forgets_the_cache(model: UnifiedModel, patch: pytest.MonkeyPatch) -> None:
    right = type(model).hidden_states

    def wrong(self, embeds, mask, position_ids, cache=None):
        if cache is not None and embeds.shape[1] == 1:
            position_ids = position_ids + 1
        return right(self, embeds, mask, position_ids, cache)

    patch.setattr(type(model), "hidden_states", wrong)
    contract.check_cached_sampling(model, GRID)


def _beyond_the_codebook(model: UnifiedModel, patch: pytest.MonkeyPatch) -> None:
    right = type(model).encode
    patch.setattr(type(model), "encode", lambda self, x: right(self, x) + 60)
    contract.check_images(model, GRID, [64, 64])


def _knows_the_prompt(model: UnifiedModel, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(type(model), "unconditional_ids", lambda self, ids, grid, negative="": ids)
    contract.check_unconditional(model, GRID)


def _one_slot_too_many(model: UnifiedModel, patch: pytest.MonkeyPatch) -> None:
    right = type(model).layout
    patch.setattr(type(model), "layout", lambda self, grid: right(self, (grid[0] + 1, grid[1])))
    contract.check_layout(model, GRID)


def _trains_the_tokenizer(model: UnifiedModel, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(type(model), "frozen", lambda self: [])
    for parameter in model._vq.parameters():
        parameter.requires_grad_(True)
    contract.check_training_step(model, GRID, lora=False)


@pytest.mark.parametrize(
    ("broken", "told"),
    [
        (_swapped_rows, "share rows"),
        (_blind_positions, "nats apart"),
        (_forgets_the_cache, "differ with the cache"),
        (_beyond_the_codebook, "beyond the codebook"),
        (_knows_the_prompt, "the prompt itself"),
        (_one_slot_too_many, "free slots"),
        (_trains_the_tokenizer, "get no gradient"),
    ],
)
def test_contract_finds_a_broken_adapter(
    broken, told: str, stranger: UnifiedModel, monkeypatch: pytest.MonkeyPatch
):
    with pytest.raises(AssertionError, match=told):
        broken(stranger, monkeypatch)


def test_an_adapter_that_misses_a_method_is_named(folders: Path, monkeypatch: pytest.MonkeyPatch):
    import tests.example_adapter as example

    monkeypatch.delattr(StandardDecoder, "new_cache")
    monkeypatch.delattr(StandardDecoder, "frozen")
    monkeypatch.setattr(example.AppendedCodes, "__init__", lambda self, *parts: None)
    where = where_of(folders, STRANGER)
    with pytest.raises(UserError, match=r"lacks .*frozen.*new_cache.*base\.py"):
        load_adapter(STRANGER, where["path"], image_tokenizer=where["image_tokenizer"])


def test_an_adapter_without_codebook_size_is_named(folders: Path, monkeypatch: pytest.MonkeyPatch):
    """An adapter written when the codebook's size was still called ``num_codes``."""
    import tests.example_adapter as example

    right = example.AppendedCodes.__init__

    def with_the_old_name(self, *parts: object) -> None:
        right(self, *parts)
        self.num_codes = self.codebook_size
        del self.codebook_size

    monkeypatch.setattr(example.AppendedCodes, "__init__", with_the_old_name)
    where = where_of(folders, STRANGER)
    with pytest.raises(UserError, match=r"lacks codebook_size; mm_cca/adapters/base\.py says"):
        load_adapter(STRANGER, where["path"], image_tokenizer=where["image_tokenizer"])


@pytest.mark.parametrize("family", ADAPTERS)
@torch.no_grad()
def test_codes_of_a_model_in_bfloat16_are_those_of_float32(family: str, folders: Path):
    """Rounded, the nearest of many close codes would often be another one."""
    where = where_of(folders, family)
    side = 32 if family == "emu3" else 64
    pixels = torch.randint(0, 256, (8, 3, side, side), dtype=torch.uint8)
    found = []
    for dtype in ("float32", "bfloat16"):
        model = load_adapter(
            family, str(where["path"]), dtype=dtype, image_tokenizer=where["image_tokenizer"]
        )
        assert model.embed_text(torch.tensor(5)).dtype == getattr(torch, dtype)
        codes = model.encode(pixels)
        found.append((codes, model.decode(codes, (4, 4))))
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])


def test_an_adapter_beside_the_recipe(folders: Path, tmp_path: Path):
    """``mm-cca`` finds a class in the folder it is called from."""
    (tmp_path / "my_adapter.py").write_text("class Mine:\n    pass\n")
    words = ["-c", "from mm_cca import load_adapter; load_adapter('my_adapter:Mine', 'x')"]
    done = subprocess.run(
        [sys.executable, "-P", *words], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert "'my_adapter:Mine' lacks load" in done.stderr


def test_the_stranger_uses_a_stock_tokenizer(stranger: UnifiedModel):
    assert isinstance(stranger.module.vq, ChameleonVQVAE)
