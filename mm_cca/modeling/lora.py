"""A LoRA: attached, scaled, switched and written."""

import json
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer

from mm_cca.adapters.base import UnifiedModel


def dial_lora(module: PeftModel, dial: float) -> None:
    """Multiply what every LoRA layer adds by ``dial``, in place."""
    for layer in module.modules():
        if isinstance(layer, LoraLayer):
            layer.scale_layer(dial)


def bake_lora(folder: Path, dial: float) -> None:
    """Write ``dial`` into a saved LoRA, so that plain peft loads what ``dial_lora`` makes.

    alpha is what peft's scale is computed from; B would have to be rounded.
    """
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text())
    config["lora_alpha"] *= dial
    special = config.get("alpha_pattern") or {}
    config["alpha_pattern"] = {layer: alpha * dial for layer, alpha in special.items()}
    path.write_text(json.dumps(config, indent=2) + "\n")


def attach_lora(model: UnifiedModel, *, rank: int, alpha: int) -> None:
    """Put a fresh LoRA on the layers that the adapter names; everything else is frozen."""
    config = LoraConfig(
        r=rank, lora_alpha=alpha, lora_dropout=0.0, target_modules=model.lora_targets()
    )
    # The frozen image tokenizer has linear layers too; peft matches names, so it is excluded here.
    inside = {id(layer) for part in model.frozen() for layer in part.modules()}
    config.exclude_modules = [n for n, m in model.module.named_modules() if id(m) in inside]
    model.module = get_peft_model(model.module, config)  # type: ignore[arg-type]


def write_trained(
    model: UnifiedModel, folder: Path, weights: dict[str, torch.Tensor] | None = None
) -> None:
    """A LoRA as peft's own files, anything else as the adapter's plain checkpoint folder.

    ``weights`` stand in for the module's own where those are sharded over ranks.
    """
    if isinstance(model.module, PeftModel):
        model.module.save_pretrained(str(folder), state_dict=weights)
    else:
        model.save(folder, weights)


def set_lora(module: PeftModel, dial: float) -> None:
    """Whatever the dial was before."""
    for layer in module.modules():
        if isinstance(layer, LoraLayer):
            for adapter in layer.scaling:
                layer.set_scale(adapter, dial)
