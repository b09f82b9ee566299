"""Batches: their size, halved when memory runs out, and work in a thread beside them."""

import logging
import threading
from collections.abc import Iterator

import pytest
import torch

from mm_cca.adapters.base import UnifiedModel
from mm_cca.config.schema_eval import SampleConfig
from mm_cca.errors import UserError
from mm_cca.modeling.in_batches import in_batches
from mm_cca.sampling import batches
from mm_cca.sampling.batches import batch_size_of, behind, compiles


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("no"), RuntimeError("DefaultCPUAllocator: can't allocate memory: you")],
)
def test_out_of_memory_halves_the_batch_and_goes_on(
    error: RuntimeError, caplog: pytest.LogCaptureFixture
):
    tried: list[list[int]] = []

    def work(items: list[int]) -> list[int]:
        tried.append(items)
        if len(items) > 2:
            raise error
        return items

    with caplog.at_level(logging.WARNING):
        results = list(in_batches([*range(5)], 5, work))
    assert results == [[0, 1], [2, 3], [4]]
    assert [len(items) for items in tried] == [5, 3, 2, 2, 1]
    assert [record.args for record in caplog.records] == [(3,), (2,)]


def test_no_memory_for_one_image_is_an_error():
    def work(items: list[int]) -> None:
        raise torch.OutOfMemoryError("no")

    with pytest.raises(UserError, match="one image"):
        list(in_batches([1, 2], 2, work))


def test_other_errors_are_not_taken_for_memory():
    def work(items: list[int]) -> None:
        raise RuntimeError("a shape is wrong")

    with pytest.raises(RuntimeError, match="shape"):
        list(in_batches([1, 2], 2, work))


def test_work_behind_runs_in_a_thread_while_the_next_item_is_made():
    """Item 1 is not made before work on item 0 has begun, and work waits for it to be made."""
    made = [threading.Event(), threading.Event()]
    begun = threading.Event()

    def items() -> Iterator[int]:
        made[0].set()
        yield 0
        assert begun.wait(10)
        made[1].set()
        yield 1

    def work(item: int) -> str:
        begun.set()
        assert made[1].wait(10)
        return f"{item} in {threading.current_thread() is threading.main_thread()}"

    assert list(behind(items(), work)) == ["0 in False", "1 in False"]


def test_what_is_finished_is_not_lost_when_the_next_item_fails():
    def items() -> Iterator[int]:
        yield 0
        raise UserError("full")

    seen = []
    with pytest.raises(UserError, match="full"):
        seen.extend(behind(items(), lambda item: item + 1))
    assert seen == [1]


def test_an_error_of_the_work_is_raised():
    def work(item: int) -> int:
        raise OSError(f"disk full at {item}")

    with pytest.raises(OSError, match="disk full at 0"):
        list(behind([0, 1, 2], work))


def test_auto_on_a_cpu_and_a_given_number(tiny_model: UnifiedModel):
    assert batch_size_of(SampleConfig(batch_size="auto"), tiny_model, (4, 4)) == 64
    assert batch_size_of(SampleConfig(batch_size=7), tiny_model, (4, 4)) == 7


def test_bytes_of_a_token(tiny_model: UnifiedModel):
    """2 layers of keys and values, 32 numbers of 4 bytes each."""
    assert batches._bytes_per_token(tiny_model) == 2 * 2 * 32 * 4


@pytest.mark.parametrize(
    ("asked", "images", "expected"), [(None, 79, True), (None, 78, False), (True, 1, True)]
)
def test_compiling_needs_enough_steps(asked: bool | None, images: int, expected: bool):
    """64 codes in batches of one: 5,000 steps need 79 images."""
    assert compiles(SampleConfig(compile=asked), images, 1, 64) is expected
