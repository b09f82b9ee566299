"""The grammar of every family's layout, followed slot by slot by llguidance."""

from pathlib import Path

import llguidance
import numpy as np
import pytest

from mm_cca.adapters import load_adapter
from mm_cca.adapters.base import FREE, ImageLayout, rows_with_ends
from mm_cca.sampling.engine_grammar import grammar_of
from mm_cca.testing.tiny import FAMILIES, image_tokenizer_of, tokenizer_of

STOP = 3
EMU3_CODES = np.arange(151_854, 184_622)
CHAMELEON_CODES = np.random.default_rng(0).permutation(np.arange(4, 8196))
FULL = {
    # name: layout, ids of the codes, size of the vocabulary
    "emu3": (rows_with_ends((90, 90), 151_846), EMU3_CODES, 184_622),
    "emu3p5": (rows_with_ends((64, 64), 151_847), np.arange(151_854, 282_926), 282_926),
    "chameleon": (ImageLayout(np.full(1024, FREE)), CHAMELEON_CODES, 65_536),
    "lumina-mgpt": (rows_with_ends((64, 64), 8803), CHAMELEON_CODES, 65_536),
    "liquid": (ImageLayout(np.full(1024, FREE)), np.arange(256_000, 264_192), 264_192),
    "simplear": (ImageLayout(np.full(4096, FREE)), np.arange(151_669, 215_669), 215_680),
    "janus": (ImageLayout(np.full(576, FREE)), np.arange(102_400, 118_784), 118_784),
}


class Words:
    """A vocabulary for llguidance: the 256 bytes, then words of their own."""

    bos_token_id = None
    eos_token_id = STOP
    special_token_ids = (STOP,)

    def __init__(self, size: int) -> None:
        self.tokens = [bytes([i]) if i < 256 else b"<%d>" % i for i in range(size)]

    def __call__(self, text: str) -> list[int]:
        return list(text.encode())


def matcher(grammar: str, size: int) -> llguidance.LLMatcher:
    words = llguidance.LLTokenizer(llguidance.TokenizerWrapper(Words(size)))
    built = llguidance.LLMatcher(words, grammar)
    assert not built.get_error()
    return built


def bitmask(ids: list[int] | np.ndarray, size: int) -> bytes:
    """Tokens as llguidance packs those it allows: one bit each, in words of 32, one to spare."""
    bits = np.zeros((size // 32 + 1) * 32, dtype=bool)
    bits[ids] = True
    return np.packbits(bits, bitorder="little").tobytes()


def follow(layout: ImageLayout, ids: np.ndarray, size: int) -> None:
    """Every slot allows its own tokens and no other; after the last the image is over."""
    built = matcher(grammar_of(layout, ids), size)
    codes, drawn = bitmask(ids, size), np.random.default_rng(1).choice(ids, len(layout.tokens))
    for slot, forced in enumerate(layout.tokens.tolist()):
        assert not built.is_accepting(), f"may end before slot {slot}"
        expected = codes if forced == FREE else bitmask([forced], size)
        assert (built.compute_bitmask() == expected) is True, f"slot {slot}"
        token = int(drawn[slot]) if forced == FREE else forced
        assert built.try_consume_tokens([token]) == 1, f"slot {slot}"
    assert built.is_accepting()
    assert (built.compute_bitmask() == bitmask([STOP], size)) is True


@pytest.mark.parametrize("family", FULL)
def test_every_slot_at_the_real_size(family: str) -> None:
    follow(*FULL[family])


@pytest.mark.parametrize("family", FAMILIES)
def test_every_slot_of_a_familys_own_layout(family: str, folders: Path) -> None:
    path = folders / family
    model = load_adapter(
        family,
        str(path),
        image_tokenizer=image_tokenizer_of(family, path),
        tokenizer=tokenizer_of(family, path),
    )
    ids = model.engine_codes()
    assert ids.shape == (model.codebook_size,)
    layout = model.layout((4, 4))
    follow(layout, ids, int(max(ids.max(), layout.tokens.max())) + 20)


@pytest.mark.parametrize(
    ("slot", "wrong"),
    [
        (0, 8),  # a row end instead of the first code
        (0, 1999),  # text
        (0, 2512),  # the id after the last code
        (8, 2000),  # a code instead of a row end
        (8, 9),  # another forced token
        (9, 8),  # two row ends
        (70, 8),  # a row end instead of the last code
        (70, STOP),  # over one code too early
        (71, 2000),  # a code too many
        (71, 8),  # a row end after the last row
    ],
)
def test_a_wrong_token_is_refused(slot: int, wrong: int) -> None:
    layout = rows_with_ends((8, 8), 8)
    built = matcher(grammar_of(layout, np.arange(2000, 2512)), 2600)
    right = [2000 if token == FREE else token for token in layout.tokens.tolist()]
    assert built.try_consume_tokens(right[:slot]) == slot
    assert built.validate_tokens([wrong]) == 0


def test_codes_that_are_no_block() -> None:
    ids = np.array([2600, 300, 2001, 2000, 2002])
    assert "<[300,2000-2002,2600]>" in grammar_of(rows_with_ends((2, 2), 8), ids)
    follow(rows_with_ends((2, 2), 8), ids, 2700)


@pytest.mark.parametrize(
    "tokens",
    [
        [7, 7, 9, FREE, FREE, 8, FREE, FREE, 8, 8, FREE],  # forced first, rows of unequal ends
        [FREE, 8, FREE, 8, FREE, 8],  # ends with a forced token
        [FREE, FREE, 8, FREE, 8, FREE, FREE, 8, FREE],
        [FREE],
    ],
)
def test_layouts_that_no_family_has_yet(tokens: list[int]) -> None:
    follow(ImageLayout(np.array(tokens)), np.arange(300, 310), 400)


def test_the_text_of_emu3s_real_image() -> None:
    assert grammar_of(rows_with_ends((90, 90), 151_846), EMU3_CODES) == (
        "start: (code{90} <[151846]>){89} code{90}\ncode: <[151854-184621]>\n"
    )
    assert grammar_of(rows_with_ends((1, 3), 8), EMU3_CODES).startswith("start: code{3}\n")


def test_nothing_to_draw() -> None:
    with pytest.raises(ValueError, match="one free slot"):
        grammar_of(ImageLayout(np.array([8])), EMU3_CODES)
    with pytest.raises(ValueError, match="one code"):
        grammar_of(rows_with_ends((2, 2), 8), np.array([], dtype=np.int64))
