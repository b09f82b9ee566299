"""A sweep: its points, what they share, diverged points, and extending it."""

import contextlib
import io
import json
from pathlib import Path

import pytest
from accelerate.state import AcceleratorState

from mm_cca import cli
from mm_cca.config.keys import Key
from mm_cca.config.sweep_grid import plan_sweep, points_of
from mm_cca.errors import UserError
from mm_cca.eval.report.sweep_seeds import over_seeds, pooled_arms
from tests.support import runs
from tests.support.browsing import WIDTHS, Open, assert_readable


@pytest.fixture
def recipe(tmp_path: Path, tiny_folder: Path) -> Path:
    values = runs.tiny_recipe(tmp_path, tiny_folder, runs.two_splits(tmp_path / "data.parquet"))
    values["train"].update(max_steps=2, reference="cached")
    return runs.write_recipe(tmp_path / "recipe.yaml", values)


@pytest.fixture
def any_rate(monkeypatch: pytest.MonkeyPatch):
    """Allow learning rates that diverge within two steps, which recipes may not have."""
    monkeypatch.setattr(Key, "has", lambda self, value: True)


def test_points_are_all_combinations_in_the_order_of_the_lists():
    words = ["loss.beta=[0.1,0.02]", "train.seed=3", "loss.lambda_=[1,10]"]
    common, points = points_of("x.yaml", words)
    assert common == ["train.seed=3"]
    assert [point.name for point in points] == [
        "beta=0.1,lambda_=1",
        "beta=0.1,lambda_=10",
        "beta=0.02,lambda_=1",
        "beta=0.02,lambda_=10",
    ]
    assert points[1].overrides == ["loss.beta=0.1", "loss.lambda_=10"]


def test_a_key_that_takes_a_list_is_not_swept():
    common, points = points_of("x", ["sample.guidance_scales=[2,3]", "loss.objective=[cca, nll]"])
    assert common == ["sample.guidance_scales=[2,3]"]
    assert [point.name for point in points] == ["objective=cca", "objective=nll"]


def test_names_are_fit_for_folders():
    _, points = points_of("x", ["loss.objective=['cca + 0.1 nll', 'a/b']"])
    assert [point.name for point in points] == ["objective=cca_+_0.1_nll", "objective=a_b"]


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["loss.beta=0.1"], "nothing is swept"),
        (["data.variants=[1,2]"], "data.variants can't be swept"),
        (["loss.beta=[]"], "is an empty list"),
        (["loss.beta=[1,1]"], "the point beta=1 twice"),
        (["loss.beta"], "is not an override"),
    ],
)
def test_invalid_sweeps(words: list[str], problem: str):
    with pytest.raises(UserError, match=problem):
        points_of("x.yaml", words)


def test_a_wrong_value_is_found_before_any_work(recipe: Path, tmp_path: Path):
    with pytest.raises(UserError, match=r"loss\.beta is -1"):
        plan_sweep(str(recipe), ["loss.beta=[0.1,-1]"])
    with pytest.raises(UserError, match=r"unknown key loss\.betta"):
        plan_sweep(str(recipe), ["loss.betta=[0.1,1]"])
    assert not (tmp_path / "run").exists()


def test_scores_that_the_page_shows_must_be_there(recipe: Path):
    words = ["loss.beta=[0.1,0.2]", "run.stages=[sample,eval]", "eval.metrics=[alignment,r_at_5]"]
    with pytest.raises(UserError, match="lacks r_at_1, frechet_distance, recall"):
        plan_sweep(str(recipe), words)


def test_points_share_the_reference_unless_they_change_it(recipe: Path, tmp_path: Path):
    sweep = plan_sweep(str(recipe), ["loss.beta=[0.1,0.2]"])
    shared = {point.run.reference_dir for point in sweep.points.values()}
    assert shared == {str(tmp_path / "run" / "reference")}
    sweep = plan_sweep(str(recipe), ["train.seed=[0,1]"])
    assert len({point.run.reference_dir for point in sweep.points.values()}) == 2


