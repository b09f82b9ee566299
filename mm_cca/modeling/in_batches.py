"""Work on several items at a time, on fewer when memory runs out."""

import logging
from collections.abc import Callable, Iterator
from typing import TypeVar

import torch

from mm_cca.errors import UserError, is_out_of_memory

log = logging.getLogger(__name__)

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_batches(
    items: list[Item], size: int, work: Callable[[list[Item]], Result]
) -> Iterator[Result]:
    """``work`` on up to ``size`` items at a time; out of memory, on half as many from then on.

    Raises:
        UserError: the memory does not suffice for one item.
    """
    start = 0
    while start < len(items):
        try:
            result = work(items[start : start + size])
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            if size == 1:
                raise UserError(
                    "the device's memory does not suffice to sample one image. Use a smaller "
                    "model.dtype, a smaller data.image_size, or a device with more memory."
                ) from error
            size = -(-size // 2)
            log.warning("out of memory: sampling %d image(s) at a time from here on", size)
        else:
            yield result
            start += size
            continue
        torch.cuda.empty_cache()  # outside the handler, whose traceback holds the batch's tensors
