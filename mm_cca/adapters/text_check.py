"""Does the text tokenizer of a checkpoint make ids that the checkpoint has?"""

from collections.abc import Sequence
from typing import Any

from mm_cca.adapters.base import UnifiedModel
from mm_cca.adapters.checkpoint_files import CheckpointError, reading_checkpoint

SAMPLE = "a red owl, 2 cafés"


def refuse_useless_tokenizer(model: UnifiedModel) -> None:
    """Tokenise a text.

    Raises:
        CheckpointError: it fails, gives nothing, or gives an id beyond the vocabulary.
    """
    try:
        with reading_checkpoint():
            ids = model.text_ids([SAMPLE])[0]
            rows = model.text_head().weight.shape[0]
            wrong = [i for i in ids if not isinstance(i, int) or not 0 <= i < rows]
    except CheckpointError as error:
        raise CheckpointError(
            f"the text tokenizer can't read {SAMPLE!r} ({error}): download tokenizer.json and "
            "tokenizer_config.json again"
        ) from None
    if len(ids) < 2 or wrong:
        found = f"the id {wrong[0]!r}" if wrong else f"the ids {ids}"
        raise CheckpointError(
            f"the text tokenizer gives {SAMPLE!r} {found}, but the vocabulary of the weights has "
            f"{rows} tokens: it is another model's. Download tokenizer.json and "
            "tokenizer_config.json again"
        )


def refuse_split_tokens(tokenizer: Any, tokens: Sequence[str]) -> None:
    """The tokens that an adapter writes into prompts are one id each.

    Raises:
        CheckpointError: one would be cut into several, as where tokenizer.json no longer lists it
            in added_tokens.
    """
    with reading_checkpoint():
        rows = tokenizer(list(tokens), add_special_tokens=False)["input_ids"]
    split = [token for token, ids in zip(tokens, rows, strict=True) if len(ids) != 1]
    if split:
        raise CheckpointError(
            f"the text tokenizer cuts {', '.join(map(repr, split))} into several tokens: download "
            "tokenizer.json again, whose added_tokens must list them"
        )
