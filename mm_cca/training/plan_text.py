"""A training's plan in words, and the GPUs that it can be compared with."""

from dataclasses import dataclass
from typing import Self

from mm_cca.errors import UserError
from mm_cca.training.plan import Plan

GPUS = {
    "T4": (16, 65),
    "3090": (24, 71),
    "4090": (24, 165),
    "5090": (32, 210),
    "L4": (24, 121),
    "A10": (24, 125),
    "V100-32": (32, 125),
    "A6000": (48, 155),
    "L40S": (48, 362),
    "A100-40": (40, 312),
    "A100-80": (80, 312),
    "H100": (80, 989),
    "H200": (141, 989),
    "B200": (180, 2250),
    "MI300X": (192, 1307),
}
"""Name -> GB of memory, and the makers' dense tera-operations a second in 16 bits."""
SHARE = 0.4
"""Of the makers' figure that training of large models reaches; assumed."""
CONTEXT = 0.6
"""GB that CUDA and PyTorch's allocator take besides tensors; assumed."""
FOR_HOURS = "A100-80"
"""The GPU whose speed is taken where only a size is given."""


@dataclass(frozen=True)
class Gpu:
    """What a plan is compared with.

    Attributes:
        name: for users.
        gigabytes: of memory; None: not compared.
        teraflops: of the makers' figure, of ``speed_of``.
        speed_of: the GPU that hours are told of.
    """

    name: str
    gigabytes: float | None
    teraflops: float
    speed_of: str

    @classmethod
    def of(cls, text: str) -> Self:
        """From ``--gpu``: a name, or gigabytes.

        Raises:
            UserError: neither.
        """
        known = {name.lower(): name for name in GPUS}
        if (name := known.get(text.lower().removeprefix("rtx").strip(" -"))) is not None:
            return cls(name, *GPUS[name], name)
        try:
            gigabytes = float(text.lower().removesuffix("gb"))
        except ValueError:
            gigabytes = 0.0
        if not 0 < gigabytes < 100_000:
            raise UserError(
                f"--gpu is {text!r}; allowed: its memory in GB, above 0, such as 24, or one of "
                f"{', '.join(GPUS)}."
            )
        return cls.of_size(gigabytes)

    @classmethod
    def of_size(cls, gigabytes: float | None) -> Self:
        """A GPU of which only the memory is known, or not even that."""
        name = "" if gigabytes is None else f"{gigabytes:g} GB"
        return cls(name, gigabytes, GPUS[FOR_HOURS][1], FOR_HOURS)

    def hours(self, flops: int) -> float:
        """For so many operations, at an assumed share of the makers' figure."""
        return flops / (SHARE * self.teraflops * 1e12) / 3600


def plan_text(plan: Plan, gpu: Gpu) -> str:
    """The plan, a line for each part."""
    lines = ["plan of the training, at the fullest moment of a step:"]
    for name, size in plan.memory.items():
        lines.append(f"  {name:<16}{_size(size):>10}")
    lines.append(f"  {'together':<16}{_size(plan.total):>10}")
    if gpu.gigabytes is not None:
        lines.append(_fits(plan, gpu))
    lines.append(
        f"  {plan.trained:,} trained weights; {plan.pairs:,} pairs, {plan.tokens:,} tokens, at "
        f"most {plan.tokens_per_row:,} in a row"
        + ("" if plan.captions_known else " (captions of 77 tokens assumed: prepare has not run)")
    )
    lines.append(
        f"  {plan.flops:.1e} floating-point operations: about {_hours(gpu.hours(plan.flops))} on "
        f"one {gpu.speed_of} at an assumed {SHARE:.0%} of its peak"
    )
    disk = ", ".join(f"{name} {_size(size)}" for name, size in plan.disk.items())
    lines.append(f"  disk for the training: {disk}")
    return "\n".join(lines)


def fits(plan: Plan, gpu: Gpu) -> bool:
    """Whether the GPU holds it, with what CUDA takes for itself."""
    return gpu.gigabytes is not None and plan.total / 1e9 + CONTEXT <= gpu.gigabytes


def _fits(plan: Plan, gpu: Gpu) -> str:
    assert gpu.gigabytes is not None
    rest = gpu.gigabytes - plan.total / 1e9 - CONTEXT
    what = f"{gpu.gigabytes:g} GB" + ("" if gpu.name.endswith("GB") else f" of a {gpu.name}")
    besides = f"with about {CONTEXT:g} GB for CUDA itself"
    if rest < 0:
        return f"  does not fit in {what}, {besides}: {-rest:.1f} GB too much"
    return f"  fits in {what}, {besides}: {rest:.1f} GB to spare"


def _size(size: int) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"


def _hours(hours: float) -> str:
    if hours >= 1:
        return f"{hours:.1f} hours"
    return f"{hours * 60:.0f} minutes" if hours * 60 >= 1 else "a minute or less"
