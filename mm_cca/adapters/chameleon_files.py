"""Which of Chameleon's kinds a folder is, and its tokenizer, read before the weights.

Meta's Chameleon, Anole and Lumina-mGPT have one model_type, one vocabulary and nearly one set of
weights, but another text around an image: read by the wrong adapter they draw, only badly.
"""

import re
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import LocalEntryNotFoundError
from transformers import PreTrainedConfig, PreTrainedTokenizerFast

from mm_cca.adapters.checkpoint_files import UnreachableError, damaged_file, is_hub_name
from mm_cca.adapters.loading import CheckpointError, expect_family, reading_checkpoint, shapes
from mm_cca.adapters.vocabulary import refuse_without_vocabulary_map
from mm_cca.config.shipped import LUMINA_TOKENIZER
from mm_cca.errors import UserError

LUMINA_KEYS = ("mask_image_logits", "z_loss_weight")
"""Keys of config.json that only Lumina-mGPT's own classes write."""
QUERY_NORM = "model.layers.0.self_attn.q_norm.weight"


def refuse_other_kind(path: str, *, lumina: bool) -> dict[str, Any]:
    """The content of config.json, if the folder or hub name is of the kind that is expected.

    Args:
        lumina: whether Lumina-mGPT is expected, or Chameleon and Anole.

    Raises:
        UserError: the other kind, or another family.
        CheckpointError: config.json is missing or damaged, or a file of the weights is.
    """
    expect_family(path, "chameleon")
    with reading_checkpoint():
        config: dict[str, Any] = PreTrainedConfig.get_config_dict(path)[0]
    sign = _sign_of_lumina(config, path)
    if lumina and sign is None:
        raise UserError(
            f"model.path {path!r} is Chameleon or Anole, not Lumina-mGPT: config.json has none of "
            f"{', '.join(LUMINA_KEYS)}, and q_norm has a row for every head. Set model.adapter to "
            "chameleon."
        )
    if not lumina and sign is not None:
        raise UserError(
            f"model.path {path!r} is Lumina-mGPT, not Chameleon or Anole: {sign}. Set "
            "model.adapter to lumina-mgpt."
        )
    return config


def is_lumina(config: dict[str, Any], path: str) -> bool:
    """Whether a config.json of Chameleon's classes, and its folder, are Lumina-mGPT's."""
    return _sign_of_lumina(config, path) is not None


def _sign_of_lumina(config: dict[str, Any], path: str) -> str | None:
    """What shows that it is Lumina-mGPT.

    The shapes of weights are looked at only if config.json shows nothing, and only in a folder: a
    hub name would be downloaded whole.
    """
    keys = [key for key in LUMINA_KEYS if key in config]
    if keys:
        return f"config.json has {keys[0]}"
    name = re.search(r"\w*XLLMX\w*", str(config.get("architectures")))
    if name:
        return f"config.json has the architecture {name[0]}"
    rows = rows_of_query_norm(path) if Path(path).is_dir() else None
    heads = config.get("num_attention_heads", 32)
    if rows is not None and rows == config.get("model_parallel_size", 1) and rows != heads:
        return f"{QUERY_NORM} has {rows} rows for {heads} heads"
    return None


def rows_of_query_norm(path: str) -> int | None:
    """Rows of the first q_norm: one per head, or in Lumina-mGPT one per rank of its training.

    None if the folder has no safetensors files, or no such weight of two dimensions.
    """
    shape = shapes(path).get(QUERY_NORM, ())
    return shape[0] if len(shape) == 2 else None


def _downloaded(source: str, key: str) -> str:
    """The small files of a hub name. One call, which fails at once where there is no network."""
    told = (
        f"the tokenizer of {key} {source!r} can't be read by this adapter: {{}}. Set "
        "model.tokenizer to a folder or hub name that holds tokenizer.json and "
        f"tokenizer_config.json, such as {LUMINA_TOKENIZER}, which has Chameleon's."
    )
    if not is_hub_name(source):
        raise UserError(told.format("there is no such folder"))
    try:
        return snapshot_download(source, allow_patterns=["*.json", "*.jinja"])
    except LocalEntryNotFoundError as error:  # no network, and never downloaded
        raise UnreachableError(told.format(str(error).splitlines()[0])) from error
    except (OSError, ValueError) as error:
        raise UserError(told.format(str(error).splitlines()[0])) from error


def tokenizer_from(source: str, path: str) -> PreTrainedTokenizerFast:
    """The tokenizer of a folder or hub name, exactly as its tokenizer.json says.

    The class is named because tokenizer_config.json says LlamaTokenizer, whose own way to split
    text some versions of transformers use instead of the file's.

    Args:
        source: where the tokenizer is.
        path: the checkpoint, whose config.json must give the image tokens the same ids.

    Raises:
        UserError: no tokenizer there, or another model's, or no image tokens in config.json.
        CheckpointError: config.json is missing or damaged.
    """
    key = "model.path" if source == path else "model.tokenizer"
    folder = source if Path(source).is_dir() else _downloaded(source, key)
    try:
        with reading_checkpoint():
            tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    except CheckpointError as error:
        told = damaged_file(folder) or error
        raise UserError(
            f"the tokenizer of {key} {source!r} can't be read by this adapter: {told}\nOr set "
            "model.tokenizer to a folder or hub name that holds tokenizer.json and "
            "tokenizer_config.json, such as Alpha-VLLM/Lumina-mGPT-7B-768, which has Chameleon's."
        ) from error
    with reading_checkpoint():
        expected: Any = PreTrainedConfig.get_config_dict(path)[0].get("vocabulary_map")
    refuse_without_vocabulary_map(expected)
    found = tokenizer.get_vocab()
    codes = [name for name in expected if name.startswith("IMGIMG")]
    wrong = [name for name in codes if found.get(name) != expected[name]]
    if wrong:
        raise UserError(
            f"the tokenizer of {key} {source!r} is not this checkpoint's: {wrong[0]} is "
            f"{found.get(wrong[0])} there and {expected[wrong[0]]} in config.json of {path!r} "
            f"({len(wrong)} image tokens differ). Set model.tokenizer to Chameleon's tokenizer."
        )
    return tokenizer
