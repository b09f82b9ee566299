"""Every objective, alone and in sums, through the real training loop on a tiny model."""

import json
import math
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from mm_cca.config.mixtures import LossTerms
from mm_cca.config.schema import LossConfig
from tests.support import runs

SUMS = ["cca", "cca_code", "dpo", "unlearn", "nll", "distill", "gft"]
SUMS += ["cca + 0.1 nll", "cca + distill", "cca + cca_code", "ddo", "cca + 0.5 ddo"]


@pytest.fixture
def recipe(tmp_path: Path, tiny_folder: Path) -> Path:
    values = runs.tiny_recipe(tmp_path, tiny_folder, runs.two_splits(tmp_path / "data.parquet"))
    values["loss"]["beta_codes"] = 16
    return runs.write_recipe(tmp_path / "recipe.yaml", values)


def test_what_each_sum_needs():
    needs = {
        text: (terms.needs_negatives, terms.needs_base, terms.needs_drawn)
        for text in SUMS
        for terms in [LossTerms.of(LossConfig(objective=text))]
    }
    assert needs == {
        "cca": (True, False, False),
        "dpo": (True, False, False),
        "unlearn": (True, False, False),
        "nll": (False, False, False),
        "distill": (False, True, False),
        "cca_code": (False, True, False),
        "gft": (False, True, False),
        "cca + cca_code": (True, True, False),
        "cca + 0.1 nll": (True, False, False),
        "cca + distill": (True, True, False),
        "ddo": (False, False, True),
        "cca + 0.5 ddo": (True, False, True),
    }


@pytest.mark.parametrize("tuning", ["full", "lora"])
@pytest.mark.parametrize("objective", SUMS)
def test_it_trains(recipe: Path, tmp_path: Path, objective: str, tuning: str):
    """The loss goes down on the same pairs, from the value that it must start at."""
    keys = [f"loss.objective={objective}", f"train.tuning={tuning}", "loss.uncond_ratio=0"]
    keys += ["train.max_steps=12", "loss.distill_scale=2", "loss.scale=2", "train.save_every=100"]
    keys += ["train.reference=lora", "train.learning_rate=0.01"] if tuning == "lora" else []
    runs.do(recipe, *keys)
    lines = runs.metrics(tmp_path / "run" / "train")
    at_start = {"cca": math.log(2) * 4 / 3, "dpo": math.log(2), "unlearn": 0.0}
    at_start["ddo"] = at_start["cca"]
    at_start["cca_code"] = 2 * math.log(2)
    if objective in at_start:
        assert lines[0]["loss"] == pytest.approx(at_start[objective], abs=1e-5)
    first, last = (sum(x["loss"] for x in part) for part in (lines[:4], lines[-4:]))
    assert last < first
    if "+" in objective:
        names = [term.split()[-1] for term in objective.split("+")]
        terms = LossTerms.of(LossConfig(objective=objective)).weights
        total = sum(terms[name] * lines[3][f"loss_{name}"] for name in names)
        assert lines[3]["loss"] == pytest.approx(total, rel=1e-4)
    if "cca" in objective:
        assert abs(lines[0]["kl"]) < 1e-4 < lines[-1]["kl"]


def test_unlearn_is_announced_as_unbounded(recipe: Path, capsys: pytest.CaptureFixture[str]):
    runs.do(recipe, "loss.objective=unlearn", "train.max_steps=1")
    assert "warning: unlearn has no lower bound" in capsys.readouterr().err


def test_the_control_does_not_depend_on_the_reference(recipe: Path, tmp_path: Path):
    """One base and one control serve sweeps with a copy and with a cached reference."""
    keys = ["run.sources=[base,control]", "train.control=true", "train.max_steps=1"]
    runs.do(recipe, *keys)
    before = runs.mtimes_of(tmp_path / "run" / "control")
    runs.do(recipe, *keys, "train.reference=cached", "loss.lambda_=7")
    assert runs.mtimes_of(tmp_path / "run" / "control") == before


def test_distilling_scale_one_has_nothing_to_learn(recipe: Path, tmp_path: Path):
    """The base is its own teacher; refused in a recipe, so asked of the function underneath."""
    runs.do(recipe, "loss.objective=distill", "loss.distill_scale=1.000001", "train.max_steps=1")
    (line,) = runs.metrics(tmp_path / "run" / "train")
    assert abs(line["loss"]) < 1e-4


@pytest.mark.parametrize(
    ("objective", "more"),
    [
        (name, [])
        for name in ("cca + 0.1 nll", "cca_code", "dpo", "unlearn", "ddo", "distill", "gft")
    ]
    + [("cca", ["loss.gap_floor=-0.001"]), ("cca_code", ["loss.scale_by_relevance=1"])],
)
def test_micro_batches_do_not_matter(recipe: Path, tmp_path: Path, objective: str, more: list[str]):
    """1 pair at a time or 4, the step is the same up to rounding: nothing depends on neighbours."""
    keys = [f"loss.objective={objective}", "loss.num_negatives=2", "loss.text_weight=0.1", *more]
    keys += ["loss.distill_scale=2", "loss.scale=2"]
    keys += ["train.max_steps=2", "train.learning_rate=0.0001"]
    tokens = f"run.tokens_dir={tmp_path / 'tokens'}"
    losses = []
    for size in (1, 4):
        folder = tmp_path / f"micro-{size}"
        runs.do(recipe, *keys, tokens, f"run.dir={folder}", f"train.micro_batch_size={size}")
        losses.append([line["loss"] for line in runs.metrics(folder / "train")])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4, abs=1e-5)
    assert losses[0][0] != losses[0][1]


