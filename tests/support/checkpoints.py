"""The weights of a checkpoint folder, in one file or in shards, and how to replace them."""

import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import ChameleonConfig, ChameleonForConditionalGeneration

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    weights: dict[str, torch.Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        weights |= load_file(file)
    assert weights, f"no weights in {folder}"
    return weights


def copy_with(source: Path, target: Path, weights: dict[str, torch.Tensor]) -> Path:
    """A copy of the folder that holds these weights, in one file."""
    shutil.copytree(source, target, dirs_exist_ok=True)
    for file in [*target.glob("*.safetensors"), *target.glob(INDEX)]:
        file.unlink()
    save_file(weights, target / SINGLE, metadata={"format": "pt"})
    return target


def changed_weights(source: Path, target: Path, *, lack: str = "", cut: str = "") -> Path:
    """A copy that lacks a weight, or has one that is a row shorter."""
    weights = weights_of(source)
    assert lack in weights or cut in weights
    kept = {n: w[:-1].clone() if n == cut else w for n, w in weights.items() if n != lack}
    return copy_with(source, target, kept)


def last_weight_file(folder: Path) -> Path:
    return sorted(folder.glob("*.safetensors"))[-1]


def stock_lumina(folder: Path, vqgan: Path) -> ChameleonForConditionalGeneration:
    """Stock Chameleon with the weights of a Lumina-mGPT folder, in float32.

    By hand: rows of norms repeated for the heads that share them, and an encoder from Meta's file
    if the folder has none.
    """
    config = ChameleonConfig.from_pretrained(folder)
    weights = weights_of(folder)
    if not any("vqmodel" in name for name in weights):
        meta = torch.load(vqgan)["state_dict"]
        weights |= {f"model.vqmodel.{name}": weight for name, weight in meta.items()}
    heads = config.num_attention_heads
    for name, weight in weights.items():
        if ".q_norm." in name or ".k_norm." in name:
            each = heads // len(weight)
            weights[name] = torch.stack([weight[head // each] for head in range(heads)])
    model = ChameleonForConditionalGeneration(config).float()
    kept = {n: w for n, w in weights.items() if not n.startswith("model.vqmodel.decoder.")}
    model.load_state_dict(kept)
    return model.eval()
