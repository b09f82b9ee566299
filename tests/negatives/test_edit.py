"""Edits change one attribute and nothing else, and only to a value that excludes the old one."""

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mm_cca.errors import UserError
from mm_cca.negatives import attributes_of, load_words, normalise, variants
from mm_cca.negatives.edit import edit

LISTS = load_words()
EMOJI = ["noto style", "twemoji style", "fluent 3d style"]
TONES = ["light", "medium-light", "medium", "medium-dark", "dark"]


def kinds_and_words(caption: str) -> list[tuple[str, str]]:
    return [(a.group.kind, caption[a.start : a.end]) for a in attributes_of(caption, LISTS)]


def never(_: str) -> bool:
    return False


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("a light blue car", [("colour", "light blue")]),
        ("a light, blue car", [("colour", "blue")]),
        ("elf, medium-light skin tone", [("skin_tone", "medium-light skin tone")]),
        ("man, white hair, noto style", [("hair", "white hair"), ("style", "noto style")]),
        ("Two RED  foxes", [("number", "Two"), ("colour", "RED")]),
        ("a blue-green vase, redder than bored", []),
        ("the lightbulb and the blackboard", []),
        ("an oil painting of a wooden boat", [("style", "oil painting"), ("material", "wooden")]),
        ("an oil\npainting", [("style", "oil\npainting")]),
        ("the red's edge", []),
        ("", []),
    ],
)
def test_attributes_are_whole_words_and_the_longest(caption: str, expected: list[tuple[str, str]]):
    assert kinds_and_words(caption) == expected


def test_variants_of_a_demo_caption():
    caption = "man fairy, medium-dark skin tone, twemoji style"
    assert variants(caption, LISTS) == {
        "skin_tone": [
            f"man fairy, {tone} skin tone, twemoji style" for tone in TONES if tone != "medium-dark"
        ],
        "style": [
            f"man fairy, medium-dark skin tone, {style}"
            for style in EMOJI
            if style != "twemoji style"
        ],
    }


def test_a_photo_is_never_swapped_for_an_emoji_style():
    others = variants("a photo of a dog", LISTS)["style"]
    assert "an oil painting of a dog" in others
    assert not any(style in other for other in others for style in EMOJI)


def test_spellings_of_one_value_are_never_swapped():
    for caption in ("a gray cat", "a grey cat"):
        others = variants(caption, LISTS)["colour"]
        assert "a red cat" in others
        assert not any("gr" in other and "y" in other for other in others)


@pytest.mark.parametrize(
    ("caption", "changed"),
    [
        ("a red car", "an orange car"),
        ("an orange car", "a red car"),
        ("An orange car", "A red car"),
        ("Orange car", "Red car"),
        ("see a\tred car", "see an\torange car"),
        ("a very red car", "a very orange car"),
        ("plan A, red car", "plan A, orange car"),
        ("a banana red car", "a banana orange car"),
    ],
)
def test_article_and_case_follow(caption: str, changed: str):
    assert changed in variants(caption, LISTS)["colour"]


def test_consonant_sounds_of_vowels(tmp_path: Path):
    (tmp_path / "w.yaml").write_text(
        "make: [plain, unique, used, urban, european, hourly, one-off]"
    )
    lists = load_words(str(tmp_path / "w.yaml"))
    assert variants("a plain car", lists)["make"] == [
        "a unique car",
        "a used car",
        "an urban car",
        "a european car",
        "an hourly car",
        "a one-off car",
    ]


def test_two_attributes_of_one_kind_are_changed_once_at_a_time():
    others = variants("dark skin tone, light skin tone", LISTS)["skin_tone"]
    assert "medium skin tone, light skin tone" in others
    assert "dark skin tone, medium skin tone" in others
    assert "medium skin tone, medium skin tone" not in others
    assert len(others) == 8


def test_no_attribute_no_variants_and_no_edit():
    assert variants("an owl", LISTS) == {}
    assert edit("an owl", LISTS, which=0.5, value=0.5, refused=never) is None


