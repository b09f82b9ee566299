"""A tiktoken file in stock classes gives tiktoken's ids: against its algorithm, written out."""

import unicodedata
from base64 import b64encode
from itertools import pairwise
from pathlib import Path

import pytest
import regex

from mm_cca.adapters.loading import CheckpointError
from mm_cca.adapters.tiktoken_bpe import QWEN_SPLIT, read_tiktoken

SPECIAL = ["<|end|>", "<|image start|>"]
TEXTS = [
    "abc bcd xyz abcabc",
    "don't DON'T it's I'LL",
    "12 345 6*7",
    "café cafe\u0301 żółć",
    "a<|image start|>4*6<|end|>b <|not special|>",
    "  leading   spaces\n\nnew\r\nlines\t",
    "你好 😀👨‍👩‍👧",
    "aaaaaaa aaaa aaa",
    "",
]


def write(file: Path, tokens: list[bytes]) -> Path:
    lines = [f"{b64encode(token).decode()} {rank}" for rank, token in enumerate(tokens)]
    file.write_text("\n".join(lines) + "\n")
    return file


def naive(text: str, tokens: list[bytes]) -> list[int]:
    """What tiktoken does: split, look words up, else merge the pair of the lowest rank."""
    ranks = {token: rank for rank, token in enumerate(tokens)}
    ids: list[int] = []
    for part in regex.split("(" + "|".join(map(regex.escape, SPECIAL)) + ")", text):
        if part in SPECIAL:
            ids.append(len(tokens) + SPECIAL.index(part))
            continue
        for word in regex.findall(QWEN_SPLIT, unicodedata.normalize("NFC", part)):
            pieces = [bytes([byte]) for byte in word.encode()]
            if word.encode() in ranks:
                pieces = [word.encode()]
            while True:
                pairs = [a + b for a, b in pairwise(pieces)]
                known = [(ranks[pair], i) for i, pair in enumerate(pairs) if pair in ranks]
                if not known:
                    break
                _, i = min(known)
                pieces[i : i + 2] = [pieces[i] + pieces[i + 1]]
            ids += [ranks[piece] for piece in pieces]
    return ids


BYTES = [bytes([byte]) for byte in range(256)]
MERGED = [b"bc", b"ab", b"abc", b"aa", b"aaaa", b" l", b"do", b"don", b"xyz", "é".encode(), b" x"]


def test_ids_worked_out_by_hand(tmp_path: Path):
    """ "bc" comes before "ab", and "xyz" is found although no two of its parts are a token."""
    tokenizer = read_tiktoken(write(tmp_path / "x.tiktoken", BYTES + MERGED), SPECIAL)
    a, z = ord("a"), ord("z")
    assert tokenizer.encode("abcz").ids == [258, z]
    assert tokenizer.encode("abab").ids == [257, 257]
    assert tokenizer.encode("zbc").ids == [z, 256]
    assert tokenizer.encode("xyz").ids == [264]
    assert tokenizer.encode("aaaaa").ids == [260, a]
    assert tokenizer.encode("12").ids == [ord("1"), ord("2")]
    assert tokenizer.encode("e\u0301").ids == [265], "not brought into the form NFC"
    assert tokenizer.encode("<|image start|>ab").ids == [256 + len(MERGED) + 1, 257]


@pytest.mark.parametrize("text", TEXTS)
def test_ids_are_those_of_the_algorithm(tmp_path: Path, text: str):
    tokenizer = read_tiktoken(write(tmp_path / "x.tiktoken", BYTES + MERGED), SPECIAL)
    ids = tokenizer.encode(text).ids
    assert ids == naive(text, BYTES + MERGED)
    assert tokenizer.decode(ids, skip_special_tokens=False) == unicodedata.normalize("NFC", text)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("YQ== 0\nYg== 2\n", "not numbered 0 to n"),
        ("YQ== 0\nYQ== 1\n", "not numbered 0 to n"),
        ("", "not numbered 0 to n"),
        ("YQ==\n", "not a tiktoken file"),
        ("version https://git-lfs.github.com/spec/v1\n", "not a tiktoken file"),
        ("YQ== x\n", "not a tiktoken file"),
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, content: str, told: str):
    (tmp_path / "x.tiktoken").write_text(content)
    with pytest.raises(CheckpointError, match=rf"x\.tiktoken.*{told}"):
        read_tiktoken(tmp_path / "x.tiktoken", SPECIAL)
