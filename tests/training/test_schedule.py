"""The schedule is a function of (seed, step): resume, ranks and micro-batches can't change it."""

from types import SimpleNamespace

import numpy as np
import pytest

from mm_cca.errors import UserError
from mm_cca.negatives import NegativeSettings, Planner
from mm_cca.training.schedule import Pairs, Schedule
from mm_cca.training.train import _micro_batches

CAPTIONS = [f"caption {i}" for i in range(10)]
NAMES = ("rows", "negatives", "variants", "dropped")


def _schedule(**changed: object) -> Schedule:
    options: dict = {
        "batch_size": 4,
        "num_variants": 3,
        "uncond_ratio": 0.3,
        "planner": planner(CAPTIONS, 5),
        "seed": 5,
    }
    return Schedule(CAPTIONS, **(options | changed))


def planner(captions: list[str], seed: int, num_negatives: int = 1) -> Planner:
    settings = NegativeSettings({"shuffle": 1.0}, num_negatives=num_negatives)
    return Planner(captions, settings, seed=seed)


def _same(a: Pairs, b: Pairs) -> bool:
    return all((_array(a, name) == _array(b, name)).all() for name in NAMES)


def _array(pairs: Pairs, name: str) -> np.ndarray:
    return pairs.negatives.read() if name == "negatives" else getattr(pairs, name)


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
    for name in NAMES:
        # The ranks take turns, so their first parts together are the start of the step.
        turns = [part for parts in zip(*shares, strict=True) for part in parts]
        together = np.concatenate([_array(part, name) for part in turns])
        assert together.tolist() == _array(pairs, name).tolist(), name


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
        own = [CAPTIONS[i] for i in pairs.rows]
        assert (np.array(own, dtype=object)[:, None] != pairs.negatives.read()).all()


def test_dropped_share_and_variants():
    captions = [f"caption {i}" for i in range(1000)]
    schedule = Schedule(
        captions, batch_size=1000, num_variants=3, uncond_ratio=0.3, planner=None, seed=0
    )
    pairs = schedule.step(0)
    assert 0.25 < pairs.dropped.mean() < 0.35
    assert set(pairs.variants.tolist()) == {0, 1, 2}


def test_a_batch_larger_than_the_data_is_refused():
    with pytest.raises(UserError, match="only 10 usable images"):
        _schedule(batch_size=11)


def test_one_caption_is_refused_before_training():
    with pytest.raises(UserError, match="two distinct captions"):
        planner(["x"] * 5, 0)


def test_places_count_from_the_start_of_training():
    schedule = _schedule()
    assert [schedule.step(i).start for i in range(4)] == [0, 4, 8, 12]
    assert [part.start for part in (schedule.step(2).part(0, 2), schedule.step(2).part(2, 4))] == [
        8,
        10,
    ]


def test_without_a_planner_there_are_no_negatives():
    assert _schedule(planner=None).step(2).negatives.read().shape == (4, 0)


def test_rows_do_not_depend_on_how_many_negatives_there_are():
    one, three = _schedule(), _schedule(planner=planner(CAPTIONS, 5, num_negatives=3))
    for i in range(4):
        assert three.step(i).negatives.read().shape == (4, 3)
        assert one.step(i).rows.tolist() == three.step(i).rows.tolist()


def test_every_plan_is_reported_once():
    plans = []
    schedule = _schedule(on_plan=lambda epoch, plan: plans.append((epoch, len(plan.rows))))
    for i in range(5):
        schedule.step(i)
    assert plans == [(0, 10), (1, 10)]