def test_edits_reach_every_variant_about_as_often():
    """Half of the draws go to each attribute, in equal shares to each of its other values."""
    caption = "elf, dark skin tone, noto style"
    count = 40
    seen = Counter(
        edit(caption, LISTS, which=i / count, value=j / count, refused=never)
        for i in range(count)
        for j in range(count)
    )
    others = variants(caption, LISTS)
    assert {seen[text] for text in others["skin_tone"]} == {count * count // 2 // 4}
    assert {seen[text] for text in others["style"]} == {count * count // 2 // 2}
    assert len(seen) == 6


def test_refused_edits_are_skipped():
    caption = "elf, noto style"
    first = edit(caption, LISTS, which=0, value=0, refused=never)
    second = edit(caption, LISTS, which=0, value=0, refused=lambda text: text == first)
    assert {first, second} == {"elf, twemoji style", "elf, fluent 3d style"}
    assert edit(caption, LISTS, which=0, value=0, refused=lambda _: True) is None


words = st.sampled_from(
    ["a", "an", "red", "Light", "blue", "Gray", "photo", "of", "two", ",", "owls", "dark",
     "skin", "tone", "medium-light", "İ", "ß", "red-hot"]
)  # fmt: skip


@settings(deadline=None, max_examples=300)
@given(
    caption=st.lists(words, max_size=10).map(" ".join),
    which=st.floats(0, 1, exclude_max=True),
    value=st.floats(0, 1, exclude_max=True),
)
def test_an_edit_is_one_of_the_variants_and_not_the_caption_itself(
    caption: str, which: float, value: float
):
    new = edit(caption, LISTS, which=which, value=value, refused=never)
    others = [text for texts in variants(caption, LISTS).values() for text in texts]
    assert (new is None) == (not attributes_of(caption, LISTS))
    if new is not None:
        assert new in others
        assert normalise(new) != normalise(caption)


def test_a_file_adds_kinds_values_and_spellings(tmp_path: Path):
    path = tmp_path / "own.yaml"
    path.write_text(
        "weather: [sunny, rainy]\n"
        "colour:\n  plain: [turquoise, [red, vermilion]]\n  team: [home shirt, away shirt]\n"
        "number: [thirteen]\n"
    )
    lists = load_words(str(path))
    assert variants("a sunny day", lists) == {"weather": ["a rainy day"]}
    assert variants("home shirt", lists) == {"colour": ["away shirt"]}
    vermilion = variants("a vermilion car", lists)["colour"]
    assert "a turquoise car" in vermilion
    assert "a red car" not in vermilion
    assert "a vermilion car" not in variants("a blue car", lists)["colour"]
    assert "thirteen owls" in variants("two owls", lists)["number"]
    assert "turquoise" not in str(LISTS.groups), "the built-in lists must not change"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[red, blue]", "holds list, not a mapping"),
        ("", "holds NoneType, not a mapping"),
        ("colour: {plain: [red", "can't be read"),
        ("weather: sunny", "weather is 'sunny', not a list"),
        ("colour: {plain: {red: blue}}", r"colour \(plain\) is .*not a list"),
        ("weather: [sunny]", "weather has 1 value; allowed: two or more"),
        ("weather: [sunny, true]", "weather, entry 2 is True; allowed"),
        ("weather: [sunny, 3]", "weather, entry 2 is 3; allowed"),
        ("weather: [sunny, [rainy, [wet]]]", "weather, entry 2 is"),
        ("weather: [sunny, '']", "weather, entry 2 is ''"),
        ("weather: [sunny, []]", r"weather, entry 2 is \[\]"),
        ("weather: [sunny, 'rain, wind']", "weather, entry 2 is 'rain, wind'"),
        ("colour: [teal, red]", "colour has the lists plain, metallic; name the one"),
        ("mood: [blue, merry]", r"mood, entry 1 is blue, but there is already 'blue' in colour"),
        ("colour: {plain: [[red, blue]]}", "one value only"),
        ("3: [a, b]", "the kind 3 must be one word"),
    ],
)
def test_a_malformed_file(tmp_path: Path, text: str, message: str):
    path = tmp_path / "own.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        load_words(str(path))
    assert str(path) in str(caught.value)


def test_a_missing_file():
    with pytest.raises(UserError, match=r"nowhere\.yaml can't be read"):
        load_words("nowhere.yaml")


def test_built_in_words_appear_once_and_are_recognised():
    """Every spelling, as a caption of its own, is recognised as its value and nothing else."""
    assert {group.kind for group in LISTS.groups} == {
        "colour", "number", "size", "position", "material", "style", "skin_tone", "hair",
    }  # fmt: skip
    spellings = [text for g in LISTS.groups for value in g.values for text in value]
    assert len(spellings) == len(set(spellings))
    for group in LISTS.groups:
        for i, value in enumerate(group.values):
            for text in value:
                (attribute,) = attributes_of(text, LISTS)
                assert (attribute.group, attribute.value) == (group, i)
                assert (attribute.start, attribute.end) == (0, len(text))
