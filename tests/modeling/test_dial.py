"""The dial: exact at 0 and 1, linear between and beyond, for every family."""

import shutil
import weakref
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import JanusForConditionalGeneration

import mm_cca.modeling.dial
import mm_cca.sampling.weights
from mm_cca.adapters import load_checkpoint
from mm_cca.adapters.base import UnifiedModel, grid_of
from mm_cca.config.schema import Recipe
from mm_cca.errors import UserError
from mm_cca.modeling.inputs import left_pad
from mm_cca.modeling.logprobs import CodeLogProbs
from mm_cca.modeling.lora import attach_lora, write_trained
from mm_cca.runs.folder import RunFolder
from mm_cca.runs.stage import Stage
from mm_cca.sampling.weights import load_source
from mm_cca.testing.tiny import FAMILIES, image_tokenizer_of, tokenizer_of, write_tiny
from tests.support import runs
from tests.support.closeness import assert_close
from tests.support.third_party import THIRD_PARTY, write_third_party

PROMPTS = ["red owl", "a small waving hand"]


def recipe_of(root: Path, name: str, tuning: str) -> Recipe:
    """A recipe whose run in ``root`` has a "trained" model: the base with random changes."""
    folder = root / "base"
    image_tokenizer = image_tokenizer_of(name, folder)
    if name == THIRD_PARTY:
        write_tiny("lumina-mgpt", root / "vq", side=4)
        image_tokenizer = image_tokenizer_of("lumina-mgpt", root / "vq")
        write_third_party(folder, Path(str(image_tokenizer)))
    else:
        write_tiny(name, folder, side=2)
    values = runs.tiny_recipe(root, folder, root / "no-data")
    values["model"].update(
        adapter=name, image_tokenizer=image_tokenizer, tokenizer=tokenizer_of(name, folder)
    )
    side = {"emu3": 16, THIRD_PARTY: 64}.get(name, 32)
    values["data"]["image_size"] = [side, side]
    values["train"]["tuning"] = tuning
    recipe = runs.load_recipe(runs.write_recipe(root / "recipe.yaml", values))
    model = load_checkpoint(recipe.model)
    if tuning == "lora":
        attach_lora(model, rank=3, alpha=7)
    move(model.module)
    write_trained(model, root / "run" / "train" / "model")
    Stage(root / "run" / "train", {}).finish()
    return recipe


@torch.no_grad()
def move(module: nn.Module) -> None:
    generator = torch.Generator().manual_seed(7)
    for parameter in module.parameters():
        if parameter.requires_grad:
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.add_(0.1 * noise.to(parameter.dtype))


def dialled(recipe: Recipe, dial: float, source: str = "cca") -> UnifiedModel:
    return load_source(recipe, RunFolder.of(recipe), source, dial=dial)


@torch.no_grad()
def logps(recipe: Recipe, model: UnifiedModel) -> torch.Tensor:
    grid = grid_of(model, recipe.data.image_size)
    policy = CodeLogProbs(model, model.layout(grid), whole_vocabulary=False).eval()
    generator = torch.Generator().manual_seed(1)
    codes = torch.randint(model.codebook_size, (2, grid[0] * grid[1]), generator=generator)
    return policy(*left_pad(model.prompt_ids(PROMPTS, grid), model.pad_id), codes).per_code


