"""The exponential moving average of the trained weights (train.ema)."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


class Ema:
    """``average = decay * average + (1 - decay) * weights`` after every step, in float32.

    It starts from the initial weights, so there is no bias to correct. Frozen weights (the image
    tokenizer, a LoRA's base) are not copied. Every rank of data-parallel training computes the same
    average; sharded weights are refused in ``setup.py``.
    """

    def __init__(self, policy: nn.Module, decay: float) -> None:
        """Start from the current weights of ``policy``, which must be float32."""
        trained = [(n, p) for n, p in policy.named_parameters() if p.requires_grad]
        halved = [name for name, p in trained if p.dtype != torch.float32]
        assert not halved, f"setup.py refuses trained weights in half precision: {halved[:3]}"
        self._trained = [parameter for _, parameter in trained]
        self._average = {name: p.detach().clone() for name, p in trained}
        self._update = get_ema_multi_avg_fn(decay)

    def update(self) -> None:
        """Take in the weights after an optimizer step."""
        # The third argument counts the steps; an average with a fixed decay does not need it.
        self._update(tuple(self._average.values()), tuple(p.detach() for p in self._trained), 0)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Inside the block the model has the average as its weights; afterwards its own again."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    @torch.no_grad()
    def _exchange(self) -> None:
        """Swap weights and average in place, bit for bit, one tensor at a time."""
        for parameter, average in zip(self._trained, self._average.values(), strict=True):
            kept = parameter.detach().clone()
            parameter.copy_(average)
            average.copy_(kept)

    def state_dict(self) -> dict[str, torch.Tensor]:
        """The average by the names of the weights, for checkpoints."""
        return dict(self._average)

    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        """Continue from a saved average.

        Raises:
            RuntimeError: it is the average of other weights.
        """
        if state.keys() != self._average.keys():
            raise RuntimeError("the average of train.ema belongs to other weights")
        for name, average in self._average.items():
            average.copy_(state[name])
