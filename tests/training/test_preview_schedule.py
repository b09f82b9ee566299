"""When previews are due, and that ``auto`` keeps to its share of the time."""

from pathlib import Path

import pytest

from mm_cca.runs.preview_record import PreviewRecord, read_record
from mm_cca.training.preview_schedule import SHARE, TIMED, PreviewSchedule, count, interval


def record(**more) -> PreviewRecord:
    return PreviewRecord(["owl"], 2.0, **more)


@pytest.mark.parametrize(
    ("cost", "of_step", "num_steps", "every"),
    [
        # 3 % of 1,000 s are 30 s, six previews: base, and five over 1,000 steps.
        (5.0, 1.0, 1000, 200),
        # 3.3 previews: base, and two of them.
        (9.0, 1.0, 1000, 500),
        # Not even two: base and last only.
        (20.0, 1.0, 1000, 1000),
        (1e6, 1.0, 2, 2),
        # 300 previews, 299 intervals over 1,000 steps: every 3.34th.
        (0.0997, 1.0, 1000, 4),
        (1e-9, 1.0, 1000, 1),
        (0.1, 1.0, 3, 3),
    ],
)
def test_interval(cost: float, of_step: float, num_steps: int, every: int):
    assert interval(cost, of_step, num_steps) == every
    total = count(every, num_steps) * cost
    if total > SHARE * num_steps * of_step:  # only where base and last alone cost more
        assert count(every, num_steps) == 2


@pytest.mark.parametrize(("every", "num_steps"), [(3, 9), (3, 10), (1, 4), (50, 4), (4, 4)])
def test_count_is_that_of_the_steps_that_are_due(every: int, num_steps: int):
    schedule = PreviewSchedule(every, num_steps, 2, record())
    due = [done for done in range(num_steps + 1) if schedule.is_due(done)]
    assert due == sorted({0, num_steps, *range(0, num_steps + 1, every)})
    assert count(every, num_steps) == len(due)


def test_what_is_drawn_is_not_due():
    schedule = PreviewSchedule(2, 6, 2, record(drawn={0: 1.0, 4: 1.0}))
    assert [done for done in range(7) if schedule.is_due(done)] == [2, 6]


def test_auto_times_steps_and_keeps_its_choice(tmp_path: Path, capsys):
    kept = record(drawn={0: 5.0})
    schedule = PreviewSchedule("auto", 1000, 8, kept)
    assert not schedule.is_due(200)
    for number in range(TIMED):
        assert kept.every is None
        schedule.see(100.0 if number == 0 else 1.0, tmp_path)  # the first one is not counted
    assert kept.every == 200
    assert schedule.is_due(200)
    said = capsys.readouterr().err
    assert (
        "previews: 8 pictures take 5 s and a step 1 s; drawn at the start, at the end and every"
        in said
    )
    assert "every 200 steps they cost 3.0% of the training's time" in said
    assert "warning" not in said
    stored = read_record(tmp_path)
    assert stored is not None
    again = PreviewSchedule("auto", 1000, 8, stored)
    assert again.is_due(200)
    for _ in range(TIMED):
        again.see(0.1, tmp_path)
    assert stored.every == 200


def test_a_given_interval_that_costs_more_is_warned_of(tmp_path: Path, capsys):
    for every, warns in ((10, True), (500, False)):
        schedule = PreviewSchedule(every, 1000, 8, record(drawn={0: 5.0}))
        for _ in range(TIMED + 3):
            schedule.see(1.0, tmp_path)
        said = capsys.readouterr().err
        assert said.count("previews: ") == 1
        assert said.startswith("warning: ") == warns
        assert ("sample.every=auto would take 200" in said) == warns


def test_base_and_last_alone_are_told_too(tmp_path: Path, capsys):
    schedule = PreviewSchedule("auto", 100, 8, record(drawn={0: 10.0}))
    for _ in range(TIMED):
        schedule.see(1.0, tmp_path)
    assert "drawn at the start and at the end they cost 20.0% of" in capsys.readouterr().err
