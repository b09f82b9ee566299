"""The licence of the actual base on a model card."""

from pathlib import Path

import pytest
from huggingface_hub.errors import LocalEntryNotFoundError

from mm_cca.cli.commands import base_licence
from mm_cca.cli.commands.base_licence import BaseLicence, licence_of
from mm_cca.errors import UserError


def folder_with(tmp_path: Path, card: str | None) -> str:
    if card is not None:
        (tmp_path / "README.md").write_text(card)
    return str(tmp_path)


@pytest.mark.parametrize(
    ("card", "expected"),
    [
        ("---\nlicense: mit\n---\n# x\n", BaseLicence("mit")),
        (
            "---\nlicense: other\nlicense_name: deepseek\nlicense_link: LICENSE-MODEL\n---\n",
            BaseLicence("other", "deepseek", "LICENSE-MODEL"),
        ),
        ("---\ntags: [a]\n---\n", BaseLicence(None)),
        ("---\nlicense: [mit]\n---\n", BaseLicence("mit")),
        ("---\nlicense: [mit, apache-2.0]\n---\n", BaseLicence("mit, apache-2.0")),
        ("---\nlicense: []\n---\n", BaseLicence(None)),
        ("---\nlicense: [{a: 1}]\n---\n", BaseLicence(None)),
        ("---\nlicense: {\n---\n", BaseLicence(None)),
        ("---\n- a\n---\n", BaseLicence(None)),
        ("# no metadata\nlicense: mit\n", BaseLicence(None)),
        (None, BaseLicence(None)),
    ],
)
def test_the_licence_of_a_folder(tmp_path: Path, card: str | None, expected: BaseLicence):
    assert licence_of(folder_with(tmp_path, card)) == expected


def test_a_card_that_is_no_text(tmp_path: Path):
    (tmp_path / "README.md").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="it names the base's licence"):
        licence_of(str(tmp_path))


@pytest.mark.parametrize("error", [ConnectionError, LocalEntryNotFoundError])
def test_a_hub_that_does_not_answer(monkeypatch: pytest.MonkeyPatch, error: type[Exception]):
    def fails(*args: str) -> str:
        raise error("no route")

    monkeypatch.setattr(base_licence, "hf_hub_download", fails)
    found = licence_of("someone/model")
    assert found == BaseLicence(None, was_read=False)
    assert "`someone/model` could not be read" in found.sentences("someone/model", "janus")


def test_one_clear_sentence():
    told = BaseLicence("other", "deepseek", "LINK").sentences("a/b", "janus")
    assert told.startswith("`a/b` is under `deepseek` (LINK), as its card says.")
    none = BaseLicence(None).sentences("a/b", "another")
    assert none == "`a/b` names no licence, so ask its authors before you share this model."
    assert "NOTICE.md" in BaseLicence(None).sentences("emu3-emoji", "emu3")
