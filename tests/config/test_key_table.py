"""The generated table and JSON schema: up to date, and true of what load_config accepts."""

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from mm_cca.config.key_table import BEGIN, END, json_schema, markdown_table, with_table
from mm_cca.config.key_text import all_keys
from mm_cca.config.load import load_config, own_copy
from mm_cca.config.read_yaml import read_yaml
from mm_cca.config.shipped import shipped_recipes
from mm_cca.errors import UserError
from tests.support import runs

RECIPES = Path(__file__).parents[2] / "recipes"
OUTDATED = "run python -m mm_cca.config.key_table"


def mistakes(values: dict[str, Any]) -> list[Any]:
    return list(jsonschema.Draft202012Validator(json_schema()).iter_errors(values))


def test_the_table_is_up_to_date():
    page = (RECIPES / "README.md").read_text()
    assert page.count(BEGIN) == page.count(END) == 1
    assert page == with_table(page), OUTDATED


def test_the_schema_is_up_to_date():
    assert json.loads((RECIPES / "schema.json").read_text()) == json_schema(), OUTDATED


def test_the_table_names_every_key():
    table = markdown_table()
    for name in all_keys():
        assert f"`{name}`" in table


def test_the_rest_of_the_page_is_kept():
    page = f"# Before\n\n{BEGIN}\nold\n{END}\n\nAfter.\n"
    assert with_table(page) == f"# Before\n\n{BEGIN}\n{markdown_table()}{END}\n\nAfter.\n"


def test_it_is_a_schema():
    jsonschema.Draft202012Validator.check_schema(json_schema())


@pytest.mark.parametrize("name", shipped_recipes())
def test_shipped_recipes_fit(name: str):
    path = shipped_recipes()[name]
    assert mistakes(read_yaml(path)) == []
    assert path.read_text().count("# yaml-language-server: $schema=schema.json\n") == 1


@pytest.mark.parametrize(
    ("override", "fits"),
    [
        ("train.seed=1", True),
        ("train.seed=-1", False),
        ("train.seed=1.5", False),
        ("train.sed=1", False),
        ("train.max_steps=null", False),
        ("train.keep=first", False),
        ("train.trackers=[]", True),
        ("train.trackers=[mlflow]", False),
        ("train.mixed_precision=no", True),
        ("loss.beta=0", False),
        ("loss.beta=auto", True),
        ("loss.beta=much", False),
        ("loss.beta=1", True),
        ("loss.uncond_ratio=0", True),
        ("loss.uncond_ratio=1", False),
        ("loss.beta_codes=null", True),
        ("sample.dial=0.5", True),
        ("sample.dial=much", False),
        ("sample.top_p=1", True),
        ("sample.top_p=1.1", False),
        ("sample.negative_prompts=[]", False),
        ("sample.guidance_scales=[]", True),
        ("sample.guidance_scales=[2, 2]", False),
        ("data.image_size=[16, 16, 16]", False),
        ("data.image_size=16", False),
        ("eval.metrics=[alignment]", True),
        ("eval.metrics=[alignment, beauty]", False),
        ("run.stages=train", True),
    ],
)
def test_it_agrees_with_load_config(tmp_path: Path, override: str, fits: bool):
    path = runs.unread_recipe(tmp_path)
    values = read_yaml(path)
    assert mistakes(values) == []
    key, _, text = override.partition("=")
    group, _, name = key.partition(".")
    values[group][name] = _value(tmp_path, text)
    assert (mistakes(values) == []) is fits
    if fits:
        load_config(str(path), [override])
    else:
        with pytest.raises(UserError):
            load_config(str(path), [override])


def _value(folder: Path, text: str) -> Any:
    file = folder / "value.yaml"
    file.write_text(f"value: {text}\n")
    return read_yaml(file)["value"]


def test_required_keys_and_other_jobs(tmp_path: Path):
    values = read_yaml(runs.unread_recipe(tmp_path))
    del values["eval"]["scorer"]
    assert mistakes(values)
    other = read_yaml(shipped_recipes()["emoji-scorer"])
    assert mistakes(other) == []
    assert mistakes(other | {"job": "tokenizer"})
    assert mistakes(other | {"loss": {}})


def test_a_copy_still_finds_the_schema():
    text = own_copy(shipped_recipes()["emoji"])
    (line,) = [line for line in text.splitlines() if "yaml-language-server" in line]
    path = Path(line.partition("$schema=")[2])
    assert path.is_absolute()
    assert json.loads(path.read_text()) == json_schema()
