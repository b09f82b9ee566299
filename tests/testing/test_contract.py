"""The contract suite passes for built-in and third-party adapters, and finds broken ones."""

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
from tests.support.third_party import THIRD_PARTY, checkpoint_paths


@pytest.mark.parametrize("name", [*ADAPTERS, THIRD_PARTY])
def test_adapter_keeps_the_contract(name: str, both_folders: Path):
    size = [32, 32] if name == "emu3" else [64, 64]
    measured = contract.check_adapter(name, image_size=size, **checkpoint_paths(both_folders, name))
    assert max(measured.values()) < 1e-4, measured


def test_janus_in_deepseeks_layout_keeps_the_contract(hub_folders: Path):
    measured = contract.check_adapter("janus", str(hub_folders / "deepseek"), image_size=[64, 64])
    assert max(measured.values()) < 1e-4, measured


def test_all_stages_with_a_third_party_adapter(folders: Path, tmp_path: Path):
    where = checkpoint_paths(folders, THIRD_PARTY)
    values = runs.tiny_recipe(tmp_path, Path(str(where["path"])), runs.two_splits(tmp_path / "d"))
    values["model"].update(adapter=THIRD_PARTY, image_tokenizer=where["image_tokenizer"])
    values["data"]["image_size"] = [64, 64]
    path = runs.write_recipe(tmp_path / "recipe.yaml", values)
    runs.do(path, "sample.top_k=8", stages=["prepare", "train", "sample", "eval", "report"])
    assert (tmp_path / "run" / "report.html").exists()
    trained = LlamaForCausalLM.from_pretrained(tmp_path / "run" / "train" / "model")
    assert trained.config.vocab_size == LlamaConfig.from_pretrained(where["path"]).vocab_size


def test_plain_peft_reads_the_lora_with_a_key_mapping(folders: Path, tmp_path: Path):
    """As CONTRIBUTING describes; without the mapping the weights would be ignored."""
    where = checkpoint_paths(folders, THIRD_PARTY)
    values = runs.tiny_recipe(tmp_path, Path(str(where["path"])), runs.two_splits(tmp_path / "d"))
    values["model"].update(adapter=THIRD_PARTY, image_tokenizer=where["image_tokenizer"])
    values["data"]["image_size"] = [64, 64]
    values["train"].update(tuning="lora", reference="lora", lora_rank=2)
    runs.do(runs.write_recipe(tmp_path / "recipe.yaml", values))
    adapter = str(tmp_path / "run" / "train" / "model")

    @torch.no_grad()
    def logits(**options: object) -> torch.Tensor:
        llama = LlamaForCausalLM.from_pretrained(where["path"])
        ids = torch.tensor([[1, 5, 9]])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return PeftModel.from_pretrained(llama, adapter, **options)(input_ids=ids).logits

    export_model(tmp_path / "run", tmp_path / "merged", merge=True)
    merged = LlamaForCausalLM.from_pretrained(tmp_path / "merged")
    expected = merged(input_ids=torch.tensor([[1, 5, 9]])).logits
    mapped = logits(key_mapping={r"^language\.": ""})
    assert_close(mapped, expected, 1e-4)
    assert (logits() - mapped).abs().max() > 1e-3


def test_contributing_shows_the_key_mapping():
    text = (Path(__file__).parents[2] / "CONTRIBUTING.md").read_text()
    assert 'key_mapping={r"^language\\.": ""}' in text


@pytest.fixture
def third_party(folders: Path) -> UnifiedModel:
    where = checkpoint_paths(folders, THIRD_PARTY)
    model = load_adapter(THIRD_PARTY, where["path"], image_tokenizer=where["image_tokenizer"])
    model.module.eval()
    return model


GRID = (4, 4)


def _swapped_rows(model: UnifiedModel, patch: pytest.MonkeyPatch) -> None:
    """Two codes are scored with the same row of the head."""
    right = type(model).image_head

    def wrong(self, *, whole_vocabulary: bool = False) -> ImageHead:
        head = right(self, whole_vocabulary=whole_vocabulary)
        return ImageHead(head.weight, head.bias, head.row_of_code.clamp(max=62))

    patch.setattr(type(model), "image_head", wrong)
    contract.check_codes(model, GRID)


