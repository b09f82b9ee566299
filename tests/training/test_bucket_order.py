"""Steps of images of one size: every image as often as others, whatever was asked for before."""

import numpy as np
import pytest

from mm_cca.negatives import NegativeSettings, Planner
from mm_cca.training.bucket_order import BucketOrder
from mm_cca.training.schedule import Schedule


def _naive(counts: list[int], size: int, seed: int, epochs: int) -> list[tuple[int, int]]:
    """Group and batch of every step: walk through the epochs and list the batches that begin."""
    steps, done = [], [0] * len(counts)
    for epoch in range(epochs):
        groups = []
        for group, count in enumerate(counts):
            number = done[group]
            while number * size < (epoch + 1) * count:
                groups.append(group)
                number += 1
        order = np.random.default_rng([seed, epoch, 0x6275]).permutation(groups)
        for group in order.tolist():
            steps.append((group, done[group]))
            done[group] += 1
    return steps


@pytest.mark.parametrize(
    ("counts", "size"), [([7, 12, 4], 4), ([100, 3], 2), ([5, 5], 5), ([9, 4], 1)]
)
def test_it_is_what_a_walk_through_the_epochs_gives(counts: list[int], size: int):
    expected = _naive(counts, size, 5, 6)
    order = BucketOrder(counts, size, 5)
    assert [order.at(step) for step in range(len(expected))] == expected
    shuffled = np.random.default_rng(0).permutation(len(expected)).tolist()
    assert [BucketOrder(counts, size, 5).at(step) for step in shuffled] == [
        expected[step] for step in shuffled
    ]


def test_every_size_has_its_share():
    order = BucketOrder([70, 20, 10], 4, 1)
    groups = [order.at(step)[0] for step in range(1000)]
    shares = np.bincount(groups) / 1000
    assert shares == pytest.approx([0.7, 0.2, 0.1], abs=0.005)


GROUPS = np.array([0, 1, 0, 0, 1, 2, 0, 2, 1, 0, 0, 2, 0, 2])
CAPTIONS = [f"caption {i}" for i in range(len(GROUPS))]


def _schedule(groups: np.ndarray | None) -> Schedule:
    return Schedule(
        CAPTIONS,
        batch_size=3,
        num_variants=2,
        uncond_ratio=0.3,
        planner=Planner(CAPTIONS, NegativeSettings({"shuffle": 1.0}, num_negatives=1), seed=2),
        seed=2,
        groups=groups,
    )


def test_a_step_has_images_of_one_size_and_all_are_seen_alike():
    schedule = _schedule(GROUPS)
    steps = [schedule.step(step) for step in range(14 * 10 // 3)]
    assert all(len(set(GROUPS[step.rows].tolist())) == 1 for step in steps)
    seen = np.bincount(np.concatenate([step.rows for step in steps]), minlength=len(GROUPS))
    assert seen.max() - seen.min() <= 2
    other = _schedule(GROUPS)
    for step in reversed(range(len(steps))):
        again = other.step(step)
        assert again.rows.tolist() == steps[step].rows.tolist()
        assert again.negatives.read().tolist() == steps[step].negatives.read().tolist()
        assert again.start == steps[step].start == 3 * step


def test_one_size_is_the_schedule_without_buckets():
    one, none = _schedule(np.zeros(len(GROUPS), dtype=int)), _schedule(None)
    for step in range(12):
        ours, theirs = one.step(step), none.step(step)
        assert (ours.negatives.read() == theirs.negatives.read()).all()
        for name in ("rows", "variants", "dropped"):
            assert (getattr(ours, name) == getattr(theirs, name)).all()
