"""What the model card of an engine's folder says: how to serve it, and how to ask for an image."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mm_cca.cli.commands.model_card import dial_in_words

PLUGIN = Path(__file__).parents[2] / "vllm_plugin"
"""The distribution ``mm_cca_vllm``, beside the package and no part of what it imports."""
NEEDS_PLUGIN = (
    "No stock class has Janus's head of image codes. Install `mm_cca_vllm` in the environment of "
    "the engine first: `pip install mm_cca/vllm_plugin` in a copy of mm_cca's repository. It draws "
    "image codes only, whether or not a request has the grammar."
)
ROW_ENDS = (
    "**Row ends are not trained**: the loss is on image codes only. A client that only allows "
    "image ids draws sheared pictures, so send the grammar with every request; it also ends the "
    "image."
)
CODES_ONLY = (
    "Send the grammar with every request: it allows image codes only, and ends the image. Without "
    "it the model may write text."
)
CODES = (
    "Codes become pixels with the base's image tokenizer, not in the engine: `mm-cca serve RUN` "
    "does both and answers `/v1/images/generations` with PNGs; `mm-cca sample RECIPE "
    "sample.engine=[http://HOST:8000]` draws an arm of a recipe."
)


def how_to_serve(
    arguments: Sequence[str], facts: Mapping[str, Any], *, needs_plugin: bool, dial: float
) -> str:
    """The sections of the card between what the model is and its licence.

    Args:
        arguments: of vLLM's server, without the folder.
        facts: the content of ``image_layout.json``.
        needs_plugin: whether ``mm_cca_vllm`` is needed.
        dial: of the weights.
    """
    is_rows = len(facts["slots"]) > 1
    notes = [NEEDS_PLUGIN] if needs_plugin else []
    notes += [ROW_ENDS if is_rows else CODES_ONLY]
    size = "x".join(str(side) for side in facts["image_size"])
    parts = [
        "" if dial == 1.0 else f"\n\n{dial_in_words(dial)}",
        "\n\n## Serve it\n\nThis folder is for a stock engine, tried with vLLM 0.32; in it:\n\n",
        f"```\nvllm serve . {' '.join(arguments)}\n```\n\n",
        "\n\n".join(notes),
        f"\n\nAn image of {size} pixels (height x width) is {facts['num_slots']} tokens. ",
        f"`image_layout.json` holds its layout, the ids of the codes, and this grammar:\n\n```\n"
        f"{facts['grammar'].rstrip()}\n```\n\n",
        _request(facts),
        CODES,
    ]
    return "".join(parts)


def _request(facts: Mapping[str, Any]) -> str:
    if not facts["has_chat_template"]:
        return (
            "A request must hold token ids as its prompt; `image_layout.json` has an example.\n\n"
        )
    sampling = {name: value for name, value in facts["sampling"].items() if value is not None}
    body = {
        "model": facts["served_name"],
        "messages": [{"role": "user", "content": facts["example"]["prompt"]}],
        "max_tokens": facts["num_slots"],
        "return_token_ids": True,
        "seed": 1,
        **sampling,
        "structured_outputs": {"grammar": facts["grammar"]},
    }
    text = json.dumps(body, indent=1, ensure_ascii=False)
    kwargs = ""
    if facts["size_in_prompt"]:
        kwargs = (
            " Another size needs `chat_template_kwargs` with `height` and `width` in pixels, and "
            "that size's grammar."
        )
    return (
        "The chat template makes the prompt's ids of the last message:\n\n"
        f"```\nPOST /v1/chat/completions\n{text}\n```\n\n"
        f"The answer's `token_ids` are the image's slots.{kwargs} "
    )
