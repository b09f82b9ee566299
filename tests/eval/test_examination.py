"""The examination of judges: by hand in two dimensions, and a judge that is known to be bad."""

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mm_cca import load_adapter
from mm_cca.config.schema import Recipe
from mm_cca.config.shipped import shipped
from mm_cca.data.images import decode_image, load_split
from mm_cca.errors import UserError
from mm_cca.eval.examination import (
    Edits,
    earlier_examinations,
    edits_of,
    examine,
    examine_split,
    refusals,
    refuse_unexamined,
)
from mm_cca.eval.features.scorer import load_scorer
from mm_cca.eval.ground_truth import SplitTruth
from mm_cca.sampling.prompts import Prompt
from tests.support import runs

OWN = torch.tensor([0, 1])


def at(*degrees: float) -> torch.Tensor:
    """Points on the unit circle, at these angles from the first caption."""
    angles = torch.tensor(degrees, dtype=torch.float64).deg2rad()
    return torch.stack([angles.cos(), angles.sin()], dim=1)


CAPTIONS = at(0, 90)
EDITS = Edits(torch.tensor([0, 1]), at(80, 10))


def cos(degrees: float) -> float:
    return 100 * math.cos(math.radians(degrees))


def test_figures_by_hand():
    """Reconstructions lie 30 degrees from their own caption, 60 from the other one."""
    found = examine(at(0, 90), at(30, 60), CAPTIONS, OWN, EDITS)
    assert found["num_images"] == 2
    assert found["real"] == pytest.approx(100)
    assert found["reconstruction"] == pytest.approx(cos(30))
    assert found["other_style"] == pytest.approx(cos(50))
    assert found["other_caption"] == pytest.approx(cos(60))
    assert found["r_at_5"] == 1.0
    margins = {name: margin["value"] for name, margin in found["margins"].items()}
    assert margins == pytest.approx(
        {
            "real_over_reconstruction": 100 - cos(30),
            "reconstruction_over_other_style": cos(30) - cos(50),
            "other_style_over_other_caption": cos(50) - cos(60),
        }
    )
    assert refusals({"train": found}, 0.8) == []


def test_a_margin_must_be_two_standard_errors_above_zero():
    """Differences of 20 and 4: mean 12, standard deviation 11.3, standard error 8."""
    reconstruction = torch.stack([at(math.degrees(math.acos(0.8)))[0], torch.tensor([0.28, 0.96])])
    found = examine(at(0, 90), reconstruction, CAPTIONS, OWN, EDITS)
    margin = found["margins"]["real_over_reconstruction"]
    assert margin == pytest.approx({"value": 12.0, "standard_error": 8.0}, abs=1e-4)
    first = refusals({"train": found}, 0.8)[0]
    assert first.startswith("train: it does not rank real images over their reconstructions")
    assert "margin +12.00, standard error 8.00" in first


def test_an_order_that_is_wrong_is_refused():
    """The edited captions lie nearer to the reconstructions than their own."""
    edits = Edits(torch.tensor([0, 1]), at(20, 70))
    found = examine(at(0, 90), at(30, 60), CAPTIONS, OWN, edits)
    assert found["margins"]["reconstruction_over_other_style"]["value"] < 0
    (reason,) = refusals({"heldout": found}, 0.8)
    assert (
        "heldout: it does not rank reconstructions with their own caption over the same" in reason
    )


def test_captions_without_attributes_leave_that_step_out():
    found = examine(at(0, 90), at(30, 60), CAPTIONS, OWN, None)
    assert found["other_style"] is None
    assert set(found["margins"]) == {
        "real_over_reconstruction",
        "reconstruction_over_other_caption",
    }
    assert refusals({"train": found}, 0.8) == []


def test_edits_of_one_prompt_are_averaged_and_one_prompt_proves_nothing():
    edits = Edits(torch.tensor([0, 0]), at(70, 80))
    found = examine(at(0, 90), at(30, 60), CAPTIONS, OWN, edits)
    assert found["other_style"] == pytest.approx((cos(40) + cos(50)) / 2)
    assert found["margins"]["reconstruction_over_other_style"]["standard_error"] == math.inf
    assert refusals({"train": found}, 0.8)


def test_other_captions_are_all_but_the_own_one():
    rows, captions = np.random.default_rng(0).normal(size=(2, 7, 5))
    own = torch.arange(7)
    images, texts = torch.from_numpy(rows), torch.from_numpy(captions)
    found = examine(images, images, texts, own, None)
    unit = [[v / np.linalg.norm(v) for v in part] for part in (rows, captions)]
    pairs = [100 * a @ b for i, a in enumerate(unit[0]) for j, b in enumerate(unit[1]) if i != j]
    assert found["other_caption"] == pytest.approx(sum(pairs) / len(pairs))


