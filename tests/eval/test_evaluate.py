"""A whole ``mm-cca run`` down to the report: every arm, its scores, the verdicts, the page."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pytest
import torch

from mm_cca import cli
from mm_cca.demo import scorer_towers as demo_scorer
from mm_cca.errors import UserError
from mm_cca.eval.features.scorer import load_scorer
from tests.support import naive, runs

ARMS = [
    "base",
    "base+cfg2",
    "base+cfg3",
    "base+cfg2+neg1",
    "base+cfg3+neg1",
    "cca",
    "cca+cfg2",
    "cca+cfg2+neg1",
    "cca+dial1.5",
    "cca+dial0.5",
    "control",
    "control+cfg2",
    "control+cfg2+neg1",
]
SCORES = {
    "alignment",
    "r_at_1",
    "r_at_5",
    "frechet_distance",
    "kernel_distance",
    "precision",
    "recall",
}


def write_scorer(folder: Path) -> Path:
    """An untrained open_clip model for 16x16 pixels."""
    words = demo_scorer.scorer_tokenizer(runs.CAPTIONS, 300)
    shape = demo_scorer.ScorerShape(
        image_size=16,
        patch_size=4,
        vision_width=32,
        vision_layers=1,
        text_width=32,
        text_layers=1,
        embed_dim=16,
        vocab_size=300,
    )
    demo_scorer.save(demo_scorer.build(shape, words, 0), words, shape, folder, torch.float32)
    return folder


@pytest.fixture(scope="module")
def finished(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The recipe of a whole run."""
    folder = tmp_path_factory.mktemp("finished")
    values = runs.tiny_recipe(folder, tiny_folder, runs.two_splits(folder / "data.parquet", 20, 16))
    values["data"]["heldout_split"] = "heldout"
    values["train"] |= {"control": True, "max_steps": 3}
    values["sample"] |= {"guidance_scales": [2.0, 3.0], "control_scales": [2.0], "num_images": 8}
    values["sample"] |= {"cca_scales": 2, "dial": [1.5, 0.5], "negative_prompts": ["", "red owl"]}
    values["eval"]["scorer"] = f"local-dir:{write_scorer(folder / 'scorer')}"
    recipe = runs.write_recipe(folder / "recipe.yaml", values)
    assert cli.main(["run", str(recipe)]) == 0
    return recipe


@pytest.fixture(scope="module")
def report(finished: Path) -> dict[str, Any]:
    return json.loads((finished.parent / "run" / "report.json").read_text())


def test_report_json_has_every_arm(report: dict[str, Any]):
    assert set(report) == {
        "judges",
        "headline",
        "arms",
        "floors",
        "verdicts",
        "warnings",
        "model_name",
        "protocol",
    }
    assert [arm["name"] for arm in report["arms"]] == ARMS
    for arm in report["arms"]:
        guided = "cfg" in arm["name"]
        assert arm["guidance_scale"] == (float(arm["name"].split("cfg")[1][0]) if guided else 1.0)
        assert arm["forwards_per_image"] == (32 if guided else 16)
        negative = "red owl" if arm["name"].endswith("neg1") else ""
        assert arm["negative_prompt"] == (negative if guided else None)
        assert arm["source"] == arm["name"].split("+")[0]
        assert arm["num_images"] == 16
        assert arm["seconds_per_image"] > 0


def test_report_json_dials(report: dict[str, Any]):
    dials = {arm["name"]: arm["dial"] for arm in report["arms"]}
    trained = {name: dial for name, dial in dials.items() if name.startswith("cca")}
    assert trained == {
        "cca": 1.0,
        "cca+cfg2": 1.0,
        "cca+cfg2+neg1": 1.0,
        "cca+dial0.5": 0.5,
        "cca+dial1.5": 1.5,
    }
    assert {dials[name] for name in dials.keys() - trained.keys()} == {None}


def judge_of(report: dict[str, Any]) -> str:
    (judge,) = report["judges"]
    return judge["name"]


def scores_of(report: dict[str, Any], arm: dict[str, Any]) -> dict[str, Any]:
    """By split."""
    return arm["scores"][judge_of(report)]


def every_score(report: dict[str, Any]) -> list[dict[str, Any]]:
    found = []
    floors = [floor[judge_of(report)] for floor in report["floors"].values()]
    for scored in [*(scores_of(report, arm) for arm in report["arms"]), *floors]:
        assert set(scored) == {"train", "heldout"}
        found += scored.values()
    return found


