"""Runs the sampler's steps: eagerly, or as one compiled graph per width of step.

On a CPU the graph takes any number of filled tokens, so that attention reads only those. On a GPU
all shapes are fixed, so that CUDA graphs can replay it: then attention reads the whole buffer.
Shapes: M rows, C tokens that the cache has room for.
"""

import logging

import torch
from torch._dynamo.exc import TorchDynamoException
from transformers import Cache

from mm_cca.adapters.base import UnifiedModel
from mm_cca.modeling.sampling_step import Pick, Rules, StepTensors, step

log = logging.getLogger(__name__)

_GRAPHS = 64
"""Graphs kept per process: batch sizes, models, guidance and so on have their own."""


def has_fixed_shapes(device: torch.device, *, compiled: bool) -> bool:
    """Whether mask and cache have their full length in every step."""
    return compiled and device.type == "cuda"


class StepRunner:
    """Runs ``step`` for one batch after another.

    Dynamo's guards, which take longer than a small model's arithmetic, are looked at in the first
    step of each width in each batch only: weights and settings do not change within a batch.

    Args:
        model: in eval mode.
        compiled: compile the step.
        fixed: from ``has_fixed_shapes``.
    """

    def __init__(self, model: UnifiedModel, *, compiled: bool, fixed: bool) -> None:
        self._model, self._compiled, self._fixed = model, compiled, fixed
        mode = "reduce-overhead" if fixed else None
        self._step = torch.compile(step, fullgraph=True, dynamic=False, mode=mode)

    def run(
        self,
        widths: list[int],
        cache: Cache,
        tensors: StepTensors,
        mask: torch.Tensor,
        filled: int,
        rules: Rules,
        pick: Pick,
    ) -> None:
        """All steps of a batch.

        Args:
            widths: of each step.
            cache: ``filled`` tokens are in it.
            tensors: codes come into ``tensors.codes``.
            mask: [M, C] bool.
            filled: tokens.
            rules: see ``Rules``.
            pick: usually ``draw``.
        """
        looked_at: set[int] = set()
        for width in widths:
            filled += width
            seen = mask if self._fixed else mask[:, :filled]
            arguments = (self._model, cache, tensors, seen, width, rules, pick)
            if not self._compiled:
                step(*arguments)
            elif width in looked_at:
                with torch.compiler.set_stance("default", skip_guard_eval_unsafe=True):
                    self._step(*arguments)
            else:
                if not self._fixed:
                    torch._dynamo.mark_dynamic(seen, 1)
                try:
                    with torch._dynamo.config.patch(recompile_limit=_GRAPHS):
                        self._step(*arguments)
                except TorchDynamoException as error:
                    # Raised before anything ran, such as where there is no C++ compiler.
                    first = str(error).strip().partition("\n")[0]
                    log.warning("sampling goes on uncompiled: no compiled step: %s", first)
                    self._compiled = False
                    step(*arguments)
                looked_at.add(width)