@pytest.mark.usefixtures("any_rate")
def test_a_sweep_and_a_larger_one(recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """A diverged point is skipped; a second call runs only new points."""
    keys = ["sample.dial=0.5", "train.control=true", "sample.control_scales=2"]
    axes = ["loss.lambda_=[1,3]", "train.learning_rate=[0.001,1e30]"]
    assert cli.main(["sweep", str(recipe), *axes, *keys]) == 0
    output = capsys.readouterr()
    root = tmp_path / "run"
    summary = json.loads((root / "sweep.json").read_text())
    names = [arm["name"] for arm in summary["arms"]]
    assert names == [
        "base",
        "base+cfg2",
        "control",
        "control+cfg2",
        "lambda_=1,learning_rate=0.001",
        "lambda_=1,learning_rate=0.001+dial0.5",
        "lambda_=3,learning_rate=0.001",
        "lambda_=3,learning_rate=0.001+dial0.5",
    ]
    assert set(summary["diverged"]) == {
        "lambda_=1,learning_rate=1e30",
        "lambda_=3,learning_rate=1e30",
    }
    assert "diverged; the sweep continues" in output.err
    assert "diverged: step 1" in output.out
    points = [arm for arm in summary["arms"] if "values" in arm]
    assert points[0]["values"] == {"loss.lambda_": 1, "train.learning_rate": 0.001}
    assert points[0]["signals"]["negative_gap"] != points[2]["signals"]["negative_gap"]
    assert points[0]["scores"]["emoji-clip"] != points[2]["scores"]["emoji-clip"]
    assert summary["best"]["emoji-clip"]["train"]["base"] == "base+cfg2"
    assert summary["best"]["emoji-clip"]["train"]["point"] in names
    page = (root / "sweep.html").read_text()
    assert page.count("<svg") == 3  # the swept key with two values has a plot of its own
    assert [(v["point"], v["rival"]) for v in summary["verdicts"]] == [
        ("lambda_=1,learning_rate=0.001", "base+cfg2"),
        ("lambda_=3,learning_rate=0.001", "base+cfg2"),
    ]
    table = page[page.index('class="sweep-verdicts"') :]
    table = table[: table.index("</table>")]
    assert table.count("<td>base+cfg2</td>") == 2  # a row for each point
    assert table.count('<b class="found ') == 2  # alignment alone: too few prompts for the others
    # Six prompts by the base, the guided base and two points.
    assert page.count("data:image/webp;base64,") == 6 * 4
    assert "diverged: step 1" in page

    # One reference for all; nothing of a point lies outside its folder.
    assert not (root / "points" / "lambda_=1,learning_rate=0.001" / "reference").exists()
    kept = runs.mtimes_of(root / "points" / "lambda_=1,learning_rate=0.001" / "samples")
    base = runs.mtimes_of(root / "base" / "samples")
    # The first value may change too: base and control do not depend on it.
    axes = ["loss.lambda_=[5,1]", "train.learning_rate=[0.001]"]
    assert cli.main(["sweep", str(recipe), *axes, *keys]) == 0
    summary = json.loads((root / "sweep.json").read_text())
    assert [a["name"] for a in summary["arms"] if "values" in a and a["dial"] == 1.0] == [
        "lambda_=5,learning_rate=0.001",
        "lambda_=1,learning_rate=0.001",
    ]
    assert runs.mtimes_of(root / "points" / "lambda_=1,learning_rate=0.001" / "samples") == kept
    assert runs.mtimes_of(root / "base" / "samples") == base


@pytest.mark.usefixtures("any_rate")
def test_a_point_that_diverged_is_tried_again_when_the_recipe_changed(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    keys = ["loss.lambda_=[1]", "sample.num_images=4"]
    marker_file = tmp_path / "run" / "points" / "lambda_=1" / "diverged.json"
    assert cli.main(["sweep", str(recipe), *keys, "train.learning_rate=1e30"]) == 0
    assert marker_file.exists()
    # Keys that do not decide the training change nothing.
    same = ["train.learning_rate=1e30", "train.save_every=3", "eval.grid_prompts=2"]
    assert cli.main(["sweep", str(recipe), *keys, *same]) == 0
    assert f"skipped, as it diverged; delete {marker_file.parent}" in capsys.readouterr().err
    assert cli.main(["sweep", str(recipe), *keys, "train.learning_rate=0.001"]) == 0
    assert not marker_file.exists()
    assert json.loads((tmp_path / "run" / "sweep.json").read_text())["diverged"] == {}


def test_points_of_different_precision(recipe: Path, tmp_path: Path):
    """A process has one precision for accelerate, which also sees it when scores are tracked."""
    keys = ["train.trackers=[tensorboard]", "train.reference=copy"]
    assert cli.main(["sweep", str(recipe), "train.mixed_precision=[bf16,no]", *keys]) == 0
    losses = {}
    for precision in ("bf16", "no"):
        point = tmp_path / "run" / "points" / f"mixed_precision={precision}"
        assert list((point / "eval").rglob("events.out.tfevents*"))
        AcceleratorState._reset_state()
        alone = f"run.dir={tmp_path / precision}"
        runs.do(recipe, f"train.mixed_precision={precision}", "train.reference=copy", alone)
        losses[precision] = runs.metrics(tmp_path / precision / "train")
        assert runs.metrics(point / "train") == losses[precision]
    assert losses["bf16"] != losses["no"]


def test_a_named_reference_folder_is_split_where_points_differ(recipe: Path, tmp_path: Path):
    named = f"run.reference_dir={tmp_path / 'ref'}"
    sweep = plan_sweep(str(recipe), ["train.seed=[0,1]", named])
    folders = [point.run.reference_dir for point in sweep.points.values()]
    assert folders == [str(tmp_path / "ref" / "seed=0"), str(tmp_path / "ref" / "seed=1")]
    sweep = plan_sweep(str(recipe), ["loss.beta=[0.1,0.2]", named])
    assert {p.run.reference_dir for p in sweep.points.values()} == {str(tmp_path / "ref")}


def test_a_run_without_the_base(recipe: Path, tmp_path: Path):
    """The points of a sweep are such runs; one by hand may be too."""
    runs.do(recipe, "run.sources=[cca]", stages=["prepare", "train", "sample", "eval", "report"])
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert [arm["name"] for arm in report["arms"]] == ["cca"]
    assert report["floors"] == {}
    assert report["verdicts"] == {"emoji-clip": []}


def _arm(name: str, values: dict, alignment: float, gap: float) -> dict:
    return {
        "name": name,
        "values": values,
        "forwards_per_image": 64,
        "scores": {"train": {"alignment": {"value": alignment}}},
        "signals": {"positive_gap": gap},
    }


def test_means_over_seeds_by_hand():
    """A point of one seed is no mean; base arms have no values."""
    arms = [
        {"name": "base", "scores": {}},
        _arm("beta=1,seed=0", {"loss.beta": 1, "train.seed": 0}, 70.0, -4.0),
        _arm("beta=1,seed=1", {"loss.beta": 1, "train.seed": 1}, 73.0, -8.0),
        _arm("beta=2,seed=1", {"loss.beta": 2, "train.seed": 1}, 60.0, -1.0),
    ]
    (found,) = over_seeds(arms)
    assert found["name"] == "beta=1"
    assert found["seeds"] == [0, 1]
    assert found["scores"]["train"]["alignment"] == {"value": 71.5, "low": 70.0, "high": 73.0}
    assert found["signals"] == {"positive_gap": -6.0}


def test_seeds_alone_are_called_cca_with_whatever_else_an_arm_has():
    arms = [
        _arm(f"seed={seed}{more}", {"train.seed": seed}, 1.0, 0.0)
        for more in ("", "+dial0.5")
        for seed in (0, 1)
    ]
    assert [point["name"] for point in over_seeds(arms)] == ["cca", "cca+dial0.5"]


def test_seeds_are_one_point_of_the_plots():
    base = {"name": "base", "scores": {}}
    seeds = [
        _arm(f"beta=1,seed={s}", {"loss.beta": 1, "train.seed": s}, 70.0 + s, 0.0) for s in (0, 2)
    ]
    alone = _arm("beta=2,seed=0", {"loss.beta": 2, "train.seed": 0}, 60.0, 0.0)
    pooled = pooled_arms([base, *seeds, alone])
    assert [arm["name"] for arm in pooled] == ["base", "beta=1", "beta=2,seed=0"]
    assert pooled[1]["values"] == {"loss.beta": 1}
    assert pooled[1]["scores"]["train"]["alignment"] == {"value": 71.0, "low": 70.0, "high": 72.0}


@pytest.fixture(scope="module")
def two_seeds(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of a sweep over seeds, and what was printed."""
    folder, printed = tmp_path_factory.mktemp("seeds"), io.StringIO()
    values = runs.tiny_recipe(folder, tiny_folder, runs.two_splits(folder / "data.parquet"))
    values["train"].update(max_steps=2, reference="cached")
    file = runs.write_recipe(folder / "recipe.yaml", values)
    with contextlib.redirect_stdout(printed):
        assert cli.main(["sweep", str(file), "train.seed=[0,1]", "sample.num_images=4"]) == 0
    return folder / "run", printed.getvalue()


def test_a_sweep_over_seeds_shows_their_mean(two_seeds: tuple[Path, str]):
    folder, printed = two_seeds
    assert "mean over seeds" in printed
    summary = json.loads((folder / "sweep.json").read_text())
    (point,) = summary["over_seeds"]["emoji-clip"]
    values = [
        arm["scores"]["emoji-clip"]["train"]["alignment"]["value"]
        for arm in summary["arms"]
        if "values" in arm
    ]
    assert point["scores"]["train"]["alignment"]["value"] == pytest.approx(sum(values) / 2)
    (verdict,) = summary["verdicts"]  # of distances on four prompts there is none
    assert (verdict["point"], verdict["seeds"], verdict["rival"]) == ("cca", 2, "base+cfg2")
    page = (folder / "sweep.html").read_text()
    assert "Means over seeds" in page
    assert "No verdict in FD, KD, recall: that needs 8 prompts" in page
    others = page.split("Pictures of the other seeds</summary>")[1].split("</details>")[0]
    assert "seed=1</th>" in others
    assert others.count("data:image/webp") == 4


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_on_a_phone_the_page_fits(open_page: Open, two_seeds: tuple[Path, str], scheme: str):
    page = open_page(two_seeds[0] / "sweep.html", width=390, scheme=scheme)
    assert page.evaluate(WIDTHS) == [390, 390]
    pictures = page.locator(".pairs img")
    assert pictures.evaluate_all("all => all.every((image) => image.naturalWidth === 16)")
    assert_readable(page, "h1", ".muted", ".sweep-verdicts td", ".pairs th", "td small")
