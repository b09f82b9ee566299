"""``mixed_precision: auto`` is what the machine has units for, and is recorded as that."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from mm_cca.config import precision
from mm_cca.config.load import dump, load_config
from mm_cca.config.precision import has_bf16_units
from mm_cca.config.shipped import shipped_recipes
from mm_cca.training.accelerator import new_accelerator
from tests.support import runs


@pytest.fixture(params=[True, False], ids=["units", "no units"])
def units(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    monkeypatch.setattr(precision, "has_bf16_units", lambda: request.param)
    monkeypatch.setattr("mm_cca.training.accelerator.has_bf16_units", lambda: request.param)
    return request.param


@pytest.mark.parametrize(
    ("recipe", "key"),
    [
        ("emoji", "train.mixed_precision"),
        ("emoji-tokenizer", "tokenizer.mixed_precision"),
        ("emoji-judge-vit", "scorer.mixed_precision"),
    ],
)
def test_auto_is_settled_when_a_recipe_is_loaded(
    units: bool, recipe: str, key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    group, _, name = key.partition(".")
    settled = load_config(recipe)
    assert getattr(getattr(settled, group), name) == ("bf16" if units else "no")
    kept = tmp_path / "recipe.yaml"
    kept.write_text(dump(settled))
    monkeypatch.setattr(precision, "has_bf16_units", lambda: not units)
    monkeypatch.setattr(precision, "has_bf16_units", lambda: not units)
    assert load_config(str(kept)) == settled  # also on another machine
    for given in ("no", "bf16", "fp16"):
        assert getattr(getattr(load_config(recipe, [f"{key}={given}"]), group), name) == given


def test_recipes_for_processors_leave_it_to_the_machine():
    demo = [name for name in shipped_recipes() if name.startswith("emoji")]
    assert len(demo) > 10
    for name in demo:
        assert "mixed_precision: auto" in shipped_recipes()[name].read_text(), name


@pytest.mark.parametrize(
    ("capabilities", "has"),
    [
        ({"avx2": True}, False),
        ({"avx2": True, "avx512_f": True, "avx512_bf16": False}, False),
        ({"avx2": True, "avx512_bf16": True}, True),
        ({"amx_bf16": True}, True),
        ({"neon": True, "bf16": True}, True),
        ({"neon": True, "bf16": False}, False),
    ],
)
def test_units_of_a_processor(
    monkeypatch: pytest.MonkeyPatch, capabilities: dict[str, bool], has: bool
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert has_bf16_units() is has


@pytest.mark.parametrize("emulates", [True, False])
def test_units_of_a_gpu(monkeypatch: pytest.MonkeyPatch, emulates: bool):
    """A T4 takes bfloat16 and emulates it."""

    def is_bf16_supported(*, including_emulation: bool) -> bool:
        return including_emulation or not emulates

    found = SimpleNamespace(is_available=lambda: True, is_bf16_supported=is_bf16_supported)
    monkeypatch.setattr(torch, "cuda", found)
    assert has_bf16_units() is not emulates
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": emulates})
    assert has_bf16_units() is emulates


def test_bf16_without_units_is_told(
    units: bool, recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    config = runs.load_recipe(recipe, "train.mixed_precision=bf16").train
    assert new_accelerator(config, tmp_path).mixed_precision == "bf16"
    told = capsys.readouterr().err
    assert ("Use train.mixed_precision=auto" in told) is not units
