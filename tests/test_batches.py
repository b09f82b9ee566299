"""The schedule is a function of (seed, step): resume, ranks and micro-batches can't change it."""

from types import SimpleNamespace

import numpy as np
import pytest

from mm_cca.batches import Pairs, Schedule
from mm_cca.errors import UserError
from mm_cca.train import _micro_batches

CAPTIONS = [f"caption {i}" for i in range(10)]


def _schedule(**changed: object) -> Schedule:
    options: dict = {
        "batch_size": 4,
        "num_variants": 3,
        "uncond_ratio": 0.3,
        "kind": "shuffle",
        "seed": 5,
    }
    return Schedule(CAPTIONS, **(options | changed))


def _same(a: Pairs, b: Pairs) -> bool:
    names = ("rows", "negatives", "variants", "dropped")
    return all((getattr(a, name) == getattr(b, name)).all() for name in names)


def test_any_order_of_calls_gives_the_same_steps():
    forward = [_schedule().step(i) for i in range(12)]
    other = _schedule()
    for i in reversed(range(12)):
        assert _same(other.step(i), forward[i])


def test_every_row_once_per_epoch_also_across_its_end():
    """10 rows in steps of 4: step 2 reaches over the end of epoch 0, five steps are two epochs."""
    schedule = _schedule()
    rows = np.concatenate([schedule.step(i).rows for i in range(5)])
    assert sorted(rows[:10].tolist()) == list(range(10))
    assert sorted(rows[10:].tolist()) == list(range(10))
    assert rows[:10].tolist() != rows[10:].tolist()


def _shares(pairs: Pairs, world: int, size: int) -> list[list[Pairs]]:
    """What the training loop gives to each of ``world`` ranks, in parts of ``size``."""
    shares = []
    for rank in range(world):
        accelerator = SimpleNamespace(num_processes=world, process_index=rank)
        train = SimpleNamespace(batch_size=len(pairs.rows), micro_batch_size=size)
        loop = SimpleNamespace(accelerator=accelerator, train=train)
        shares.append(list(_micro_batches(loop, pairs)))
    return shares


@pytest.mark.parametrize("world", [1, 2, 4])
@pytest.mark.parametrize("size", [1, 2])
def test_parts_of_all_ranks_make_up_the_step(world: int, size: int):
    """Every pair goes to one rank once, and all ranks take part in every backward pass."""
    pairs = _schedule(batch_size=8).step(0)
    shares = _shares(pairs, world, size)
    assert [len(share) for share in shares] == [8 // world // size] * world
    for name in ("rows", "negatives", "variants", "dropped"):
        # The ranks take turns, so their first parts together are the start of the step.
        turns = [part for parts in zip(*shares, strict=True) for part in parts]
        together = np.concatenate([getattr(part, name) for part in turns])
        assert together.tolist() == getattr(pairs, name).tolist(), name


def test_a_batch_that_ranks_can_not_share_is_refused():
    with pytest.raises(UserError, match="multiple of 6"):
        _shares(_schedule(batch_size=8).step(0), world=3, size=2)


def test_without_dropping_no_condition_is_dropped():
    schedule = _schedule(uncond_ratio=0.0)
    assert not any(schedule.step(i).dropped.any() for i in range(10))


def test_negatives_are_never_the_own_caption():
    schedule = _schedule()
    for i in range(20):
        pairs = schedule.step(i)
        assert (pairs.rows != pairs.negatives).all()


def test_dropped_share_and_variants():
    schedule = Schedule(
        [f"caption {i}" for i in range(1000)],
        batch_size=1000,
        num_variants=3,
        uncond_ratio=0.3,
        kind="shuffle",
        seed=0,
    )
    pairs = schedule.step(0)
    assert 0.25 < pairs.dropped.mean() < 0.35
    assert set(pairs.variants.tolist()) == {0, 1, 2}


def test_a_batch_larger_than_the_data_is_refused():
    with pytest.raises(UserError, match="only 10 usable images"):
        _schedule(batch_size=11)


def test_one_caption_is_refused_before_training():
    with pytest.raises(UserError, match="two distinct captions"):
        Schedule(["x"] * 5, batch_size=2, num_variants=1, uncond_ratio=0.1, kind="shuffle", seed=0)
