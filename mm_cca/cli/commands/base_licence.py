"""The licence of a model's base, as the base itself says it."""

from pathlib import Path
from typing import NamedTuple

import yaml
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

from mm_cca.adapters.checkpoint_files import is_hub_name
from mm_cca.config.read_files import is_there, text_of
from mm_cca.config.shipped import SHIPPED

FAMILIES = {
    "emu3": "BAAI's Emu3 weights are Apache-2.0.",
    "emu3p5": "BAAI's Emu3.5 weights are Apache-2.0.",
    "chameleon": "Chameleon's weights are under the Chameleon Research License: non-commercial.",
    "lumina-mgpt": "A derivative of Chameleon (Chameleon Research License: non-commercial).",
    "janus": "Janus's weights are under the DeepSeek Model License.",
    "liquid": "Liquid's code is under the MIT licence. Its weights are built on Gemma, whose terms "
    "of use apply too; the image tokenizer is Chameleon's (non-commercial).",
    "simplear": "SimpleAR's code is under the MIT licence. Its weights are built on Qwen2.5 "
    "(Apache-2.0); the image tokenizer is under the NVIDIA Open Model License.",
}
"""Licences of the families' published weights; another base may have another licence."""
OTHER = "other"
CARD = "README.md"


class BaseLicence(NamedTuple):
    """The fields of a card's metadata; ``id`` is None where the base names no licence, or where its
    card could not be read."""

    id: str | None
    name: str | None = None
    link: str | None = None
    was_read: bool = True

    def sentences(self, base: str, adapter: str) -> str:
        """For the card of a model that was trained from ``base``."""
        family = FAMILIES.get(adapter)
        published = "" if family is None else f" Published weights of its family: {family}"
        if base in SHIPPED:
            return (
                "The base is the demo model of mm_cca; the licences of the pictures it was trained "
                "on are in `mm_cca/demo/NOTICE.md`."
            )
        if not self.was_read:
            return (
                f"The card of `{base}` could not be read when this one was written; look up its "
                f"licence before you share this model.{published}"
            )
        if self.id is None:
            return (
                f"`{base}` names no licence, so ask its authors before you share this model."
                f"{published}"
            )
        called = self.name or self.id
        where = "" if self.link is None else f" ({self.link})"
        return f"`{base}` is under `{called}`{where}, as its card says.{published}"


def licence_of(base: str) -> BaseLicence:
    """The licence in the card of a base: a folder, or a name on the hub.

    Raises:
        UserError: the card of a folder can't be read.
    """
    path = Path(base) / CARD
    if not path.parent.is_dir() and is_hub_name(base):
        try:
            path = Path(hf_hub_download(base, CARD))
        except LocalEntryNotFoundError:  # neither cached nor reachable; an EntryNotFoundError too
            return BaseLicence(None, was_read=False)
        except EntryNotFoundError:
            return BaseLicence(None)
        except Exception:  # any other way of the hub's client to fail
            return BaseLicence(None, was_read=False)
    if not is_there(path):
        return BaseLicence(None)
    fields = _metadata(text_of(path, "Restore it or remove it; it names the base's licence."))
    id_, name, link = (
        _text_of(fields.get(key)) for key in ("license", "license_name", "license_link")
    )
    return BaseLicence(id_, name, link)


def _text_of(value: object) -> str | None:
    """A field that is a text, or a list of texts, as the hub allows for a licence."""
    listed = value if isinstance(value, list) else [value]
    texts = [one for one in listed if isinstance(one, str)]
    return ", ".join(texts) if texts and len(texts) == len(listed) else None


def _metadata(card: str) -> dict[str, object]:
    """The YAML at the head of a card; empty if there is none."""
    if not card.startswith("---\n"):
        return {}
    try:
        fields = yaml.safe_load(card.removeprefix("---\n").partition("\n---")[0])
    except yaml.YAMLError:
        return {}
    return fields if isinstance(fields, dict) else {}
