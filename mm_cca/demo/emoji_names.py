"""Names, skin tones, families and splits of the emoji, from CLDR labels.

Pure functions of emojibase's ``en/data.json``; they read no images. The *family* of an emoji is its
code point sequence without skin tone, gender, hair and direction: "man raising hand, dark skin
tone" and "woman raising hand" are one family, so that they can't leak across a split.
"""

import hashlib
import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

TONES = {1: "light", 2: "medium-light", 3: "medium", 4: "medium-dark", 5: "dark"}
COMPONENT_GROUP, FLAG_GROUP = 2, 9
HELDOUT_FRACTION = 0.15
SPLIT_SEED = "emoji-1"

_ZWJ, _VARIATION_SELECTOR = 0x200D, 0xFE0F
_SKIN_TONES = range(0x1F3FB, 0x1F400)
_GENDER_HAIR_DIRECTION = {0x2640, 0x2642, 0x27A1, *range(0x1F9B0, 0x1F9B4)}
_NEUTRAL = {
    0x1F468: 0x1F9D1,  # man, woman -> person
    0x1F469: 0x1F9D1,
    0x1F471: 0x1F9D1,  # blond hair: Unicode gave this one hair colour a code point of its own
    0x1F466: 0x1F9D2,  # boy, girl -> child
    0x1F467: 0x1F9D2,
    0x1F474: 0x1F9D3,  # old man, old woman -> older person
    0x1F475: 0x1F9D3,
    0x1F934: 0x1FAC5,  # prince, princess -> person with crown
    0x1F478: 0x1FAC5,
    0x1F936: 0x1F385,  # Mrs. Claus -> Santa Claus
    0x1F57A: 0x1F483,  # man dancing -> woman dancing; no neutral form exists
    0x1F930: 0x1FAC4,  # pregnant woman, man -> pregnant person
    0x1FAC3: 0x1FAC4,
    0x1F46C: 0x1F46B,  # men, women holding hands -> the couple
    0x1F46D: 0x1F46B,
}
_PERSON, _CHILD = 0x1F9D1, 0x1F9D2
_SPELLED_TWICE = {
    (_PERSON, 0x1F384): (0x1F385,),  # Mx Claus
    (_PERSON, 0x1F91D, _PERSON): (0x1F46B,),  # people holding hands
    (_PERSON, 0x2764, _PERSON): (0x1F491,),  # couple with heart
    (_PERSON, 0x2764, 0x1F48B, _PERSON): (0x1F48F,),  # kiss
}
_GROUP_PORTRAIT = (0x1F46A,)


@dataclass(frozen=True)
class Emoji:
    """One drawable emoji; ``codepoint`` is upper-case hex, hyphen-joined, as in emojibase."""

    codepoint: str
    name: str
    family: str
    tone: str

    @property
    def key(self) -> tuple[int, ...]:
        """Code points without variation selectors: the key to join the image sets on."""
        return image_key(self.codepoint)


def image_key(codepoint: str) -> tuple[int, ...]:
    """``"00a9-fe0f"`` and ``"A9"`` -> ``(0xA9,)``. Raises ValueError if it is not hex."""
    points = (int(part, 16) for part in codepoint.split("-"))
    return tuple(point for point in points if point != _VARIATION_SELECTOR)


def emojis(entries: Iterable[dict[str, Any]]) -> list[Emoji]:
    """Every emoji of emojibase's data in its own order, skin tones after their base form.

    Flags, regional indicators and component glyphs (bare skin tones and hair) are skipped.
    """
    drawable = [entry for entry in entries if _is_drawing(entry)]
    result: list[Emoji] = []
    for entry in sorted(drawable, key=lambda entry: int(entry["order"])):
        family = family_of(entry["hexcode"])
        for form in [entry, *entry.get("skins", [])]:
            name = tidy(form["label"])
            result.append(Emoji(form["hexcode"], name, family, tone_of(form)))
    return result


def _is_drawing(entry: dict[str, Any]) -> bool:
    # Regional indicators have no group at all.
    return "group" in entry and entry["group"] not in (COMPONENT_GROUP, FLAG_GROUP)


def tidy(label: str) -> str:
    """A CLDR label as plain lower-case ASCII words.

    >>> tidy("handshake: light skin tone, dark skin tone")
    'handshake, light skin tone, dark skin tone'
    >>> tidy("Japanese \u201cnot free of charge\u201d button"), tidy("keycap: #")
    ('japanese not free of charge button', 'keycap number sign')
    """
    text = label.replace("\u2019", "'").replace("keycap: ", "keycap ")
    text = text.replace("#", "number sign").replace("*", "asterisk").replace(":", ",")
    text = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode().lower()
    return " ".join(re.sub(r"[^a-z0-9 ,'-]", "", text).split())


def tone_of(form: dict[str, Any]) -> str:
    """``""``, ``"medium-dark"``, or ``"light+dark"`` where two people differ."""
    tone = form.get("tone")
    if tone is None:
        return ""
    # "+", because "-" would make medium and dark together look like the single tone medium-dark.
    return "+".join(TONES[index] for index in ([tone] if isinstance(tone, int) else tone))


def family_of(codepoint: str) -> str:
    """The family of a base code point sequence, as upper-case hex joined by hyphens.

    >>> family_of("1F468-200D-1F9B0"), family_of("1F64B-200D-2640-FE0F")
    ('1F9D1', '1F64B')
    """
    points = [point for point in image_key(codepoint) if point not in _SKIN_TONES]
    first, *rest = [point for point in points if point != _ZWJ] or points
    kept = (first, *(point for point in rest if point not in _GENDER_HAIR_DIRECTION))
    neutral = tuple(_NEUTRAL.get(point, point) for point in kept)
    if len(neutral) > 1 and set(neutral) <= {_PERSON, _CHILD}:
        neutral = _GROUP_PORTRAIT
    return "-".join(f"{point:04X}" for point in _SPELLED_TWICE.get(neutral, neutral))


def held_out(styles_of: dict[str, set[str]]) -> set[tuple[str, str]]:
    """The (family, style) pairs of the held-out split.

    ``styles_of`` maps a family to the styles it is drawn in. One style each of ``HELDOUT_FRACTION``
    of all families is held out; a family drawn in one style only is never chosen, so every held-out
    family is in the train split in another style. Families are ranked by a seeded hash, so that a
    new emoji does not move others across the split.
    """
    eligible = [family for family, styles in styles_of.items() if len(styles) > 1]
    chosen = sorted(eligible, key=_hash)[: round(HELDOUT_FRACTION * len(styles_of))]
    return {(family, min(styles_of[family], key=lambda s: _hash(family + s))) for family in chosen}


def _hash(text: str) -> str:
    return hashlib.sha256(f"{SPLIT_SEED}:{text}".encode()).hexdigest()
