"""After plain fine-tuning (nll) nothing is called CCA, and the guided models are compared first."""

import json
import re
from pathlib import Path

import pytest

from mm_cca.cli.commands.demo_session import DemoSession
from mm_cca.cli.commands.export import export_model
from mm_cca.config.mixtures import LossTerms
from mm_cca.config.schema import LossConfig
from mm_cca.eval.contestants import candidates_of
from mm_cca.eval.report.gallery import columns_of, ours_of
from mm_cca.eval.report.wording import in_words
from mm_cca.sampling.arms import Arm
from tests.support import runs
from tests.support.training import at

KEYS = [
    "loss.objective=nll",
    "data.heldout_split=null",
    "train.max_steps=2",
    "sample.guidance_scales=[2, 3]",
    "sample.cca_scales=[2, 3]",
]
NAME = "the fine-tuned model"


@pytest.fixture(scope="module")
def finetuned(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finetuned")
    runs.do(at(prepared, folder), *KEYS, stages=["prepare", "train", "sample", "eval", "report"])
    return folder / "run"


@pytest.mark.parametrize(
    ("objective", "name", "finetuned"),
    [
        ("nll", NAME, True),
        ("2 nll", NAME, True),
        ("cca + 0.1 nll", "CCA", False),
        ("cca_code + gft", "CCA", False),
        ("dpo", NAME, False),
        ("ddo + nll", NAME, False),
    ],
)
def test_what_the_trained_model_is_called(objective: str, name: str, finetuned: bool):
    terms = LossTerms.of(LossConfig(objective=objective))
    assert (terms.model_name, terms.is_finetuning) == (name, finetuned)


def test_an_arm_in_words():
    assert in_words("cca", NAME) == "the fine-tuned model without guidance"
    assert in_words("cca+cfg3", NAME) == "the fine-tuned model with cfg3"
    assert in_words("base", NAME) == "the base without guidance"


def test_guided_arms_stand_for_the_model_only_after_plain_fine_tuning():
    arms = [Arm("base", 1.0), Arm("cca", 1.0), Arm("cca", 2.0), Arm("cca", 3.0)]
    kinds = {each.kind: each.members for each in candidates_of(arms, finetuned=True)}
    assert kinds == {"guided cca": ("cca+cfg2", "cca+cfg3"), "cca": ("cca",)}
    assert [each.kind for each in candidates_of(arms)] == ["cca"]


def test_the_page_and_the_summary(finetuned: Path):
    report = json.loads((finetuned / "report.json").read_text())
    assert report["model_name"] == NAME
    (verdicts,) = report["verdicts"].values()
    pairs = [(entry["ours"], entry["rival"]) for entry in verdicts]
    assert pairs[:2] == [("guided cca", "base"), ("guided cca", "guided base")]
    page = (finetuned / "report.html").read_text()
    # The protocol is shared with runs of CCA, which it must stay comparable with.
    body = re.sub(r"<pre.*?</pre>", "", page.split("<script")[0], flags=re.DOTALL)
    assert "CCA" not in body
    assert "<h1>Fine-tuning: before and after</h1>" in body
    assert "The model fine-tuned with nll (arms cca) against its base" in body
    assert "The fine-tuned model minus the other arm" in body
    assert (
        "The fine-tuned model, no guidance" in body or "the fine-tuned model, no guidance" in body
    )
    assert "Arm cca: objective nll, 2 steps of 4 pairs" in body
    (first, *_) = re.findall(r"<span>([^<]*with cfg[^<]*)</span>", body)
    assert "he fine-tuned model with cfg" in first
    assert "base+cfg" in first
    (grid,) = runs.grids_of(finetuned / "report.html")
    assert (grid["name"], grid["ours"][:7]) == (NAME, "cca+cfg")
    assert {column["name"]: column["shown"] for column in grid["columns"]}[grid["ours"]]


def test_a_page_of_cca_is_as_before(reported: Path):
    page = (reported.parent / "run" / "report.html").read_text()
    assert "<h1>Sampling without guidance</h1>" in page
    assert "Condition Contrastive Alignment (CCA) against classifier-free guidance" in page
    assert "fine-tuned" not in page.split("<script")[0]
    for grid in runs.grids_of(reported.parent / "run" / "report.html"):
        assert (grid["name"], grid["ours"]) == ("CCA", "cca")


def test_the_grid_shows_the_best_guided_arm_only_after_fine_tuning():
    def arm(name: str, value: float) -> dict[str, object]:
        source, _, scale = name.partition("+cfg")
        scores = {"train": {"alignment": {"value": value}}}
        return {
            "name": name,
            "source": source,
            "guidance_scale": float(scale or 1),
            "scores": scores,
        }

    arms = [arm("base", 1), arm("cca", 2), arm("cca+cfg2", 4), arm("cca+cfg3", 3)]
    assert ours_of(arms, "train", finetuned=True) == "cca+cfg2"
    assert ours_of(arms, "train", finetuned=False) == "cca"
    assert ours_of(arms[:2], "train", finetuned=True) == "cca"
    shown = [c.name for c in columns_of(arms, "train", finetuned=True) if c.shown]
    assert shown == ["base", "cca", "cca+cfg2"]
    assert [c.name for c in columns_of(arms, "train") if c.shown] == ["base", "cca"]


def test_card_and_demo_sample_it_with_guidance(finetuned: Path, tmp_path: Path):
    export_model(finetuned, tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "`nll` (plain fine-tuning). Sample it with guidance, as the base." in card
    assert "CCA" not in card
    images = DemoSession(finetuned).draw("red owl", seed=0, scale=2.0, dial=1.0)
    assert [image.name for image in images] == ["base", "base+cfg2", "cca+cfg2"]
