"""LoRA: attaching, scaling and saving it."""

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import nn

from mm_cca.adapters.base import UnifiedModel
from mm_cca.config.read_files import json_of
from mm_cca.config.schema import TrainConfig
from mm_cca.errors import UserError


def dial_lora(module: PeftModel, dial: float) -> None:
    """Set the scale of every LoRA layer to ``dial`` times its trained scale, in place.

    Raises:
        UserError: a DoRA, whose trained lengths are no multiple of anything.
    """
    configs = module.peft_config.values()
    refuse_dial_of_dora(
        dial, is_dora=any(isinstance(c, LoraConfig) and c.use_dora for c in configs)
    )
    for layer in module.modules():
        if isinstance(layer, LoraLayer):
            for adapter in layer.scaling:
                layer.set_scale(adapter, dial)


def refuse_dial_of_dora(dial: float, *, is_dora: bool) -> None:
    """Raises UserError for a dial other than 1 of a DoRA."""
    if is_dora and dial != 1.0:
        raise UserError(
            f"the dial is {dial:g}; allowed for a DoRA (train.lora_dora): 1, because its trained "
            "lengths of rows have no scale that leads back to the base."
        )


@contextmanager
def without_lora(module: PeftModel) -> Iterator[None]:
    """Inside, every LoRA is switched off, but counts as trained as before.

    peft lets it count as frozen meanwhile, and FSDP decides at the first pass, which may be this
    one, in which precision trained weights get their gradients.
    """
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    with module.disable_adapter():
        for parameter in trained:
            parameter.requires_grad_(True)
        yield


def bake_lora(folder: Path, dial: float) -> None:
    """Apply ``dial`` to a saved LoRA, so that plain peft loads the model that ``dial_lora`` gives.

    It changes alpha, from which peft computes the scale; multiplying B would round its values.

    Raises:
        UserError: a DoRA.
    """
    path = folder / "adapter_config.json"
    config = json_of(path, dict[str, Any], "Restore it, or train again.")
    refuse_dial_of_dora(dial, is_dora=config.get("use_dora", False))
    config["lora_alpha"] *= dial
    by_layer = config.get("alpha_pattern") or {}
    config["alpha_pattern"] = {layer: alpha * dial for layer, alpha in by_layer.items()}
    path.write_text(json.dumps(config, indent=2) + "\n")


def attach_lora(
    model: UnifiedModel,
    *,
    rank: int,
    alpha: int,
    dropout: float = 0.0,
    rank_stabilised: bool = False,
    dora: bool = False,
    targets: Sequence[str] = (),
) -> None:
    """Attach a new LoRA to layers of the decoder; everything else is frozen.

    Args:
        model: changed in place.
        rank, alpha, dropout: as peft's.
        rank_stabilised: peft's ``use_rslora``.
        dora: peft's ``use_dora``.
        targets: regular expressions of layers, see ``train.lora_targets``; empty: those that the
            adapter names.

    Raises:
        UserError: a target that matches no layer, or one that can't have a LoRA.
    """
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=dropout,
        use_rslora=rank_stabilised,
        use_dora=dora,
        target_modules=_pattern(model, targets) if targets else model.lora_targets(),
    )
    # peft matches layers by the end of their names, and a frozen image tokenizer may have such
    # layers too. It warns of names that exclude nothing, by listing them all.
    frozen = {id(layer) for part in model.frozen() for layer in part.modules()}
    config.exclude_modules = [
        name
        for name, layer in model.module.named_modules()
        if id(layer) in frozen and _matches(config.target_modules, name)
    ] or None
    model.module = get_peft_model(model.module, config)  # type: ignore[arg-type]


def attach_lora_of(model: UnifiedModel, config: TrainConfig) -> None:
    """``attach_lora`` with a recipe's keys."""
    attach_lora(
        model,
        rank=config.lora_rank,
        alpha=config.lora_alpha,
        dropout=config.lora_dropout,
        rank_stabilised=config.lora_rslora,
        dora=config.lora_dora,
        targets=config.lora_targets,
    )


def _pattern(model: UnifiedModel, targets: Sequence[str]) -> str:
    """One regular expression for peft, which matches whole names, after every target is checked."""
    frozen = {id(layer) for part in model.frozen() for layer in part.modules()}
    layers = {name: x for name, x in model.module.named_modules() if id(x) not in frozen}
    # The head is multiplied row by row, without its layer (modeling/chunked_head.py).
    heads = {
        head.weight.untyped_storage()._cdata
        for head in (model.image_head(whole_vocabulary=True), model.text_head())
    }
    tuned = {
        name
        for name, layer in layers.items()
        if isinstance(layer, nn.Linear) and layer.weight.untyped_storage()._cdata not in heads
    }
    for target in targets:
        found = [name for name in layers if _matches(_at_end([target]), name)]
        wrong = [name for name in found if name not in tuned]
        if wrong:
            raise UserError(
                f"train.lora_targets has {target!r}, which matches {wrong[0]}; allowed: linear "
                f"layers that are no output head, such as {', '.join(_kinds(tuned))}."
            )
        if not found:
            raise UserError(
                f"train.lora_targets has {target!r}, which matches no layer of this model; its "
                f"linear layers are {', '.join(_kinds(tuned))}."
            )
    return _at_end(targets)


def _at_end(targets: Sequence[str]) -> str:
    """Matches whole names whose end, from the start or after a dot, one of the targets matches."""
    return rf"(?:.*\.)?(?:{'|'.join(f'(?:{target})' for target in targets)})"


def _matches(targets: str | list[str] | set[str] | None, name: str) -> bool:
    """As peft does: a text is a regular expression, a list holds ends of names."""
    if isinstance(targets, str):
        return re.fullmatch(targets, name) is not None
    return name.endswith(tuple(targets or ()))


def _kinds(names: set[str]) -> list[str]:
    """The names without numbers of blocks, each once."""
    return sorted({re.sub(r"\.\d+\.", ".*.", name) for name in names})


def write_trained(
    model: UnifiedModel, folder: Path, weights: dict[str, torch.Tensor] | None = None
) -> None:
    """Save a LoRA in peft's format, and full weights as the adapter's plain checkpoint folder.

    ``weights`` replaces the module's own weights, for those that are sharded over ranks.
    """
    if isinstance(model.module, PeftModel):
        model.module.save_pretrained(str(folder), state_dict=weights)
    else:
        model.save(folder, weights)
