"""Work divided among the ranks of a run, with the results gathered in order.

Ranks take whole batches, so a batch has the same images for any number of ranks, and the numbers
are those of one process to the last bit.
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
        desc: label of the progress bar.
        unit: of the progress bar.

    Raises:
        UserError: what ``work`` raised on any rank; all ranks raise it, so that none hangs.
    """
    state = PartialState()
    numbers = range(state.process_index, len(items), state.num_processes)
    bar = tqdm(numbers, desc=desc, unit=unit, leave=False, disable=not state.is_main_process)
    results: list[tuple[int, Result]] = []
    messages: list[str] = []
    for number in bar:
        try:
            results.append((number, work(items[number])))
        except UserError as error:
            messages.append(str(error))
            break
    if messages := gather_object(messages):
        raise UserError(messages[0])
    return [result for _, result in sorted(gather_object(results), key=lambda pair: pair[0])]
