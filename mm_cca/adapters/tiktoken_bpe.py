"""A tokenizer published as a tiktoken file, in stock classes: no code of its authors is run.

A tiktoken file is a list of byte strings in order of merging, and says nothing else: how text is
split into words, its Unicode form and the special tokens are in the authors' Python class, which
transformers would have to download and run. Here they are arguments.
"""

from base64 import b64decode
from collections.abc import Sequence
from pathlib import Path

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
)
from transformers.convert_slow_tokenizer import bytes_to_unicode

from mm_cca.adapters.loading import CheckpointError

QWEN_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""How Qwen's tokenizers split text into words; every digit is a word."""


def read_tiktoken(file: Path, special: Sequence[str], split: str = QWEN_SPLIT) -> Tokenizer:
    """The tokenizer of a tiktoken file: NFC, split into words, byte-level BPE.

    Args:
        file: lines of a token in base64 and its number.
        special: special tokens; their ids follow those of the file.
        split: regular expression of a word.

    Raises:
        CheckpointError: a line is something else, or the numbers are not 0, 1, 2 ...
    """
    try:
        lines = [line.split() for line in file.read_bytes().splitlines() if line]
        ranks = {b64decode(token, validate=True): int(number) for token, number in lines}
    except ValueError as error:
        raise CheckpointError(
            f"{file} is not a tiktoken file ({error}): download it again"
        ) from error
    if sorted(ranks.values()) != list(range(len(lines))) or not lines:
        raise CheckpointError(
            f"{file} is damaged: its {len(lines)} tokens are not numbered 0 to n. Download it again"
        )
    vocabulary = {_text(token): rank for token, rank in ranks.items()}
    # tiktoken looks a whole word up before it merges anything.
    bpe = models.BPE(vocabulary, _merges(ranks), ignore_merges=True)
    tokenizer = Tokenizer(bpe)
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(split), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(x, normalized=False, special=True) for x in special])
    return tokenizer


def _merges(ranks: dict[bytes, int]) -> list[tuple[str, str]]:
    """All pairs of tokens that make another one, in the order of what they make.

    tiktoken merges the neighbours whose union has the lowest number, whichever two they are.
    """
    merges: list[tuple[str, str]] = []
    for token in sorted(ranks, key=ranks.__getitem__):
        pairs = [(token[:cut], token[cut:]) for cut in range(1, len(token))]
        pairs = [(left, right) for left, right in pairs if left in ranks and right in ranks]
        pairs.sort(key=lambda pair: (ranks[pair[0]], ranks[pair[1]]))
        merges.extend((_text(left), _text(right)) for left, right in pairs)
    return merges


_CHARACTERS: dict[int, str] = bytes_to_unicode()


def _text(token: bytes) -> str:
    """One printable character for every byte, as byte-level BPE writes its tokens."""
    return "".join(_CHARACTERS[byte] for byte in token)
