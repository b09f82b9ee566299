"""Emu3's hub tokenizer is repaired; what has no fault, or another vocabulary, is left alone."""

import json
import logging
import unicodedata
from itertools import pairwise
from pathlib import Path

import pytest
import regex
from transformers import Emu3Processor

from mm_cca import load_adapter
from mm_cca.adapters.emu3_tokenizer import SPLIT, with_emu3_words
from mm_cca.config.shipped import shipped
from mm_cca.testing.tiny import write_tiny

TEXTS = [
    "a blue-eyed owl",
    "a portrait of young girl. masterpiece, film grained, best quality.",
    "",
    "  two  spaces, then a tab\tand\n\n two\r\nlines ",
    "café, cafe\u0301, na\u00efve: \u212b and \ufb01",
    "don't I'LL they've it'S",
    "35mm, f/1.8, 2024-10-21, \u0663\u0664, \u00bd",
    "中文提示词，一只猫。 日本語 한국어 \u1112\u1161\u11ab",
    "😀😃 \u2764\ufe0f x_y-z+w=v #hash @at (a) [b]",
    "Привет, мир! שלום नमस्ते \u00a0\u200bend",
    *[f"{a}{b}eyed owl{c}" for a in ("a", "the ", "x\n") for b in "-' .\t(é9" for c in "!?\n -"],
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny") / "emu3"
    write_tiny("emu3", folder, side=2)
    return folder


def _naive_ids(text: str, folder: Path) -> list[int]:
    """tiktoken's way, slowly: NFC, words by Emu3's pattern, then the merge of lowest rank first."""
    stored = json.loads((folder / "tokenizer.json").read_text())["model"]
    ranks = {merge: rank for rank, merge in enumerate(stored["merges"])}
    ids = []
    for word in regex.findall(SPLIT, unicodedata.normalize("NFC", text)):
        parts = [_as_stored(byte) for byte in word.encode()]
        while True:
            pairs = [(ranks.get(f"{a} {b}"), i) for i, (a, b) in enumerate(pairwise(parts))]
            found = sorted((rank, i) for rank, i in pairs if rank is not None)
            if not found:
                break
            i = found[0][1]
            parts[i : i + 2] = [parts[i] + parts[i + 1]]
        ids += [stored["vocab"][part] for part in parts]
    return ids


def _as_stored(byte: int) -> str:
    """GPT-2's letters for bytes: itself where printable, else the next unused after 255."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    if byte in shown:
        return chr(byte)
    return chr(256 + [b for b in range(256) if b not in shown].index(byte))


def test_the_repaired_ids_are_tiktokens(folder: Path):
    stock = Emu3Processor.from_pretrained(folder).tokenizer
    wrong = [t for t in TEXTS if stock(t)["input_ids"] != _naive_ids(t, folder)]
    assert "a blue-eyed owl" in wrong
    ours = with_emu3_words(stock, "x")
    assert [t for t in TEXTS if ours(t)["input_ids"] != _naive_ids(t, folder)] == []
    assert len(TEXTS) > 100


def test_special_tokens_and_sizes_of_the_prompt_stay(folder: Path):
    model = load_adapter("emu3", str(folder))
    (ids,) = model.prompt_ids(["a blue-eyed owl"], (2, 3))
    vocabulary = Emu3Processor.from_pretrained(folder).tokenizer.get_vocab()
    size = _naive_ids("2*3", folder)
    expected = [
        vocabulary["<|extra_203|>"],
        *_naive_ids("a blue-eyed owl", folder),
        vocabulary["<|image start|>"],
        *size,
        vocabulary["<|image token|>"],
    ]
    assert ids == expected
    assert model.pad_id == vocabulary["<|endoftext|>"]


def test_it_says_what_was_repaired(folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    path = str(folder)
    with caplog.at_level(logging.WARNING):
        load_adapter("emu3", path).save(tmp_path)
        load_adapter("emu3", path)
    told = [r.getMessage() for r in caplog.records if "repaired" in r.getMessage()]
    assert len(told) <= 1  # an earlier test of the same folder may have been told
    with caplog.at_level(logging.WARNING):
        caplog.clear()
        with_emu3_words(Emu3Processor.from_pretrained(folder).tokenizer, "a/new/path")
    assert "a/new/path" in caplog.text
    assert "the split into words" in caplog.text
    assert "the normalisation to NFC" in caplog.text
    with caplog.at_level(logging.WARNING):
        caplog.clear()
        load_adapter("emu3", str(tmp_path))
    assert "repaired" not in caplog.text


def test_saving_writes_the_repaired_tokenizer(folder: Path, tmp_path: Path):
    model = load_adapter("emu3", str(folder))
    model.save(tmp_path)
    stock = Emu3Processor.from_pretrained(tmp_path).tokenizer
    assert [t for t in TEXTS if stock(t)["input_ids"] != _naive_ids(t, folder)] == []
    again = load_adapter("emu3", str(tmp_path))
    assert again.prompt_ids(TEXTS, (2, 2)) == model.prompt_ids(TEXTS, (2, 2))
    kept = Emu3Processor.from_pretrained(folder).tokenizer
    for name in ("bos_token", "eos_token", "pad_token", "image_token", "boi_token", "eof_token"):
        assert getattr(stock, name) == getattr(kept, name), name
    assert stock.padding_side == "left"


def test_the_emoji_checkpoint_is_left_alone(caplog: pytest.LogCaptureFixture):
    """Its vocabulary was learned with GPT-2's words, so they are right for it."""
    path = shipped("emu3-emoji")
    stock = Emu3Processor.from_pretrained(path).tokenizer
    assert with_emu3_words(stock, path) is stock
    assert "repaired" not in caplog.text
    ours = load_adapter("emu3", path)
    prompts = ["a blue-eyed owl", "cafe\u0301"]
    texts = [f"<|extra_203|>{p}<|image start|>2*2<|image token|>" for p in prompts]
    assert ours.prompt_ids(prompts, (2, 2)) == stock(texts, add_special_tokens=False)["input_ids"]
