"""Janus in DeepSeek's own layout (``model_type`` ``multi_modality``), read into the stock classes.

https://github.com/deepseek-ai/Janus writes it, and so does every fine-tune made with that code.
What is saved after training is transformers' layout.
"""

import json
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from transformers import (
    JanusForConditionalGeneration,
    JanusImageProcessor,
    JanusProcessor,
    PreTrainedTokenizerFast,
)

from mm_cca.adapters.checkpoint_files import refuse_without_tokenizer
from mm_cca.adapters.janus_deepseek_weights import config_of, stock_weights, stored_weights
from mm_cca.adapters.loading import (
    CheckpointError,
    load_module,
    reading_checkpoint,
    refuse_absent_weights,
)

EOS = "<｜end▁of▁sentence｜>"
NAMED_TOKENS = {
    "bos_token": "<｜begin▁of▁sentence｜>",
    "eos_token": EOS,
    "pad_token": "<｜▁pad▁｜>",
    "image_token": "<image_placeholder>",
    "boi_token": "<begin_of_image>",
    "eoi_token": "<end_of_image>",
}
NEEDED_TOKENS = ("bos_token", "eos_token", "pad_token", "boi_token")
PRO_ROLES = ("<|User|>", "<|Assistant|>")
FIRST_ROLES = ("User", "Assistant")
"""Those of Janus-1.3B. DeepSeek's code called their form "deepseek" before Janus-Pro took the name,
and "deepseek_old" since."""


def read_deepseek(
    path: str, dtype: torch.dtype
) -> tuple[JanusForConditionalGeneration, JanusProcessor]:
    """Module and processor of a folder or hub name in DeepSeek's layout.

    Raises:
        CheckpointError: a file is missing or damaged, or a weight or special token is missing.
    """
    with reading_checkpoint():
        folder = _folder(path)
        refuse_absent_weights(str(folder))
        refuse_without_tokenizer(str(folder))
        stored = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        vocabulary = _vocabulary(folder)
        _refuse_absent_tokens(vocabulary)
        tokenizer: Any = PreTrainedTokenizerFast.from_pretrained(
            folder,
            **NAMED_TOKENS,  # type: ignore[arg-type]
        )
        weights = stock_weights(stored_weights(folder))
    roles = _roles(path, folder, stored, vocabulary)
    config = config_of(stored, weights, tokenizer)
    module, _ = load_module(
        JanusForConditionalGeneration, path, config, dtype, in_float32="vqmodel", weights=weights
    )
    tower: Any = config.vision_config
    module.name_or_path = path  # what a saved LoRA names as its base
    settings = module.generation_config
    settings.pad_token_id = tokenizer.pad_token_id
    settings.bos_token_id, settings.eos_token_id = tokenizer.bos_token_id, tokenizer.eos_token_id
    settings.guidance_scale = 5
    boi = tokenizer.convert_tokens_to_ids(NAMED_TOKENS["boi_token"])
    settings.generation_kwargs = {"boi_token_id": boi}
    processor = JanusProcessor(
        _image_processor(folder, tower.image_size),
        tokenizer,
        chat_template=janus_template(roles),
        use_default_system_prompt=True,
        num_image_tokens=tower.num_image_tokens,
    )
    return module, processor


def janus_template(roles: tuple[str, str]) -> str:
    """DeepSeek's form of a conversation as a chat template: user's role, then assistant's."""
    user, assistant = roles
    return (
        "{% for message in messages %}{% set own = message['role'] == 'user' %}"
        f"{{{{ '{user}' if own else '{assistant}' }}}}:"
        "{% set said = namespace(text='') %}{% for part in message['content'] %}"
        "{% set said.text = said.text ~ (part['text'] if part['type'] == 'text' else "
        "'<image_placeholder>\n') %}{% endfor %}{% if said.text | trim %} {{ said.text | trim }}"
        f"{{{{ '\n\n' if own else '{EOS}' }}}}{{% endif %}}{{% endfor %}}"
        f"{{% if add_generation_prompt %}}{assistant}:{{% endif %}}"
    )


def _folder(path: str) -> Path:
    """A local folder with the files; safetensors are preferred where a hub name has both."""
    if Path(path).is_dir():
        return Path(path)
    folder = Path(snapshot_download(path, allow_patterns=["*.json", "*.safetensors"]))
    if not list(folder.glob("*.safetensors")):
        snapshot_download(path, allow_patterns=["*.bin"])
    return folder


def _roles(
    path: str, folder: Path, stored: dict[str, Any], vocabulary: set[str]
) -> tuple[str, str]:
    """Janus-1.3B's or Janus-Pro's; both may call their form "deepseek"."""
    file = folder / "processor_config.json"
    with reading_checkpoint():
        settings = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    form = settings.get("sft_format", "deepseek")
    if form not in ("deepseek", "deepseek_old"):
        raise CheckpointError(
            f"processor_config.json: sft_format is {form!r}; known: deepseek, deepseek_old"
        )
    names = f"{path} {stored.get('_name_or_path', '')}".lower()
    pro = PRO_ROLES[0] in vocabulary and "janus-1.3b" not in names
    return PRO_ROLES if pro and form == "deepseek" else FIRST_ROLES


def _image_processor(folder: Path, size: int) -> JanusImageProcessor:
    """That of the understanding tower: only saved, since the VQ has constants of its own."""
    file = folder / "preprocessor_config.json"
    with reading_checkpoint():
        stored = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
        kept = ("do_normalize", "image_mean", "image_std", "min_size", "rescale_factor")
        return JanusImageProcessor(
            **{name: stored[name] for name in kept if name in stored},
            size={"height": size, "width": size},
        )


def _vocabulary(folder: Path) -> set[str]:
    """What tokenizer.json holds; a loaded tokenizer adds tokens that are asked of it by name."""
    stored = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    return set(stored["model"]["vocab"]) | {token["content"] for token in stored["added_tokens"]}


def _refuse_absent_tokens(vocabulary: set[str]) -> None:
    absent = [NAMED_TOKENS[name] for name in NEEDED_TOKENS if NAMED_TOKENS[name] not in vocabulary]
    if absent:
        raise CheckpointError(
            f"tokenizer.json lacks {', '.join(absent)}: take the tokenizer's files from "
            "deepseek-ai/Janus-Pro-1B, Janus-Pro-7B or Janus-1.3B, whichever it comes from"
        )
