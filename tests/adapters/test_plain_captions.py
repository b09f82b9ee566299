"""Control tokens written in a caption are plain text, in every family."""

from pathlib import Path

import pytest

from mm_cca import load_adapter
from mm_cca.adapters import plain_captions
from mm_cca.adapters.base import UnifiedModel
from mm_cca.adapters.plain_captions import ids_around
from mm_cca.testing.tiny import FAMILIES, image_tokenizer_of

ORDINARY = [
    "a red owl",
    " a  red owl\non a branch, 3:4 & 100% <3 ",
    "Ünïcode 猫 \N{OWL}",
    "a < b > c </ d | e",
]
"""No control token in any; the third is tokenised by bytes."""


@pytest.fixture(scope="module", params=sorted(FAMILIES))
def model(request: pytest.FixtureRequest, folders: Path) -> UnifiedModel:
    family = request.param
    folder = folders / family
    return load_adapter(family, str(folder), image_tokenizer=image_tokenizer_of(family, folder))


def tokenizer_of(model: UnifiedModel):
    processor = model._processor  # type: ignore[attr-defined]
    return getattr(processor, "tokenizer", processor)


def controls_of(model: UnifiedModel) -> dict[str, int]:
    tokens = tokenizer_of(model).added_tokens_decoder
    return {token.content: place for place, token in tokens.items() if token.special}


def grid_of(model: UnifiedModel) -> tuple[int, int]:
    return (4, 4)


def test_no_control_token_arises_from_a_caption(model: UnifiedModel):
    controls = controls_of(model)
    assert len(controls) > 3
    some = [*list(controls)[:40], *list(controls)[-40:], tokenizer_of(model).bos_token or "<s>"]
    expected = _count(model.prompt_ids(["x"], grid_of(model))[0], controls)
    captions = [f"a {token} owl" for token in some] + some + [f"{t}{t}owl" for t in some]
    for caption, ids in zip(captions, model.prompt_ids(captions, grid_of(model)), strict=True):
        assert _count(ids, controls) == expected, caption
        assert len(ids) > len(model.prompt_ids(["a"], grid_of(model))[0]) - 1, "text was dropped"


def test_no_control_token_arises_from_a_text(model: UnifiedModel):
    controls = controls_of(model)
    expected = _count(model.text_ids(["x"])[0], controls)
    for token in list(controls)[:20]:
        assert _count(model.text_ids([f"an {token} owl"])[0], controls) == expected, token


def test_the_text_of_a_control_token_is_there(model: UnifiedModel):
    tokenizer = tokenizer_of(model)
    token = list(controls_of(model))[-1]
    text = tokenizer.decode(model.prompt_ids([f"an {token} owl"], grid_of(model))[0])
    # Decoding may put spaces between the pieces of the token, or turn case.
    assert "".join(f"an {token} owl".split()) in "".join(text.split())


def test_ordinary_captions_have_the_ids_of_the_whole_text(
    model: UnifiedModel, monkeypatch: pytest.MonkeyPatch
):
    rows = model.prompt_ids(ORDINARY, grid_of(model))
    texts = model.text_ids(ORDINARY)

    def naive(tokenizer, before, texts, after=""):
        return [tokenizer(before + t + after, add_special_tokens=False)["input_ids"] for t in texts]

    for module in ("emu3", "emu3p5", "appended_codes", "chameleon", "janus"):
        monkeypatch.setattr(f"mm_cca.adapters.{module}.ids_around", naive)
    assert model.prompt_ids(ORDINARY, grid_of(model)) == rows
    assert model.text_ids(ORDINARY) == texts


def test_plain_text_next_to_a_control_token_has_its_own_ids(model: UnifiedModel):
    """The renamed copy splits and merges as the tokenizer itself: seen where it finds nothing."""
    tokenizer = tokenizer_of(model)
    bos = next(iter(controls_of(model)))
    ids_around(tokenizer, bos, ["warm up"])
    found = plain_captions._FOUND[tokenizer]
    for caption in ORDINARY:
        assert found.ids(bos, caption, bos) == ids_around(tokenizer, bos, [caption], bos)[0]


def _count(ids: list[int], controls: dict[str, int]) -> int:
    places = set(controls.values())
    return sum(place in places for place in ids)
