"""``mm-cca gaps``: the whole command on a tiny run, and what it refuses."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from mm_cca import cli, load_adapter
from mm_cca.adapters.base import grid_of
from mm_cca.data.token_cache import open_cache
from mm_cca.modeling.inputs import left_pad
from mm_cca.modeling.logprobs import CodeLogProbs
from tests.support import runs


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> Path:
    folder = tmp_path_factory.mktemp("gaps")
    values = runs.tiny_recipe(folder, tiny_folder, runs.two_splits(folder / "data.parquet"))
    values["data"]["heldout_split"] = "heldout"
    recipe = runs.write_recipe(folder / "recipe.yaml", values)
    return Path(runs.do(recipe, stages=["prepare", "train"]).run.dir)


def _per_image(run: Path, folder: Path, split: str, captions: list[str]) -> float:
    """Mean log-probability of the first images given these captions, one by one."""
    model = load_adapter("emu3", str(folder))
    cache = open_cache(run / "tokens" / split, 1)
    grid = grid_of(model, (16, 16))
    policy = CodeLogProbs(model, model.layout(grid), whole_vocabulary=False).eval()
    total = 0.0
    for row, caption in enumerate(captions):
        prompt = left_pad(model.prompt_ids([caption], grid), model.pad_id)
        codes = cache.codes(torch.tensor([row]), torch.tensor([0]))
        with torch.no_grad():
            total += float(policy(*prompt, codes).logps)
    return total / len(captions)


def test_gaps_equal_scoring_one_by_one(trained: Path, tiny_folder: Path):
    assert cli.main(["gaps", str(trained), "--images", "5", "--scale", "2"]) == 0
    for split in ("train", "heldout"):
        found = json.loads((trained / "gaps" / f"cca.{split}.json").read_text())
        captions = open_cache(trained / "tokens" / split, 1).captions[:5]
        wrong = captions[1:] + captions[:1]
        model = trained / "train" / "model"
        own_gap, wrong_gap = (
            _per_image(trained, model, split, c) - _per_image(trained, tiny_folder, split, c)
            for c in (captions, wrong)
        )
        assert found["per_image"]["own_gap"] == pytest.approx(own_gap, abs=1e-3)
        assert found["per_image"]["wrong_gap"] == pytest.approx(wrong_gap, abs=1e-3)
        assert found["num_images"] == 5
        assert sum(found["wrong_gap_by_quarter_of_relevance"]) == pytest.approx(wrong_gap, abs=1e-3)
        for name, values in found["by_row"].items():
            for mean, (low, high) in zip(values, found["by_row_intervals"][name], strict=True):
                assert low - 1e-6 <= mean <= high + 1e-6
        assert Image.open(trained / "gaps" / f"cca.{split}.png").width > 600


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--images", "1"], "--images is 1; allowed: 2 or more"),
        (["--scale", "1"], "--scale is 1; it must be above 1"),
        (["--source", "control"], "train the control model"),
    ],
)
def test_refused(
    trained: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
):
    assert cli.main(["gaps", str(trained), *arguments]) == 2
    assert message in capsys.readouterr().err


def test_not_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert cli.main(["gaps", str(tmp_path)]) == 2
    assert "is not a run folder" in capsys.readouterr().err
