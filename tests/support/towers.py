"""Tiny random CLIP, SigLIP and Inception networks in the real file formats."""

from pathlib import Path

import torch
from tokenizers.processors import TemplateProcessing
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPProcessor,
    PreTrainedTokenizerFast,
    SiglipConfig,
    SiglipImageProcessor,
    SiglipModel,
    SiglipProcessor,
)

from mm_cca.demo.small_emu3 import bpe
from tests.support import runs

CONTEXT = 16
SIDE = 16


def _tokenizer() -> PreTrainedTokenizerFast:
    # With end token id 2 transformers would pool as for CLIP's first config, which was wrong.
    special = ["<pad>", "<unused>", "<start>", "<end>"]
    backend = bpe(runs.CAPTIONS, 300, special)
    backend.post_processor = TemplateProcessing(
        single="<start> $A <end>",
        special_tokens=[(name, backend.token_to_id(name)) for name in ("<start>", "<end>")],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<start>",
        eos_token="<end>",
        pad_token="<pad>",
        model_max_length=CONTEXT,
    )


def write_hf(folder: Path, kind: str) -> Path:
    """A tiny random ``clip`` or ``siglip`` with its processor."""
    torch.manual_seed(0)
    words = _tokenizer()
    tower = {
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    text = tower | {
        "vocab_size": len(words),
        "max_position_embeddings": CONTEXT,
        "bos_token_id": words.bos_token_id,
        "eos_token_id": words.eos_token_id,
        "pad_token_id": words.pad_token_id,
    }
    vision = tower | {"image_size": SIDE, "patch_size": 8}
    if kind == "clip":
        config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=24)
        size = {"height": SIDE, "width": SIDE}
        pixels = CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size=size)
        model, processor = CLIPModel(config), CLIPProcessor(pixels, words)
    else:
        text["projection_size"] = 32
        pixels = SiglipImageProcessor(size={"height": SIDE, "width": SIDE})
        model = SiglipModel(SiglipConfig(text_config=text, vision_config=vision))
        processor = SiglipProcessor(pixels, words)
    # With transformers' small initialisation all features would be nearly equal.
    for name, parameter in model.named_parameters():
        if parameter.ndim >= 2 and "layer_norm" not in name:
            torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


class _RandomInception(FeatureExtractorInceptionV3):
    """torch-fidelity's network without its weights, which it would download."""

    def load_state_dict(self, state_dict: dict, strict: bool = True, assign: bool = False):
        return None


def write_inception(path: Path) -> Path:
    """The state dict of torch-fidelity's Inception with random weights."""
    empty = path.with_suffix(".empty")
    torch.save({}, empty)
    torch.manual_seed(0)
    model = _RandomInception(
        "inception-v3-compat", ["2048"], feature_extractor_weights_path=str(empty)
    )
    empty.unlink()
    # With the default initialisation the signal would vanish over so many layers.
    for module in model.modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    torch.save(model.state_dict(), path)
    return path