def test_report_json_scores(report: dict[str, Any]):
    assert set(report["floors"]) == {"real", "reconstruction"}
    for scores in every_score(report):
        assert set(scores) == SCORES
        for name in ("alignment", "r_at_1", "r_at_5", "frechet_distance", "recall"):
            s = scores[name]
            assert s["low"] <= s["value"] <= s["high"]
        assert scores["r_at_1"]["value"] <= scores["r_at_5"]["value"]
        assert scores["frechet_distance"]["value"] >= 0
        assert 0 <= scores["precision"]["value"] <= 1
        assert 0 <= scores["recall"]["value"] <= 1


def test_report_json_verdicts(report: dict[str, Any]):
    best = {}
    for split in ("train", "heldout"):
        for start in ("base+", "control+", "cca+dial"):
            guided = [a for a in report["arms"] if a["name"].startswith(start)]
            top = max(guided, key=lambda a: scores_of(report, a)[split]["alignment"]["value"])
            best[split, start] = top["name"]
    expected = [
        (split, ours, rival)
        for split in ("train", "heldout")
        for ours in ("cca", best[split, "cca+dial"])
        for rival in ("base", best[split, "base+"], best[split, "control+"], "control")
    ]
    verdicts = report["verdicts"][judge_of(report)]
    assert [(v["split"], v["arm"], v["against"]) for v in verdicts] == expected
    scores = {arm["name"]: scores_of(report, arm) for arm in report["arms"]}
    judged_at_once = 0
    for verdict in verdicts:
        assert any("only 8 prompts" in caution for caution in verdict["cautions"])
        assert verdict["confidence"] == pytest.approx(1 - 0.05 / 3)
        for name in ("alignment", "r_at_5", "frechet_distance"):
            assert verdict[name]["low"] <= verdict[name]["high"]
            sides = verdict["compared"][name]
            if len(sides["arm"]) > 1 or len(sides["against"]) > 1:
                continue  # either half with its own arms
            judged_at_once += 1
            ours, theirs = (
                scores[sides[side][0]][verdict["split"]][name]["value"]
                for side in ("arm", "against")
            )
            assert verdict[name]["value"] == pytest.approx(ours - theirs, abs=1e-3)
        assert verdict["kernel_distance"]["low"] <= verdict["kernel_distance"]["high"]
    assert judged_at_once >= 12, "those against base and control without a choice"


def test_report_json_protocol(report: dict[str, Any], finished: Path):
    protocol = report["protocol"]
    assert protocol["images_per_prompt"] == 1
    assert protocol["sampling"]["temperature"] == 1.0, "what the family's default is, not null"
    ((sha256, judge),) = protocol["judges"].items()
    assert judge["name"] == judge_of(report) == f"local-dir:{finished.parent / 'scorer'}"
    assert re.fullmatch("[0-9a-f]{64}", sha256)
    assert report["judges"][0]["sha256"] == sha256
    assert protocol["num_prompts"] == {"train": 8, "heldout": 8}
    assert protocol["num_reference_images"] == {"train": 12, "heldout": 8}
    assert protocol["num_captions_ranked"] == 36
    assert protocol["sampling"]["seed"] == 0
    assert {"torch", "open-clip-torch"} <= set(protocol["versions"])


def test_eval_folder_has_one_file_per_arm(report: dict[str, Any], finished: Path):
    folder = finished.parent / "run" / "eval"
    assert json.loads((folder / "summary.json").read_text()) == report
    for arm in report["arms"]:
        told = json.loads((folder / f"{arm['name']}.json").read_text())
        assert told == arm | {"protocol": report["protocol"]}


def test_the_score_of_an_arm_by_hand(report: dict[str, Any], finished: Path):
    """From the PNG files and the manifest alone."""
    from PIL import Image

    scorer = load_scorer(
        f"local-dir:{finished.parent / 'scorer'}", None, batch_size=4, device=torch.device("cpu")
    )
    folder = finished.parent / "run" / "samples" / "cca"
    lines = [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]
    mine = [line for line in lines if line["split"] == "heldout"]
    pictures = [Image.open(folder / f"{line['index']:06d}.png").convert("RGB") for line in mine]
    images = scorer.image_features(pictures)
    texts = scorer.text_features([line["prompt"] for line in mine])
    expected = 100 * np.mean([naive.cosine(a, b) for a, b in zip(images, texts, strict=True)])
    cca = next(arm for arm in report["arms"] if arm["name"] == "cca")
    found = scores_of(report, cca)["heldout"]
    assert found["alignment"]["value"] == pytest.approx(expected, abs=1e-3)


