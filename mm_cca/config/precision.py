"""``mixed_precision: auto``, and the units that a device has for it."""

from mm_cca.config.schema import AnyRecipe, Recipe, TokenizerRecipe
from mm_cca.config.schema_demo import ScorerConfig, TokenizerConfig
from mm_cca.config.schema_train import TrainConfig

CPU_UNITS = ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16")
"""Names in ``torch.cpu.get_capabilities``: of x86, then of ARM."""


def settle_precision(recipe: AnyRecipe) -> None:
    """Put the precision that this machine trains in where the recipe says auto, so that whatever is
    recorded about a run names it."""
    config: TrainConfig | TokenizerConfig | ScorerConfig
    if isinstance(recipe, Recipe):
        config = recipe.train
    elif isinstance(recipe, TokenizerRecipe):
        config = recipe.tokenizer
    else:
        config = recipe.scorer
    if config.mixed_precision == "auto":
        config.mixed_precision = "bf16" if has_bf16_units() else "no"


def has_bf16_units() -> bool:
    """Whether the device that trains multiplies bfloat16 faster than float32.

    Every device takes bfloat16; a processor without units for it is slower by a factor of up to 60
    (measured with AVX2).
    """
    import torch
    from accelerate.utils import parse_flag_from_env

    if torch.cuda.is_available() and not parse_flag_from_env("ACCELERATE_USE_CPU"):
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if torch.backends.mps.is_available():
        return False
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name, False) for name in CPU_UNITS)
