"""The arms of a recipe, their common prompts, and the rows kept as a reference."""

from pathlib import Path

import pytest

from mm_cca.adapters.base import Defaults
from mm_cca.errors import UserError
from mm_cca.runs.folder import RunFolder
from mm_cca.sampling.arms import Arm, arms_of, refuse_own_temperature
from mm_cca.sampling.draw import sampling_settings
from mm_cca.sampling.prompts import prompts_of, reference_rows
from tests.support import runs


def test_arms_of_a_recipe(prepared: Path):
    recipe = runs.load_recipe(
        prepared,
        "train.control=true",
        "sample.control_scales=[1.5]",
        "sample.guidance_scales=[2,7.5]",
    )
    assert [arm.name for arm in arms_of(recipe)] == [
        "base",
        "base+cfg2",
        "base+cfg7.5",
        "cca",
        "control",
        "control+cfg1.5",
    ]
    assert arms_of(recipe)[1] == Arm("base", 2.0)


def test_scales_and_dials_of_the_trained_model(prepared: Path):
    recipe = runs.load_recipe(prepared, "sample.cca_scales=1.5", "sample.dial=[0.5, 1.25]")
    assert [arm.name for arm in arms_of(recipe)][2:] == [
        "cca",
        "cca+cfg1.5",
        "cca+dial0.5",
        "cca+dial1.25",
    ]
    assert arms_of(recipe)[4] == Arm("cca", 1.0, dial=0.5)


def test_every_guided_arm_once_per_negative_prompt(prepared: Path):
    recipe = runs.load_recipe(
        prepared,
        "sample.negative_prompts=['', blurry, text]",
        "sample.guidance_scales=[2, 3]",
        "sample.cca_scales=2",
    )
    assert {arm.name: arm.negative_prompt for arm in arms_of(recipe)} == {
        "base": "",
        "base+cfg2": "",
        "base+cfg3": "",
        "base+cfg2+neg1": "blurry",
        "base+cfg3+neg1": "blurry",
        "base+cfg2+neg2": "text",
        "base+cfg3+neg2": "text",
        "cca": "",
        "cca+cfg2": "",
        "cca+cfg2+neg1": "blurry",
        "cca+cfg2+neg2": "text",
    }
    only = runs.load_recipe(prepared, "sample.negative_prompts=blurry")
    assert arms_of(only)[1].name == "base+cfg2+neg1"


def test_every_arm_at_every_temperature(prepared: Path):
    recipe = runs.load_recipe(
        prepared,
        "sample.temperatures=[0.9, 1.1]",
        "sample.guidance_scales=[2.5]",
        "sample.negative_prompts=['', blurry]",
        "sample.dial=0.75",
    )
    arms = arms_of(recipe)
    assert [arm.name for arm in arms] == [
        "base",
        "base+t0.9",
        "base+t1.1",
        "base+cfg2.5",
        "base+cfg2.5+t0.9",
        "base+cfg2.5+t1.1",
        "base+cfg2.5+neg1",
        "base+cfg2.5+neg1+t0.9",
        "base+cfg2.5+neg1+t1.1",
        "cca",
        "cca+t0.9",
        "cca+t1.1",
        "cca+dial0.75",
        "cca+dial0.75+t0.9",
        "cca+dial0.75+t1.1",
    ]
    assert arms[0] == Arm("base", 1.0)
    assert arms[-1] == Arm("cca", 1.0, dial=0.75, temperature=1.1)
    assert [arm for arm in arms if arm.temperature is None] == arms[::3]


def test_the_temperature_of_an_arm_comes_before_that_of_the_recipe(prepared: Path):
    family = Defaults(guidance_scale=3.0, temperature=0.7, top_k=None, top_p=None)
    arms = (Arm("base", 1.0), Arm("base", 1.0, temperature=1.1))

    def drawn_at(*overrides: str) -> list[float]:
        recipe = runs.load_recipe(prepared, *overrides)
        return [sampling_settings(recipe, arm, family).temperature for arm in arms]

    assert drawn_at() == [0.7, 1.1]
    assert drawn_at("sample.temperature=0.9") == [0.9, 1.1]


def test_a_temperature_that_every_arm_has_anyway(prepared: Path):
    family = Defaults(guidance_scale=3.0, temperature=0.7, top_k=None, top_p=None)
    repeated = runs.load_recipe(prepared, "sample.temperatures=[0.7000001, 1.1]")
    with pytest.raises(UserError, match=r"has 0.7, the default temperature of emu3"):
        refuse_own_temperature(repeated, family)
    for keys in (["sample.temperatures=1.1"], ["sample.temperatures=0.7", "sample.temperature=1"]):
        refuse_own_temperature(runs.load_recipe(prepared, *keys), family)


def test_prompts_are_at_most_half_of_a_split_and_the_rest_is_the_reference(prepared: Path):
    for num_images, counts in ((100, (8, 6)), (5, (5, 5)), (4, (4, 4))):
        recipe = runs.load_recipe(prepared, f"sample.num_images={num_images}")
        run = RunFolder.of(recipe)
        prompts = prompts_of(recipe, run)
        assert [p.index for p in prompts] == list(range(sum(counts)))
        for split, count, total, first in (
            ("train", counts[0], 16, 0),
            ("heldout", counts[1], 12, 16),
        ):
            in_split = [p for p in prompts if p.split == split]
            assert len(in_split) == count
            assert [p.caption for p in in_split] == [runs.CAPTIONS[first + p.row] for p in in_split]
            reference = reference_rows(recipe, run, split).tolist()
            assert sorted([p.row for p in in_split] + reference) == list(range(total))


def test_a_cap_keeps_the_first_of_the_shuffled_rows_as_reference(prepared: Path):
    """Of the 8 train and 6 held-out rows that are no prompts."""
    for cap, counts in ((5, (5, 5)), (7, (7, 6)), (100, (8, 6))):
        recipe = runs.load_recipe(prepared, "sample.num_images=100", f"eval.reference_images={cap}")
        every = runs.load_recipe(prepared, "sample.num_images=100")
        for split, count in zip(("train", "heldout"), counts, strict=True):
            kept = reference_rows(recipe, RunFolder.of(recipe), split).tolist()
            rows = reference_rows(every, RunFolder.of(every), split).tolist()
            assert kept == rows[:count]


def test_prompts_depend_on_the_sampling_seed(prepared: Path):
    chosen = {}
    for seed in (0, 1):
        recipe = runs.load_recipe(prepared, f"sample.seed={seed}")
        chosen[seed] = [p.row for p in prompts_of(recipe, RunFolder.of(recipe))]
    assert chosen[0] != chosen[1]
