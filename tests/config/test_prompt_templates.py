"""Templates around prompts: what is one, what it gives, and that recipes write the authors' out."""

import re
from pathlib import Path

import pytest

from mm_cca.config.load import load_config
from mm_cca.config.prompt_templates import AUTHORS, filled, is_template
from mm_cca.config.schema import Recipe
from mm_cca.config.shipped import ADAPTERS, shipped_recipes
from tests.support import runs

LARGE = [name for name in shipped_recipes() if not name.startswith(("emoji", "coco"))]
README = Path(__file__).parents[2] / "recipes" / "README.md"


@pytest.mark.parametrize(
    "template",
    ["{prompt}", "Draw {prompt}", "{prompt}, best", "{{x}} {prompt}", "{prompt} {prompt}"],
)
def test_templates(template: str):
    assert is_template(template)


@pytest.mark.parametrize(
    "template",
    [
        "",
        "best quality",
        "{caption}",
        "{prompt} {style}",
        "{}",
        "{0}",
        "{prompt!r}",
        "{prompt:>9}",
        "{prompt.x}",
        "{prompt[0]}",
        "{prompt",
        "prompt}",
        "{{prompt}}",
        "{ prompt }",
    ],
)
def test_what_is_none(template: str):
    assert not is_template(template)


def test_texts_are_put_in_as_they_are():
    """Braces and percent signs of a caption mean nothing."""
    texts = ["red owl", "{prompt} {x} %s", ""]
    assert filled("a {{b}} {prompt}.", texts) == [
        "a {b} red owl.",
        "a {b} {prompt} {x} %s.",
        "a {b} .",
    ]
    assert filled(None, iter(texts)) == texts


@pytest.mark.parametrize("key", ["data.caption_template", "sample.prompt_template"])
@pytest.mark.parametrize("value", ["best quality", "'{caption}, best'", "'{prompt} {'", "''"])
def test_a_bad_template_is_refused_with_the_right_form(tmp_path: Path, key: str, value: str):
    message = runs.message_of(runs.unread_recipe(tmp_path), f"{key}={value}")
    text = value.strip("'")
    assert f"{key} is {text!r}; allowed: null, or a text with {{prompt}} in it" in message
    assert '"{prompt}, best quality"' in message
    assert "1 mistake" in message


def test_a_brace_without_quotes_is_explained(tmp_path: Path):
    """YAML reads it as a mapping."""
    path, key = runs.unread_recipe(tmp_path), "sample.prompt_template"
    assert f"""'{key}="{{prompt}}, best"'""" in runs.message_of(path, f"{key}={{prompt}}, best")
    message = runs.message_of(path, f"{key}={{prompt}}")
    assert f"{key} is {{'prompt': None}}, a mapping" in message
    assert "A text that begins with a brace needs quotes" in message
    assert "1 mistake" in message
    recipe = runs.load_recipe(path, f'{key}="{{prompt}}, best"')
    assert recipe.sample.prompt_template == "{prompt}, best"


def test_the_authors_templates_are_templates():
    assert AUTHORS.keys() <= ADAPTERS.keys()
    assert {"emu3", "chameleon", "janus", "lumina-mgpt"} <= AUTHORS.keys()
    for family, authors in AUTHORS.items():
        assert authors.template is None or is_template(authors.template), family
        assert "{" not in authors.negative_prompt


def test_emu3_asks_as_its_authors_do():
    """Copied by hand from image_generation.py: the prompt plus POSITIVE_PROMPT, NEGATIVE_PROMPT."""
    emu3 = AUTHORS["emu3"]
    assert filled(emu3.template, ["a shiba inu"]) == [
        "a shiba inu masterpiece, film grained, best quality."
    ]
    words = emu3.negative_prompt.split(", ")
    assert (len(words), words[0], words[-1]) == (17, "lowres", "blurry.")


@pytest.mark.parametrize("name", LARGE)
def test_recipes_write_the_authors_out(name: str):
    """So that the best guided baseline is the one they released."""
    recipe = load_config(name)
    assert isinstance(recipe, Recipe)
    authors = AUTHORS.get(recipe.model.adapter)
    if authors is None:
        pytest.skip(f"{recipe.model.adapter} is not in the table")
    assert recipe.sample.prompt_template == authors.template
    assert recipe.data.caption_template == authors.template
    assert recipe.sample.negative_prompts == [authors.negative_prompt]


def test_the_table_in_the_documents_is_the_same():
    section = README.read_text().split("## Templates\n")[1].split("\n## ")[0]
    rows = re.findall(r"^\| `([\w.-]+)` \| (.+) \| (.+) \| (.+) \|$", section, flags=re.MULTILINE)
    told = {family: rest for family, *rest in rows}

    def shown(text: str | None) -> str:
        return f"`{text}`" if text else "none"

    assert told == {
        family: [shown(a.template), shown(a.negative_prompt), a.source]
        for family, a in AUTHORS.items()
    }
