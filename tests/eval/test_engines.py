"""Arms that an engine drew: in the protocol, in comparisons of runs, and in the report."""

import json
from pathlib import Path
from typing import Any

import pytest

from mm_cca.adapters.base import UnifiedModel
from mm_cca.eval.compare import differences
from mm_cca.eval.protocol import _engine
from mm_cca.eval.score_warnings import about_engines
from tests.support import runs
from tests.support.fake_engine import fake_engine
from tests.support.training import at

VLLM = "vllm 0.32.0, bfloat16"


def arm(name: str, engine: str | None = None) -> dict[str, Any]:
    entry = {"name": name, "guidance_scale": 2.0 if "cfg" in name else 1.0}
    return entry | ({} if engine is None else {"engine": engine})


@pytest.mark.parametrize(
    ("arms", "told"),
    [
        ([arm("base"), arm("base+cfg2"), arm("cca")], {}),  # as in protocols of older runs
        ([arm("base", VLLM), arm("base+cfg2"), arm("cca", VLLM)], {"engine": VLLM}),
        ([arm("base"), arm("cca", VLLM)], {"engine": f"our own sampler and {VLLM}"}),
    ],
)
def test_the_protocol_says_what_drew_the_arms_without_guidance(
    arms: list[dict[str, Any]], told: dict[str, str]
):
    assert _engine(arms) == told


def test_a_warning_only_where_arms_were_drawn_differently():
    assert about_engines([arm("base"), arm("cca")]) == []
    assert about_engines([arm("base", VLLM), arm("cca", VLLM)]) == []
    arms = [arm("base", VLLM), arm("base+cfg2"), arm("cca", VLLM)]
    (warning,) = about_engines(arms)
    assert f"base, cca by {VLLM}; base+cfg2 by our own sampler" in warning
    assert "paired by prompt only" in warning


def test_runs_of_unlike_engines_are_not_compared():
    judges = {"judges": {"aa": {"name": "x"}}}
    ours = judges | {"sampling": {"seed": 0, "engine": []}}
    theirs = judges | {"engine": VLLM, "sampling": {"seed": 0, "engine": ["http://a"]}}
    assert differences(ours, theirs) == {"engine": ("our own sampler", VLLM)}
    older = judges | {"sampling": {"seed": 0}}
    assert differences(ours, older) == {}
    # Addresses may differ, and how many requests are in flight.
    moved = judges | {
        "engine": VLLM,
        "sampling": {"seed": 0, "engine": ["http://b"], "engine_requests": 7},
    }
    assert differences(theirs, moved) == {}


def test_a_run_of_both_from_samples_to_report(
    prepared: Path, tmp_path: Path, tiny_model: UnifiedModel
):
    recipe = at(prepared, tmp_path)
    run = tmp_path / "run"

    def tokens(text: str) -> list[int]:
        return tiny_model.text_ids([text])[0]

    runs.do(recipe, "train.max_steps=1")
    with fake_engine(served=["run/base", "run/cca"], tokenize=tokens) as engine:
        given = (f"sample.engine={engine.url}", "sample.guidance_scales=[]", "train.max_steps=1")
        runs.do(recipe, *given, stages=["sample"])
    runs.do(recipe, "train.max_steps=1", stages=["sample", "eval", "report"])
    summary = json.loads((run / "report.json").read_text())
    assert summary["protocol"]["engine"] == "vllm 0.32.0"
    drawn_by = {arm["name"]: arm.get("engine") for arm in summary["arms"]}
    assert drawn_by == {"base": "vllm 0.32.0", "base+cfg2": None, "cca": "vllm 0.32.0"}
    assert any("unlike samplers" in warning for warning in summary["warnings"])
    page = (run / "report.html").read_text()
    assert "the same prompts, but not the same random numbers, in every column" in page
    assert "unlike samplers" in page
    # The scores know what drew the arms, so images of another engine are scored again.
    settings = json.loads((run / "eval" / "stage.json").read_text())["settings"]
    assert settings["arm cca"]["engine"]["kind"] == "vllm"
