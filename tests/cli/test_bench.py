"""``mm-cca bench``: every arm in turns, after a warm-up, relative to the base."""

from pathlib import Path

import pytest

from mm_cca import cli
from mm_cca.cli.commands.bench import Timing, bench_run, time_in_turns, timed_arms
from mm_cca.errors import UserError
from mm_cca.sampling.arms import Arm
from tests.support import runs


def test_turns_by_hand():
    """A clock that only drawing moves; the first image of all is ten times as slow."""
    base, guided = Arm("base", 1.0), Arm("base", 3.0)
    now, drawn = 0.0, []

    def draw(arm: Arm) -> int:
        nonlocal now
        now += (6.0 if arm.is_guided else 4.0) * (10 if not drawn else 1)
        drawn.append(arm.name)
        return 32 if arm.is_guided else 16

    timings = time_in_turns([base, guided], draw, 2, 3, clock=lambda: now)
    warm_up, *turns = (drawn[i : i + 2] for i in range(0, len(drawn), 2))
    assert warm_up == ["base", "base+cfg3"]
    assert turns == [["base", "base+cfg3"], ["base+cfg3", "base"], ["base", "base+cfg3"]]
    assert timings["base"] == Timing(16, [2.0] * 3)
    assert timings["base+cfg3"] == Timing(32, [3.0] * 3)
    assert timings["base+cfg3"].ratios(timings["base"]) == [1.5] * 3


def test_arms_of_the_same_cost_are_timed_once(tmp_path: Path):
    recipe = runs.load_recipe(
        runs.unread_recipe(tmp_path),
        "sample.guidance_scales=[2, 3]",
        "sample.dial=0.5",
        "sample.temperatures=[0.9]",
    )
    assert [arm.name for arm in timed_arms(recipe)] == ["base", "base+cfg2", "cca"]


def test_a_table_of_a_run(reported: Path, capsys: pytest.CaptureFixture[str]):
    run = reported.parent / "run"
    before = runs.mtimes_of(run)
    assert cli.main(["bench", str(run), "--images", "2", "--rounds", "2"]) == 0
    assert runs.mtimes_of(run) == before
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    cells = {row[0]: row[1:] for row in rows if row and row[0] in ("base", "base+cfg2", "cca")}
    assert {name: row[0] for name, row in cells.items()} == {
        "base": "16",
        "base+cfg2": "32",
        "cca": "16",
    }
    assert cells["base"][2:] == ["1.00", "1.00", "to", "1.00"]
    assert all(float(row[1]) > 0 for row in cells.values())


def test_mistakes(reported: Path, tmp_path: Path):
    run = reported.parent / "run"
    with pytest.raises(UserError, match="--rounds is 0; allowed: 1 or more"):
        bench_run(run, num_images=2, rounds=0)
    with pytest.raises(UserError, match="it has no recipe"):
        bench_run(tmp_path, num_images=2, rounds=1)