def _mixes_rows(model: UnifiedModel, patch: pytest.MonkeyPatch) -> None:
    """Hidden states depend on the other rows of the batch."""
    right = type(model).hidden_states

    def wrong(self, embeds, mask, position_ids, cache=None):
        return right(self, embeds + embeds.mean(dim=0), mask, position_ids, cache)

    patch.setattr(type(model), "hidden_states", wrong)
    contract.check_logps(model, GRID)


def _sees_padding(model: UnifiedModel, patch: pytest.MonkeyPatch) -> None:
    """Prompts padded on the left are read with their padding."""
    right = type(model).hidden_states

    def wrong(self, embeds, mask, position_ids, cache=None):
        seen = None if mask is None else torch.ones_like(mask)
        return right(self, embeds, seen, position_ids, cache)

    patch.setattr(type(model), "hidden_states", wrong)
    contract.check_padding(model, GRID)


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
    ("broken", "message"),
    [
        (_swapped_rows, "share rows"),
        (_mixes_rows, "the difference is"),
        (_sees_padding, "padding changes a prompt"),
        (_forgets_the_cache, "differ with the cache"),
        (_beyond_the_codebook, "beyond the codebook"),
        (_knows_the_prompt, "the prompt itself"),
        (_one_slot_too_many, "free slots"),
        (_trains_the_tokenizer, "get no gradient"),
    ],
)
def test_contract_finds_a_broken_adapter(
    broken, message: str, third_party: UnifiedModel, monkeypatch: pytest.MonkeyPatch
):
    with pytest.raises(AssertionError, match=message):
        broken(third_party, monkeypatch)


def test_an_adapter_that_misses_a_method_is_named(folders: Path, monkeypatch: pytest.MonkeyPatch):
    import tests.example_adapter as example

    monkeypatch.delattr(StandardDecoder, "new_cache")
    monkeypatch.delattr(StandardDecoder, "frozen")
    monkeypatch.setattr(example.AppendedCodes, "__init__", lambda self, *parts: None)
    where = checkpoint_paths(folders, THIRD_PARTY)
    with pytest.raises(UserError, match=r"lacks .*frozen.*new_cache.*base\.py"):
        load_adapter(THIRD_PARTY, where["path"], image_tokenizer=where["image_tokenizer"])


def test_an_adapter_without_codebook_size_is_named(folders: Path, monkeypatch: pytest.MonkeyPatch):
    """An adapter written when the codebook's size was still called ``num_codes``."""
    import tests.example_adapter as example

    right = example.AppendedCodes.__init__

    def with_the_old_name(self, *parts: object) -> None:
        right(self, *parts)
        self.num_codes = self.codebook_size
        del self.codebook_size

    monkeypatch.setattr(example.AppendedCodes, "__init__", with_the_old_name)
    where = checkpoint_paths(folders, THIRD_PARTY)
    with pytest.raises(UserError, match=r"lacks codebook_size; mm_cca/adapters/base\.py says"):
        load_adapter(THIRD_PARTY, where["path"], image_tokenizer=where["image_tokenizer"])


@pytest.mark.parametrize("family", ADAPTERS)
@torch.no_grad()
def test_codes_of_a_model_in_bfloat16_are_those_of_float32(family: str, folders: Path):
    """The image tokenizer stays in float32: rounding often changes the nearest code."""
    where = checkpoint_paths(folders, family)
    side = 32 if family == "emu3" else 64
    pixels = torch.randint(0, 256, (8, 3, side, side), dtype=torch.uint8)
    results = []
    for dtype in ("float32", "bfloat16"):
        model = load_adapter(family, dtype=dtype, **where)
        assert model.embed_text(torch.tensor(5)).dtype == getattr(torch, dtype)
        codes = model.encode(pixels)
        results.append((codes, model.decode(codes, (4, 4))))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])


def test_an_adapter_in_the_working_directory(folders: Path, tmp_path: Path):
    """``mm-cca`` finds a class in the folder it is called from."""
    (tmp_path / "my_adapter.py").write_text("class Empty:\n    pass\n")
    code = "from mm_cca import load_adapter; load_adapter('my_adapter:Empty', 'x')"
    done = subprocess.run(
        [sys.executable, "-P", "-c", code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "'my_adapter:Empty' lacks load" in done.stderr


def test_the_third_party_adapter_uses_a_stock_tokenizer(third_party: UnifiedModel):
    assert isinstance(third_party.module.vq, ChameleonVQVAE)
