"""LoRA: attaching, scaling and saving it."""

import json
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer

from mm_cca.adapters.base import UnifiedModel


def dial_lora(module: PeftModel, dial: float) -> None:
    """Set the scale of every LoRA layer to ``dial`` times its trained scale, in place."""
    for layer in module.modules():
        if isinstance(layer, LoraLayer):
            for adapter in layer.scaling:
                layer.set_scale(adapter, dial)


def bake_lora(folder: Path, dial: float) -> None:
    """Apply ``dial`` to a saved LoRA, so that plain peft loads the model that ``dial_lora`` gives.

    It changes alpha, from which peft computes the scale; multiplying B would round its values.
    """
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text())
    config["lora_alpha"] *= dial
    by_layer = config.get("alpha_pattern") or {}
    config["alpha_pattern"] = {layer: alpha * dial for layer, alpha in by_layer.items()}
    path.write_text(json.dumps(config, indent=2) + "\n")


def attach_lora(model: UnifiedModel, *, rank: int, alpha: int) -> None:
    """Attach a new LoRA to the layers that the adapter names; everything else is frozen."""
    targets = model.lora_targets()
    config = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=0.0, target_modules=targets)
    # peft matches layers by the end of their names, and a frozen image tokenizer may have such
    # layers too. It warns of names that exclude nothing, by listing them all.
    frozen = {id(layer) for part in model.frozen() for layer in part.modules()}
    config.exclude_modules = [
        name
        for name, layer in model.module.named_modules()
        if id(layer) in frozen and name.endswith(tuple(targets))
    ] or None
    model.module = get_peft_model(model.module, config)  # type: ignore[arg-type]


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