def test_retrieval_of_every_split_counts():
    good = examine(at(0, 90), at(30, 60), CAPTIONS, OWN, EDITS)
    poor: Any = good | {"r_at_5": 0.27}
    assert refusals({"train": good, "heldout": poor}, 0.8) == [
        "heldout: R@5 of reconstructions is 0.27, and must be at least 0.8 (eval.judge_r_at_5)"
    ]
    assert refusals({"train": poor, "heldout": poor}, 0.2) == []


def test_edits_are_drawn_by_a_seed_and_by_kind(tmp_path: Path):
    recipe = runs.load_recipe(runs.unread_recipe(tmp_path))
    asked: list[str] = []

    def text_features(texts: list[str]) -> torch.Tensor:
        asked.extend(texts)
        return torch.eye(len(texts))

    scorer: Any = SimpleNamespace(text_features=text_features)
    captions = ["red owl", "owl", "red hand"]
    edits = edits_of(captions, ["colour"], recipe, scorer)
    assert edits is not None
    assert edits.owner.tolist() == [0, 2]
    assert [text.split()[1] for text in asked] == ["owl", "hand"]
    assert all(not text.startswith("red") for text in asked)
    first, asked[:] = list(asked), []
    edits_of(captions, ["colour"], recipe, scorer)
    assert asked == first
    assert edits_of(captions, ["style"], recipe, scorer) is None
    assert edits_of(captions, [], recipe, scorer) is not None


def test_examinations_of_an_earlier_run(tmp_path: Path):
    path = tmp_path / "summary.json"
    figures = {
        "train": {
            "num_images": 8,
            "real": 30.0,
            "reconstruction": 29.0,
            "other_style": None,
            "other_caption": 10.0,
            "r_at_5": 0.9,
            "margins": {"real_over_reconstruction": {"value": 1.0, "standard_error": 0.1}},
        }
    }
    judges = [{"sha256": "aa", "examination": figures}, {"sha256": "bb", "examination": None}]
    path.write_text(json.dumps({"judges": judges}))
    earlier = earlier_examinations(str(path))
    assert earlier == {"aa": figures}
    refuse_unexamined(str(path), "a", "aa", earlier)
    refuse_unexamined(None, "b", "bb", {})
    with pytest.raises(UserError, match=r"judge b was never examined in eval\.examined .*Name a"):
        refuse_unexamined(str(path), "b", "bb", earlier)
    assert earlier_examinations(None) == {}
    path.write_text(json.dumps({"judges": judges[1:]}))
    with pytest.raises(UserError, match="examined no judge"):
        earlier_examinations(str(path))
    path.write_text(json.dumps({"arms": []}))
    with pytest.raises(UserError, match="can't be read"):
        earlier_examinations(str(path))


NUM_IMAGES = 40


def demo_truth(recipe: Recipe, split: str, captions: list[str], texts: torch.Tensor) -> SplitTruth:
    rows = np.random.default_rng(0).permutation(len(load_split(recipe.data, split).captions))
    chosen = [int(row) for row in rows[:NUM_IMAGES]]
    own_captions = [load_split(recipe.data, split).captions[row] for row in chosen]
    prompts = [Prompt(n, split, chosen[n], text) for n, text in enumerate(own_captions)]
    own = torch.tensor([captions.index(text) for text in own_captions])
    groups = np.arange(NUM_IMAGES)
    return SplitTruth(prompts, groups, texts[own], texts, own, None, {})


def test_a_judge_that_was_fitted_to_the_train_split_is_caught():
    """emoji-clip saw the generator's own training images only: it knows those, and no others."""
    recipe = runs.load_recipe("emoji")
    scorer = load_scorer("emoji-clip", None, batch_size=64, device=torch.device("cpu"))
    model = load_adapter("emu3", shipped("emu3-emoji"))
    model.module.eval()
    splits = {name: load_split(recipe.data, name) for name in ("train", "heldout")}
    captions = sorted({text for split in splits.values() for text in split.captions})
    texts = scorer.text_features(captions)
    figures = {}
    for name, split in splits.items():
        truth = demo_truth(recipe, name, captions, texts)
        cells = [split.table[split.rows[prompt.row]]["image"] for prompt in truth.prompts]
        real = torch.stack([decode_image(cell, 32, 32) for cell in cells])
        with torch.no_grad():
            decoded = model.decode(model.encode(real), (8, 8))
        features = [
            scorer.image_features(Image.fromarray(x.permute(1, 2, 0).numpy()) for x in pixels)
            for pixels in (real, decoded)
        ]
        figures[name] = examine_split(recipe, scorer, truth, *features)
    assert figures["train"]["r_at_5"] > 0.8
    assert figures["heldout"]["r_at_5"] < 0.6
    reasons = refusals(figures, 0.8)
    assert any(reason.startswith("heldout: R@5 of reconstructions") for reason in reasons)
