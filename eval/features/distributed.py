"""Work spread over the ranks of a run and gathered in its order.

Whole batches go to ranks, so a batch holds the same images however many ranks there are, and the
numbers are those of one process to the last bit.
"""

from collections.abc import Callable, Sequence
from typing import TypeVar

from accelerate import PartialState
from accelerate.utils import gather_object
from tqdm import tqdm

from mm_cca.errors import UserError

Item = TypeVar("Item")
Result = TypeVar("Result")


def map_over_ranks(
    items: Sequence[Item], work: Callable[[Item], Result], *, desc: str, unit: str = "batch"
) -> list[Result]:
    """``work`` of every item, in the order of the items, on every rank.

    Args:
        items: the same on every rank.
        work: done for each item by one rank; its result must be picklable.
        desc: what the progress bar says.
        unit: of the progress bar.

    Raises:
        UserError: what ``work`` raised on any rank, on all of them, so that none waits for another.
    """
    state = PartialState()
    numbers = range(state.process_index, len(items), state.num_processes)
    bar = tqdm(numbers, desc=desc, unit=unit, leave=False, disable=not state.is_main_process)
    found: list[tuple[int, Result]] = []
    mistakes: list[str] = []
    for number in bar:
        try:
            found.append((number, work(items[number])))
        except UserError as error:
            mistakes.append(str(error))
            break
    if mistakes := gather_object(mistakes):
        raise UserError(mistakes[0])
    return [result for _, result in sorted(gather_object(found), key=lambda pair: pair[0])]
