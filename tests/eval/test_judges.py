"""A run with several judges and the reference of reconstructions, and what is refused."""

import gc
import json
import shutil
import weakref
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

from mm_cca import load_adapter
from mm_cca.config.shipped import shipped
from mm_cca.data.token_cache import open_cache
from mm_cca.errors import UserError
from mm_cca.eval import evaluate
from mm_cca.eval.features.reconstructions import Reconstructor
from mm_cca.eval.features.scorer import load_scorer
from mm_cca.eval.metrics.distances import frechet_distance
from mm_cca.runs.folder import RunFolder
from mm_cca.sampling.prompts import reference_rows
from tests.support import runs, towers
from tests.support.closeness import report_difference

SPLITS = ("train", "heldout")


def copied(reported: Path, folder: Path) -> list[str]:
    """Overrides that name a copy of the run without its scores, with tokens of its own."""
    left_out = shutil.ignore_patterns("eval", "report.*", "real")
    shutil.copytree(reported.parent / "run", folder / "run", ignore=left_out)
    shutil.copytree(reported.parent / "tokens", folder / "tokens")
    return [f"run.dir={folder / 'run'}", f"run.tokens_dir={folder / 'tokens'}"]


def summary_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "run" / "eval" / "summary.json").read_text())


@pytest.fixture(scope="module")
def panel(reported: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scores and report of three judges; fails if two are in memory at once."""
    folder = tmp_path_factory.mktemp("panel")
    clip, siglip = (towers.write_hf(folder / kind, kind) for kind in ("clip", "siglip"))
    loaded: list[weakref.ref[Any]] = []

    def load(*args: Any, **keys: Any) -> Any:
        gc.collect()
        assert not [scorer for scorer in loaded if scorer() is not None]
        scorer = load_scorer(*args, **keys)
        loaded.append(weakref.ref(scorer))
        return scorer

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluate, "load_scorer", load)
        keys = [f"eval.scorer=[emoji-clip,hf:{clip},hf:{siglip}]", "eval.reference=reconstruction"]
        runs.do(reported, *copied(reported, folder), *keys, stages=["eval", "report"])
    assert len(loaded) == 6, "each is loaded once to be checked, and once to judge"
    return folder


def names_of(folder: Path) -> list[str]:
    return ["emoji-clip", f"hf:{folder / 'clip'}", f"hf:{folder / 'siglip'}"]


def test_every_judge_has_scores_floors_differences_and_numbers(panel: Path):
    summary, names = summary_of(panel), names_of(panel)
    assert [judge["name"] for judge in summary["judges"]] == names
    assert list(summary["verdicts"]) == names
    values = set()
    for scored in [*(arm["scores"] for arm in summary["arms"]), *summary["floors"].values()]:
        assert list(scored) == names
        for by_split in scored.values():
            assert tuple(by_split) == SPLITS
            values.add(by_split["train"]["alignment"]["value"])
    assert len(values) == 3 * (len(summary["arms"]) + 2), "no judge repeats another"
    numbers = json.loads((panel / "run" / "eval" / "per_prompt.json").read_text())
    for split in SPLITS:
        assert list(numbers[split]["judges"]) == names
        for judge, arms in numbers[split]["judges"].items():
            for arm in summary["arms"]:
                found = arms[arm["name"]]["alignment"]
                mean = arm["scores"][judge][split]["alignment"]["value"]
                assert sum(found) / len(found) == pytest.approx(mean, abs=1e-3)
    assert len(summary["protocol"]["judges"]) == 3
    files = {path.name for path in (panel / "run" / "eval" / "reference").iterdir()}
    assert files >= {f"{split}.scorer{n}.npz" for split in SPLITS for n in ("", "2", "3")}


def test_one_judge_among_several_gives_the_numbers_of_one(panel: Path, reported: Path):
    alone = summary_of(reported.parent)
    together = summary_of(panel)
    for one, other in zip(alone["arms"], together["arms"], strict=True):
        for split in SPLITS:
            theirs = other["scores"]["emoji-clip"][split]
            assert {name: theirs[name] for name in one["scores"]["emoji-clip"][split]} == one[
                "scores"
            ]["emoji-clip"][split]
    for floor in ("real", "reconstruction"):
        for split, scores in alone["floors"][floor]["emoji-clip"].items():
            theirs = together["floors"][floor]["emoji-clip"][split]
            assert {name: theirs[name] for name in scores} == scores


def test_the_examination_is_in_the_summary(panel: Path):
    for judge in summary_of(panel)["judges"]:
        assert set(judge["examination"]) == set(SPLITS)
        assert judge["examined_in"] is None
        assert judge["may_judge"], "eval.judge_r_at_5 is null"
        for figures in judge["examination"].values():
            assert figures["num_images"] == 8
            assert figures["other_style"] is not None, "all captions have a colour"


def test_the_headline_is_the_least_favourable_of_all_judges(panel: Path):
    summary = summary_of(panel)
    assert summary["headline"]
    order = ("behind", "level", "ahead")
    for entry in summary["headline"]:
        standings = entry["standings"]
        assert sorted(standings) == sorted(names_of(panel))
        assert entry["standing"] == min(standings.values(), key=order.index)
        assert entry["shared_by"] == list(standings.values()).count(entry["standing"])
    metrics = {entry["metric"] for entry in summary["headline"]}
    assert "alignment" in metrics
    assert "frechet_distance" not in metrics, "reconstructions take its place"


def test_the_distance_to_reconstructions_by_hand(panel: Path, reported: Path, tiny_folder: Path):
    """Codes of the rows that gave no prompt, decoded by the adapter, against the arm's files."""
    recipe = runs.load_recipe(
        reported, f"run.dir={panel / 'run'}", f"run.tokens_dir={panel / 'tokens'}"
    )
    model = load_adapter("emu3", str(tiny_folder))
    rows = torch.from_numpy(reference_rows(recipe, RunFolder.of(recipe), "train"))
    codes = open_cache(panel / "tokens" / "train", 1).codes(rows, torch.zeros_like(rows))
    with torch.no_grad():
        pixels = model.decode(codes, (4, 4))
    scorer = load_scorer("emoji-clip", None, batch_size=8, device=torch.device("cpu"))
    theirs = scorer.image_features(Image.fromarray(x.permute(1, 2, 0).numpy()) for x in pixels)
    lines = runs.json_lines(panel / "run" / "samples" / "cca" / "manifest.jsonl")
    files = [f"{line['index']:06d}.png" for line in lines if line["split"] == "train"]
    folder = panel / "run" / "samples" / "cca"
    ours = scorer.image_features(Image.open(folder / file).convert("RGB") for file in files)
    expected = frechet_distance(ours, theirs)
    summary = summary_of(panel)
    cca = next(arm for arm in summary["arms"] if arm["name"] == "cca")["scores"]["emoji-clip"]
    found = cca["train"]["frechet_distance_reconstruction"]["value"]
    report_difference("FD (rec)", found, expected)
    assert found == pytest.approx(expected, rel=1e-4)
    floor = summary["floors"]["reconstruction"]["emoji-clip"]["train"]
    assert floor["frechet_distance_reconstruction"]["value"] < floor["frechet_distance"]["value"]
    reference = summary["protocol"]["reconstruction"]["train"]
    assert reference["images"] == "reconstructed train"
    assert reference["sha256"] != summary["protocol"]["reference"]["train"]["sha256"]


def test_report_and_terminal_show_every_judge(
    panel: Path, capsys: pytest.CaptureFixture[str], reported: Path
):
    page = (panel / "run" / "report.html").read_text()
    for name in names_of(panel):
        assert f"<h3>{name}</h3>" in page
        assert f'<th scope="row">{name}</th>' in page
    assert "FD (rec)" in page
    assert "of 3 judges (least favourable: " in page
    assert "images / s" not in page
    keys = [f"run.dir={panel / 'run'}", f"run.tokens_dir={panel / 'tokens'}"]
    runs.do(reported, *keys, stages=["report"])
    told = " ".join(capsys.readouterr().out.split())
    for name in names_of(panel):
        assert f"judge {name}: may judge" in told
    assert "of 3 judges (least favourable: " in told
    assert "img/s" not in told


def test_no_judge_that_fails_has_a_say(
    reported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    keys = [*copied(reported, tmp_path), "eval.judge_r_at_5=0.8"]
    runs.do(reported, *keys, stages=["eval", "report"])
    summary = summary_of(tmp_path)
    (judge,) = summary["judges"]
    assert not judge["may_judge"]
    assert any("eval.judge_r_at_5" in reason for reason in judge["reasons"])
    assert summary["headline"] == []
    assert summary["verdicts"]["emoji-clip"], "the differences are still there"
    told = capsys.readouterr().out
    assert "No verdict: none of the judges may judge (emoji-clip)" in told
    assert "judge emoji-clip: may not judge: train: " in told
    page = (tmp_path / "run" / "report.html").read_text()
    assert "No verdict: none of the judges may judge (emoji-clip)" in page
    assert "may not judge" in page
    assert ' lead"' not in page


def test_one_network_is_not_two_judges(reported: Path, tmp_path: Path):
    scorers = f"eval.scorer=[emoji-clip,'local-dir:{shipped('emoji-clip')}']"
    with pytest.raises(UserError, match=r"emoji-clip and local-dir:.* which have the same weights"):
        runs.do(reported, *copied(reported, tmp_path), scorers, stages=["eval"])


def prompted(reported: Path, tmp_path: Path, *overrides: str) -> dict[str, Any]:
    """The base on four prompts of a file, which have no real images."""
    file = tmp_path / "prompts.txt"
    file.write_text("red owl\ngreen tree\nblue hand\npink car\n")
    keys = ["run.sources=[base]", f"run.dir={tmp_path / 'run'}", f"sample.prompts={file}"]
    keys += ["eval.metrics=[alignment]", "sample.guidance_scales=[]", *overrides]
    runs.do(reported, *keys, stages=["sample", "eval"])
    return summary_of(tmp_path)


def test_prompts_of_a_file_are_scored_but_not_judged(reported: Path, tmp_path: Path):
    summary = prompted(reported, tmp_path, "eval.judge_r_at_5=0.8")
    assert summary["arms"][0]["scores"]["emoji-clip"]["prompts"]["alignment"]["value"]
    (judge,) = summary["judges"]
    assert judge["examination"] is None
    (reason,) = judge["reasons"]
    assert "was never examined: prompts from a file have no real images" in reason
    assert "Set eval.examined to eval/summary.json of a run" in reason


def test_the_examination_of_an_earlier_run(reported: Path, tmp_path: Path):
    path = reported.parent / "run" / "eval" / "summary.json"
    keys = ["eval.judge_r_at_5=0.8", f"eval.examined={path}"]
    summary = prompted(reported, tmp_path, *keys)
    (judge,) = summary["judges"]
    assert judge["examined_in"] == str(path)
    assert judge["examination"] == summary_of(reported.parent)["judges"][0]["examination"]
    assert not judge["may_judge"]
    clip = towers.write_hf(tmp_path / "clip", "clip")
    (tmp_path / "other").mkdir()
    with pytest.raises(UserError, match=r"was never examined in eval\.examined"):
        prompted(reported, tmp_path / "other", *keys, f"eval.scorer=hf:{clip}")


def test_a_run_without_the_base_examines_no_judge(reported: Path, tmp_path: Path):
    keys = [*copied(reported, tmp_path), "run.sources=[cca]", "eval.judge_r_at_5=0.8"]
    runs.do(reported, *keys, stages=["eval"])
    (judge,) = summary_of(tmp_path)["judges"]
    assert "run.sources lacks the base" in judge["reasons"][0]
    assert "add base to run.sources" in judge["reasons"][0]


@pytest.mark.parametrize(
    ("overrides", "problem"),
    [
        (["eval.scorer=[]"], "eval.scorer is .*; allowed: one or more models"),
        (["eval.scorer=[emoji-clip,emoji-clip]"], "all values different"),
        (["eval.judge_r_at_5=1.5"], "0 to 1"),
        (["eval.examined=nowhere.json"], "eval.examined is 'nowhere.json'; allowed: null, or"),
        (
            ["eval.reference=reconstruction", "sample.prompts=attributes"],
            "eval.reference is 'reconstruction'; allowed: only with sample.prompts=null",
        ),
        (["eval.reference=[a,b]"], "reconstruction and one set of real images"),
        (
            ["eval.metrics=[alignment,frechet_distance_reconstruction]"],
            "allowed: only with eval.reference=reconstruction",
        ),
    ],
)
def test_values_that_are_refused(tmp_path: Path, overrides: list[str], problem: str):
    with pytest.raises(UserError, match=problem):
        runs.load_recipe(runs.unread_recipe(tmp_path), *overrides)


def test_one_judge_as_a_text_or_as_a_list(tmp_path: Path):
    path = runs.unread_recipe(tmp_path)
    assert runs.load_recipe(path).eval.scorer == ["emoji-clip"]
    assert runs.load_recipe(path, "eval.scorer=a").eval.scorer == ["a"]
    keys = ["eval.scorer=[emoji-clip,ViT-B-32,hf:x]", "eval.scorer_pretrained=openai"]
    recipe = runs.load_recipe(path, *keys, "eval.reference=[folder,reconstruction]")
    tags = [recipe.eval.pretrained_of(name) for name in recipe.eval.scorer]
    assert tags == [None, "openai", None]
    assert recipe.eval.real_reference == "folder"
    assert recipe.eval.has_reconstruction_reference
    assert runs.load_recipe(path, "eval.reference=real").eval.real_reference is None


def test_a_model_without_a_decoder_is_told(reported: Path):
    recipe = runs.load_recipe(reported)
    reconstructor = Reconstructor(recipe, RunFolder.of(recipe))

    def decode(codes: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
        raise NotImplementedError

    reconstructor.__dict__["_model"] = SimpleNamespace(decode=decode, pixels_per_code=4)
    with pytest.raises(
        UserError, match=r"adapter 'emu3' can't decode images .* reconstruction out"
    ):
        reconstructor.images("train", [0]).open([0])