FLOORED = ["loss.gap_floor=-0.05", "loss.num_negatives=2", "train.max_steps=6"]
FLOORED += ["train.learning_rate=0.003"]


def test_a_floor_counts_its_codes_and_bounds_the_gap(recipe: Path, tmp_path: Path):
    runs.do(recipe, *FLOORED)
    first, *_, last = runs.metrics(tmp_path / "run" / "train")
    assert first["codes_at_floor"] == 0
    assert 0 < last["codes_at_floor"] < 1
    assert last["floored_gap"] > last["negative_gap"]
    assert last["floored_gap"] >= -0.05 * 16


def test_a_floor_that_is_never_reached_changes_nothing(recipe: Path, tmp_path: Path):
    found = []
    for floor in ("null", "-1000"):
        folder = tmp_path / floor
        runs.do(
            recipe,
            f"loss.gap_floor={floor}",
            f"run.dir={folder}",
            f"run.tokens_dir={tmp_path}/tokens",
        )
        found.append([line["loss"] for line in runs.metrics(folder / "train")])
    assert found[0] == pytest.approx(found[1], rel=1e-5)


def test_less_scale_where_the_prompt_decides_less(recipe: Path, tmp_path: Path):
    keys = ["loss.objective=cca_code", "loss.scale=3", "train.max_steps=12"]
    runs.do(recipe, *keys, "loss.scale_by_relevance=1", "train.learning_rate=0.01")
    lines = runs.metrics(tmp_path / "run" / "train")
    assert all(0.1 < line["mean_scale_share"] < 1 for line in lines)
    assert sum(line["loss"] for line in lines[-4:]) < sum(line["loss"] for line in lines[:4])


def test_what_was_contrasted_can_be_read(recipe: Path, tmp_path: Path):
    """16 images, 4 steps of 4: one epoch, two negative captions per image."""
    keys = ["loss.negatives=0.5 shuffle + 0.5 edit", "loss.num_negatives=2"]
    runs.do(recipe, *keys)
    folder = tmp_path / "run" / "train" / "negatives"
    names = sorted(path.name for path in folder.iterdir())
    assert names == ["epoch-0000.json", "epoch-0000.parquet"]
    replaced = json.loads((folder / "epoch-0000.json").read_text())
    assert set(replaced) == {"identical", "similar", "contained", "impossible", "repeated"}
    rows = pq.read_table(folder / "epoch-0000.parquet").to_pylist()
    assert len(rows) == 32
    assert set(rows[0]) == {"image", "prompt", "negative", "kind", "similarity"}
    assert {row["kind"] for row in rows} == {"shuffle", "edit"}
    assert all(row["prompt"] == runs.CAPTIONS[row["image"]] for row in rows)
    assert all(row["negative"] != row["prompt"] for row in rows)
    shuffled = {row["negative"] for row in rows if row["kind"] == "shuffle"}
    assert shuffled <= set(runs.CAPTIONS)


def test_captions_that_cannot_be_edited_are_named(tmp_path: Path, tiny_folder: Path):
    from mm_cca.errors import UserError

    rows = [row | {"caption": f"thing {chr(97 + i)}"} for i, row in enumerate(runs.rows_of(8))]
    data = runs.write_parquet(tmp_path / "plain.parquet", rows)
    values = runs.tiny_recipe(tmp_path, tiny_folder, data)
    del values["data"]["split_column"]
    path = runs.write_recipe(tmp_path / "recipe.yaml", values)
    with pytest.raises(UserError, match=r"8 of 8.*thing a"):
        runs.do(path, "loss.negatives=edit", stages=["prepare"])
    assert not list((tmp_path / "run" / "tokens").rglob("*.arrow")), "found after the long work"


def test_more_negatives_than_there_are_other_captions_are_counted(recipe: Path, tmp_path: Path):
    """16 captions, 2 hard candidates, 3 wanted: one of them comes twice, and is counted."""
    keys = ["loss.negatives=hard", "loss.num_negatives=3", "loss.hard_candidates=3"]
    runs.do(recipe, *keys, "loss.max_similarity=null", "train.max_steps=1")
    folder = tmp_path / "run" / "train" / "negatives"
    rows = pq.read_table(folder / "epoch-0000.parquet").to_pylist()
    by_image: dict[int, list[str]] = {}
    for row in rows:
        by_image.setdefault(row["image"], []).append(row["negative"])
    twice = sum(3 - len(set(texts)) for texts in by_image.values())
    assert json.loads((folder / "epoch-0000.json").read_text())["repeated"] == twice
