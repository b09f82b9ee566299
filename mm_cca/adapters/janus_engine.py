"""Janus as one table and one head, which an engine can draw with: text ids, then image codes.

The embedding of a code goes through an aligner that reads nothing else, so it becomes a row of the
table after the text. The head of codes is ``Linear, activation, Linear``: the first layer stays as
``image_proj``, the second is ``lm_head``, for codes only. ``vllm_plugin`` has the class that reads
this folder; text is never drawn there. Shapes: see ``adapters/base.py``.
"""

from pathlib import Path
from typing import Any

import torch
from huggingface_hub import save_torch_state_dict
from transformers import JanusForConditionalGeneration, LlamaConfig

from mm_cca.errors import UserError

ARCHITECTURE = "JanusImageForCausalLM"
"""The name under which ``mm_cca_vllm`` registers its class."""
ACTIVATION = "gelu"


@torch.no_grad()
def save_folded(module: JanusForConditionalGeneration, tokenizer: Any, folder: Path) -> None:
    """Write the folder: weights, config.json of a Llama with ``num_image_codes``, tokenizer.

    Raises:
        UserError: the head of codes is not one that the engine's class has.
    """
    inner: Any = module.model
    language, head = inner.language_model, inner.generation_head
    _refuse_other_head(head, int(language.config.hidden_size), inner.vqmodel.config)
    text = language.get_input_embeddings().weight
    codes = torch.arange(head.vision_head.out_features, device=text.device)
    embedded: torch.Tensor = module.prepare_embeddings_for_image_generation(codes)
    weights = {f"model.{name}": tensor for name, tensor in language.state_dict().items()}
    weights["model.embed_tokens.weight"] = torch.cat([text, embedded.to(text.dtype)])
    for name, layer in (("image_proj", head.proj_out), ("lm_head", head.vision_head)):
        weights |= {f"{name}.weight": layer.weight, f"{name}.bias": layer.bias}
    settings: dict[str, Any] = language.config.to_dict() | {
        "vocab_size": len(text) + len(codes),
        "num_image_codes": len(codes),
        "architectures": [ARCHITECTURE],
        "tie_word_embeddings": False,
        "dtype": str(text.dtype).removeprefix("torch."),
    }
    folder.mkdir(parents=True, exist_ok=True)
    LlamaConfig(**settings).save_pretrained(folder)
    # Shared or sliced tensors can't be stored.
    save_torch_state_dict({name: x.contiguous() for name, x in weights.items()}, folder)
    tokenizer.save_pretrained(folder)


def _refuse_other_head(head: Any, hidden: int, config: Any) -> None:
    widths = [head.proj_out.in_features, head.proj_out.out_features, head.vision_head.in_features]
    if widths != [hidden] * 3:
        raise UserError(
            f"this Janus can't be served by an engine: its head of image codes has the widths "
            f"{widths}; allowed: {hidden} throughout, the decoder's hidden_size (vq_config's "
            "projection_dim and image_token_embed_dim)."
        )
    if config.hidden_act != ACTIVATION:
        raise UserError(
            f"this Janus can't be served by an engine: vq_config's hidden_act is "
            f"{config.hidden_act!r}; allowed: {ACTIVATION!r}, all that mm_cca_vllm has."
        )