class Page(HTMLParser):
    """Collects links and the first cell of every row of every table."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[tuple[str, str]] = []
        self.tags: list[str] = []
        self.tables: list[list[str]] = []
        self._in_first_cell = False
        self._row_is_new = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [(k, v or "") for k, v in attrs if k in ("src", "href", "xlink:href")]
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self._row_is_new = True
        elif (tag == "td" or ("scope", "row") in attrs) and self._row_is_new:
            self._row_is_new, self._in_first_cell = False, True
            self.tables[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th"):
            self._in_first_cell = False

    def handle_data(self, data: str) -> None:
        if self._in_first_cell:
            self.tables[-1][-1] += data


@pytest.fixture(scope="module")
def page(finished: Path) -> Page:
    return Page((finished.parent / "run" / "report.html").read_text(encoding="utf-8"))


def test_report_html_is_self_contained(page: Page, finished: Path):
    """Pictures that did not fit in are read by the script, from the run folder: test_report.py.

    Links of the pictures without JavaScript lead to their files there.
    """
    run = finished.parent / "run"
    assert page.links
    for key, value in page.links:
        inside = value.startswith(("data:", "#"))
        if key == "href" and not inside:
            inside = (
                re.match(r"(real|samples)/\w", value) is not None
                and (run / unquote(value)).is_file()
            )
        assert inside, f"{key}={value[:80]}"
    assert not {"iframe", "object", "embed"} & set(page.tags)
    assert page.tags.count("link") == 1, "the empty icon, or a browser would ask for one"
    assert "svg" in page.tags


def test_report_html_has_a_row_for_every_arm(page: Page, report: dict[str, Any]):
    tables = [table for table in page.tables if "real images" in table]
    assert len(tables) == 2, "one per split"
    for table in tables:
        arms = [name.removesuffix(" (best CFG)") for name in table]
        assert arms == [*ARMS, "real images", "tokenizer's reconstruction"]
        assert sum(name.endswith("(best CFG)") for name in table) == 1


def test_report_html_holds_the_prompts_of_the_grid(finished: Path):
    run = finished.parent / "run"
    lines = runs.json_lines(run / "samples" / "base" / "manifest.jsonl")
    for grid, split in zip(runs.grids_of(run / "report.html"), ("train", "heldout"), strict=True):
        assert grid["split"] == split
        assert grid["captions"] == [line["prompt"] for line in lines if line["split"] == split]
        names = [column["name"] for column in grid["columns"]]
        assert names == ["real", *ARMS]
        # real, base, its best, cca, two dials, control, its best
        assert sum(column["shown"] for column in grid["columns"]) == 8
        assert all(len(column["thumbs"]) == 8 for column in grid["columns"])


def test_labels_of_the_plot(finished: Path):
    html = (finished.parent / "run" / "report.html").read_text(encoding="utf-8")
    plots = re.findall(r"<svg.*?</svg>", html, flags=re.DOTALL)
    plots = [plot for plot in plots if not re.search("Training curve|Forest plot", plot)]
    assert len(plots) == 4
    for plot in plots:
        said = re.findall(r"<text[^>]*>([^<]*)</text>", plot)
        labels = (
            "base",
            "2",
            "3",
            "2 neg1",
            "3 neg1",
            "cca",
            "CFG 2",
            "dial 0.5",
            "dial 1.5",
            "control",
        )
        assert set(labels) <= set(said)


def test_second_run_changes_nothing(finished: Path, report: dict[str, Any]):
    run = finished.parent / "run"
    folders = [run / name for name in ("tokens", "train", "control", "samples", "eval")]
    before = [runs.mtimes_of(folder) for folder in folders]
    html = (run / "report.html").read_bytes()
    assert cli.main(["run", str(finished)]) == 0
    assert [runs.mtimes_of(folder) for folder in folders] == before
    assert (run / "report.html").read_bytes() == html
    assert json.loads((run / "report.json").read_text()) == report


def test_other_scorer_is_refused_in_the_same_folder(finished: Path):
    with pytest.raises(UserError, match=r"eval\.bootstrap_samples: was 100, is now 200"):
        runs.do(finished, "eval.bootstrap_samples=200", stages=["eval"])


@pytest.mark.parametrize(("stage", "told"), [("eval", "mm-cca sample"), ("report", "mm-cca eval")])
def test_stage_before_its_time(finished: Path, tmp_path: Path, stage: str, told: str):
    with pytest.raises(UserError, match=told):
        runs.do(finished, f"run.dir={tmp_path / 'new'}", stages=[stage])


def test_unknown_scorer():
    with pytest.raises(UserError, match=r"eval\.scorer 'no-such-model'"):
        load_scorer("no-such-model", None, batch_size=2, device=torch.device("cpu"))
    with pytest.raises(UserError, match="can't be loaded"):
        load_scorer("local-dir:/nowhere", None, batch_size=2, device=torch.device("cpu"))
