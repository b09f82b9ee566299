"""A step of training without numbers: the memory and the operations that it takes.

The policy is copied with fake tensors, which have shapes and types but no memory, and the forward
and backward pass of the training itself runs on them. So nothing here repeats what an objective, an
attention kernel, autocast or gradient checkpointing does; only layers quantised by bitsandbytes,
which know no fake tensors, have a stand-in.

Shapes: D outputs and E inputs of a linear layer.
"""

import copy
import weakref
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

from mm_cca.modeling.logprobs import CodeLogProbs

CPU = torch.device("cpu")
ACTIVATIONS, LOGITS, GRADIENTS = "activations", "logits chunk", "gradients"


@dataclass
class StepCost:
    """What a step needs besides the weights.

    Attributes:
        peak: bytes of activations, logits and gradients when their sum is largest.
        flops: floating-point operations of one micro-batch.
    """

    peak: Counter[str] = field(default_factory=Counter)
    flops: int = 0


def fake_copy(policy: CodeLogProbs, quantized: dict[int, nn.Module], mode: FakeTensorMode) -> Any:
    """A copy of the policy whose weights are fake, on a fake CPU.

    Args:
        policy: loaded, or with its weights on the meta device.
        quantized: ``id`` of a layer -> what takes its place.
        mode: that the copy is used in.
    """
    memo: dict[int, Any] = dict(quantized)
    with mode:
        for tensor in [*policy.parameters(), *policy.buffers()]:
            fake: torch.Tensor = torch.empty(tensor.shape, dtype=tensor.dtype, device=CPU)
            if isinstance(tensor, nn.Parameter):
                fake = nn.Parameter(fake, requires_grad=tensor.requires_grad)
            memo[id(tensor)] = fake
    # The rest, such as tables of codes, is small and copied as it is.
    copied: CodeLogProbs = copy.deepcopy(policy, memo)
    return copied


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all tensors that are made within it and still alive, and operations.

    Args:
        head_rows: numbers of rows of the output heads; float32 matrices as wide are logits.
    """

    def __init__(self, head_rows: set[int]) -> None:
        super().__init__()
        self.cost = StepCost()
        self.live: Counter[str] = Counter()
        self._head_rows = head_rows
        self._seen: dict[int, tuple[Any, str, int]] = {}

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        self.cost.flops += _flops(func._overloadpacket, args, kwargs or {}, result)
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self._see(tensor)
        return result

    def ignore(self, tensors: Any) -> None:
        """Do not count these, and no view of them."""
        for tensor in tensors:
            self._remember(tensor, "", 0)

    def is_gradient(self, parameter: torch.Tensor) -> None:
        """Its gradient, so far an activation, is now kept."""
        assert parameter.grad is not None
        key = parameter.grad.untyped_storage()._cdata
        if key in self._seen:
            watched, label, size = self._seen[key]
            self.live[label] -= size
            self.live[GRADIENTS] += size
            self._seen[key] = watched, GRADIENTS, size

    def _see(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage._cdata in self._seen:
            return
        logits = (
            tensor.ndim == 2
            and tensor.dtype == torch.float32
            and tensor.shape[-1] in self._head_rows
        )
        self._remember(tensor, LOGITS if logits else ACTIVATIONS, storage.nbytes())
        if self.live.total() > self.cost.peak.total():
            self.cost.peak = self.live.copy()

    def _remember(self, tensor: torch.Tensor, label: str, size: int) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        self.live[label] += size

        def freed(_: Any) -> None:
            _, now, size = self._seen.pop(key)
            self.live[now] -= size

        self._seen[key] = weakref.ref(storage, freed), label, size


def _flops(operation: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> int:
    """Operations of matrix products and attention; PyTorch's table lacks attention on a CPU."""
    aten = torch.ops.aten
    if operation is aten._scaled_dot_product_flash_attention_for_cpu:
        return int(sdpa_flop_count(*(x.shape for x in args[:3])))
    if operation is aten._scaled_dot_product_flash_attention_for_cpu_backward:
        return int(sdpa_backward_flop_count(*(x.shape for x in args[:4])))
    count = flop_registry.get(operation)
    return 0 if count is None else int(count(*args, **kwargs, out_val=result))


def step_cost(
    policy: CodeLogProbs,
    loss: Callable[[CodeLogProbs], torch.Tensor],
    *,
    with_gradients: bool,
) -> StepCost:
    """Run the forward and backward pass of a micro-batch, and count.

    Args:
        policy: real or fake (``fake_copy``, within its mode).
        loss: of one micro-batch, in autocast as in training.
        with_gradients: whether it finds those of an earlier micro-batch of the same step.
    """
    head = policy.model.image_head(whole_vocabulary=True).weight.shape[0]
    rows = {head, policy.model.image_head().weight.shape[0], policy.model.text_head().out_features}
    counted = LiveBytes(rows)
    counted.ignore([*policy.parameters(), *policy.buffers()])
    trained = [p for p in policy.parameters() if p.requires_grad]
    hooks = [p.register_post_accumulate_grad_hook(counted.is_gradient) for p in trained]
    policy.train()
    with counted:
        for parameter in trained if with_gradients else []:
            parameter.grad = torch.zeros_like(parameter)
            counted.is_gradient(parameter)
        loss(policy).backward()
    for hook in hooks:
        hook.remove()
    for parameter in trained:
        parameter.grad = None
    return counted.cost


class QuantizedStandIn(nn.Module):
    """A linear layer of bitsandbytes as far as memory goes: packed weights, unpacked for each pass.

    Args:
        layer: with D outputs and E inputs.
        kind: ``nf4`` or ``int8``.
        dtype: of the products.
        mode: in which it is fake.
    """

    def __init__(
        self, layer: nn.Linear, kind: str, dtype: torch.dtype, mode: FakeTensorMode
    ) -> None:
        super().__init__()
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.dtype, self.keeps_input = dtype, kind == "int8"
        size = quantized_bytes(layer.out_features, layer.in_features, kind)
        with mode:
            packed = torch.empty(size, dtype=torch.uint8, device=CPU)
        self.packed = nn.Parameter(packed, requires_grad=False)
        self.bias = None
        if layer.bias is not None:
            with mode:
                bias = torch.empty(layer.bias.shape, dtype=layer.bias.dtype, device=CPU)
            self.bias = nn.Parameter(bias, requires_grad=False)

    @property
    def weight(self) -> torch.Tensor:
        """[D, E] unpacked, as peft asks for it for a DoRA."""
        return self.packed.new_empty(self.out_features, self.in_features, dtype=self.dtype)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        outputs: torch.Tensor = _Product.apply(inputs.to(self.dtype), self)
        outputs = outputs.to(inputs.dtype)
        return outputs if self.bias is None else outputs + self.bias


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, inputs: torch.Tensor, layer: QuantizedStandIn) -> torch.Tensor:
        ctx.layer = layer
        if layer.keeps_input:
            ctx.save_for_backward(inputs)
        return inputs @ layer.weight.T

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        return grad.to(ctx.layer.dtype) @ ctx.layer.weight, None


def quantized_bytes(rows: int, columns: int, kind: str) -> int:
    """Bytes of a quantised weight with its scales, as bitsandbytes keeps them.

    ``nf4``: 4 bits a weight, a byte for the scale of 64 weights, and 4 bytes for that of 256
    scales. ``int8``: a byte a weight and 4 for the scale of a row.
    """
    count = rows * columns
    if kind == "int8":
        return count + 4 * rows
    scales = -(-count // 64)
    return -(-count // 2) + scales + 4 * -(-scales // 256)