@pytest.fixture(scope="module", params=[*FAMILIES, THIRD_PARTY])
def full(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    return recipe_of(tmp_path_factory.mktemp("full"), request.param, "full")


@pytest.fixture(scope="module", params=[*FAMILIES, THIRD_PARTY])
def lora(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    return recipe_of(tmp_path_factory.mktemp("lora"), request.param, "lora")


def check_ends(recipe: Recipe) -> None:
    base, trained = logps(recipe, dialled(recipe, 1.0, "base")), logps(recipe, dialled(recipe, 1.0))
    assert (base - trained).abs().max() > 0.01
    assert_close(logps(recipe, dialled(recipe, 0.0)), base, 0)
    half = logps(recipe, dialled(recipe, 0.5))
    assert (half - base).abs().max() > 0.01
    assert (half - trained).abs().max() > 0.01


def test_full_is_exact_at_both_ends(full: Recipe):
    check_ends(full)
    model = load_checkpoint(full.model)
    trained = RunFolder.of(full).train / "model"
    mm_cca.modeling.dial.dial_full(model.module, trained, 1.0)
    ours = model.module.state_dict()
    expected = load_checkpoint(full.model, str(trained)).module.state_dict()
    assert [name for name, x in expected.items() if not torch.equal(x, ours[name])] == []
    assert_close(logps(full, model), logps(full, dialled(full, 1.0)), 0)


def test_lora_is_exact_at_both_ends(lora: Recipe):
    check_ends(lora)


@pytest.mark.parametrize("dial", [0.5, 1.5])
def test_full_equals_interpolated_state_dicts(full: Recipe, dial: float):
    base, trained = (dialled(full, 1.0, s).module.state_dict() for s in ("base", "cca"))
    ours = dialled(full, dial).module.state_dict()
    assert ours.keys() == base.keys() == trained.keys()
    moved = [name for name in base if not torch.equal(base[name], trained[name])]
    assert len(moved) > 5
    for name, value in ours.items():
        expected = base[name] + dial * (trained[name] - base[name])
        assert_close(value, expected, 1e-6 if name in moved else 0)


@pytest.mark.parametrize("dial", [0.5, 1.5])
def test_lora_equals_interpolated_merged_weights(lora: Recipe, dial: float):
    trained = dialled(lora, 1.0)
    merged = trained.module.merge_and_unload().state_dict()
    naive = load_checkpoint(lora.model)
    state = naive.module.state_dict()
    assert state.keys() == merged.keys()
    with torch.no_grad():
        for name, value in state.items():
            if value.is_floating_point():
                value.add_(dial * (merged[name] - value))
    naive.module.eval()
    assert_close(logps(lora, dialled(lora, dial)), logps(lora, naive), 1e-4)


@pytest.fixture
def janus(tmp_path: Path) -> Recipe:
    return recipe_of(tmp_path, "janus", "full")


@pytest.fixture
def trained(janus: Recipe) -> Path:
    return RunFolder.of(janus).train / "model"


def test_sharded_files(janus: Recipe, trained: Path):
    before = logps(janus, dialled(janus, 0.5))
    model = JanusForConditionalGeneration.from_pretrained(trained)
    (trained / "model.safetensors").unlink()
    model.save_pretrained(trained, max_shard_size="100KB")
    assert len(list(trained.glob("model-*.safetensors"))) > 2
    assert_close(logps(janus, dialled(janus, 0.5)), before, 0)


def test_bfloat16_is_interpolated_in_float32(janus: Recipe):
    janus.model.dtype = "bfloat16"
    base, trained, ours = (
        model.module.state_dict()
        for model in (dialled(janus, 1.0, "base"), dialled(janus, 1.0), dialled(janus, 0.3))
    )
    name = "model.language_model.layers.0.mlp.up_proj.weight"
    assert ours[name].dtype == torch.bfloat16
    exact = base[name].float() + 0.3 * (trained[name].float() - base[name].float())
    assert_close(ours[name], exact.bfloat16(), 2e-3)  # at most half a unit in the last place
    assert torch.equal(dialled(janus, 0.0).module.state_dict()[name], base[name])


def test_tied_weights_move_once(tmp_path: Path):
    recipe = recipe_of(tmp_path, "janus", "full")
    for folder in (tmp_path / "base", tmp_path / "run" / "train" / "model"):
        tie(folder)
    base, trained = (dialled(recipe, 1.0, s).module.state_dict() for s in ("base", "cca"))
    module = dialled(recipe, 0.5).module
    embedding = "model.language_model.embed_tokens.weight"
    assert module.lm_head.weight is module.get_parameter(embedding)
    expected = base[embedding] + 0.5 * (trained[embedding] - base[embedding])
    assert_close(module.lm_head.weight, expected, 1e-6)


def tie(folder: Path) -> None:
    model = JanusForConditionalGeneration.from_pretrained(folder)
    model.config.tie_word_embeddings = True
    model.tie_weights()
    for file in folder.glob("model*"):
        file.unlink()
    model.save_pretrained(folder)
    assert "lm_head.weight" not in load_file(folder / "model.safetensors")


def test_a_head_that_the_base_ties_and_the_trained_folder_does_not(tmp_path: Path):
    recipe = recipe_of(tmp_path, "janus", "full")
    tie(tmp_path / "base")
    with pytest.raises(UserError, match="are tied in the base but not in the folder"):
        dialled(recipe, 0.5)


def test_one_model_and_one_tensor_in_memory(
    janus: Recipe, trained: Path, monkeypatch: pytest.MonkeyPatch
):
    paths, alive, read = [], [], []
    load, real = load_checkpoint, mm_cca.modeling.dial.safe_open

    def loaded(config, path=None):
        paths.append(path)
        return load(config, path)

    class OneAtATime:
        def __init__(self, *args, **words):
            self.file = real(*args, **words)

        def __enter__(self):
            self.file.__enter__()
            return self

        def __exit__(self, *error):
            return self.file.__exit__(*error)

        def keys(self):
            return self.file.keys()

        def get_slice(self, name):
            return self.file.get_slice(name)

        def get_tensor(self, name):
            assert all(tensor() is None for tensor in alive), f"{name} is not the only tensor"
            tensor = self.file.get_tensor(name)
            alive.append(weakref.ref(tensor))
            read.append(name)
            return tensor

    monkeypatch.setattr(mm_cca.sampling.weights, "load_checkpoint", loaded)
    monkeypatch.setattr(mm_cca.modeling.dial, "safe_open", OneAtATime)
    dialled(janus, 0.5)
    assert paths == [None], "only the base may be loaded as a model"
    assert sorted(read) == sorted(load_file(trained / "model.safetensors"))


def test_no_file_is_written_to(janus: Recipe, trained: Path):
    """Loaded weights may be memory-mapped from the base's file, and are changed in place."""
    folders = (Path(janus.model.path), trained)
    before = [runs.files_of(folder) for folder in folders]
    dialled(janus, 0.5)
    assert [runs.files_of(folder) for folder in folders] == before


def rewrite(trained: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    path = trained / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, {"format": "pt"})


LAYER = "model.language_model.layers.1.mlp.up_proj.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(LAYER), f"the trainable weight {LAYER} is missing"),
        (lambda t: t.update(other=torch.ones(2)), "1 tensors are not in the base, such as other"),
        (lambda t: t.update({LAYER: torch.ones(2, 3)}), rf"{LAYER} is \[2, 3\], not \[64, 32\]"),
    ],
)
def test_weights_that_do_not_match(janus: Recipe, trained: Path, change, message: str):
    rewrite(trained, change)
    model = load_checkpoint(janus.model)
    before = {name: value.clone() for name, value in model.module.state_dict().items()}
    with pytest.raises(UserError, match=message):
        mm_cca.modeling.dial.dial_full(model.module, trained, 0.5)
    after = model.module.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_integer_tensors_must_agree(tmp_path: Path):
    recipe = recipe_of(tmp_path, "emu3", "full")
    folder = RunFolder.of(recipe).train / "model"

    def count(tensors: dict[str, torch.Tensor]) -> None:
        name = next(n for n, x in tensors.items() if not x.is_floating_point())
        tensors[name] = tensors[name] + 1

    rewrite(folder, count)
    with pytest.raises(UserError, match="has other integer values"):
        dialled(recipe, 0.5)


def test_a_trained_folder_without_weights(janus: Recipe, trained: Path):
    (trained / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"there is no model\.safetensors"):
        dialled(janus, 0.5)


@pytest.mark.parametrize("tuning", ["full", "lora"])
def test_a_dial_without_its_base(tmp_path: Path, tuning: str):
    recipe = recipe_of(tmp_path, "janus", tuning)
    shutil.rmtree(tmp_path / "base")
    with pytest.raises(UserError, match=r"dial is 0\.5, which needs the base.*model\.path"):
        dialled(recipe, 0.5)
    if tuning == "full":
        assert logps(recipe, dialled(recipe, 1.0)).isfinite().all()


def test_a_dial_of_a_model_that_was_not_trained(janus: Recipe, trained: Path):
    shutil.rmtree(trained)
    with pytest.raises(UserError, match="train the cca model to the end first"):
        dialled(janus, 0.5)
