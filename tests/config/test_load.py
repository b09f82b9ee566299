"""Recipes: built-in ones, precedence, and all mistakes in one message."""

from pathlib import Path

import pytest
import yaml

import mm_cca.recipes
from mm_cca.config.load import dump, load_config
from mm_cca.config.schema import Recipe, ScorerRecipe, TokenizerRecipe
from mm_cca.config.shipped import find_recipe
from tests.support import runs

SHIPPED = sorted(Path(mm_cca.recipes.__file__).parent.glob("*.yaml"))
HEADINGS = ("What:", "Download:", "Launch:", "Override:", "Needs:")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return runs.unread_recipe(tmp_path)


def test_recipes_are_found():
    names = {path.stem for path in SHIPPED}
    assert {"emoji", "emoji-pretrain", "emoji-scorer", "emoji-tokenizer", "emu3-gen-lora"} <= names


@pytest.mark.parametrize("recipe_path", SHIPPED, ids=lambda p: p.stem)
def test_shipped_recipe_loads_by_name_and_survives_a_dump(recipe_path: Path, tmp_path: Path):
    recipe = load_config(recipe_path.stem)
    again = tmp_path / "dumped.yaml"
    again.write_text(dump(recipe))
    assert load_config(str(again)) == recipe
    assert load_config(str(recipe_path)) == recipe


@pytest.mark.parametrize("recipe_path", SHIPPED, ids=lambda p: p.stem)
def test_shipped_recipe_explains_itself(recipe_path: Path):
    lines = recipe_path.read_text().splitlines()
    header = lines[: next(i for i, line in enumerate(lines) if not line.startswith("#"))]
    assert header[0].removeprefix("# ").endswith(".")
    for heading in HEADINGS:
        texts = [
            line.removeprefix(f"# {heading}") for line in header if line[2:].startswith(heading)
        ]
        assert len(texts) == 1, heading
        assert texts[0].strip(), heading
    launch = next(line for line in header if line.startswith("# Launch:"))
    assert recipe_path.stem in launch


@pytest.mark.parametrize(
    ("name", "kind"),
    [("emoji", Recipe), ("emoji-tokenizer", TokenizerRecipe), ("emoji-scorer", ScorerRecipe)],
)
def test_job_decides_the_type(name: str, kind: type):
    assert type(load_config(name)) is kind


def test_precedence_is_default_then_yaml_then_override(path: Path):
    plain = runs.load_recipe(path)
    assert plain.train.weight_decay == 0.0  # default only
    assert plain.train.learning_rate == 1e-3  # YAML
    assert plain.loss.lambda_ == 3.0  # YAML over default 1
    changed = runs.load_recipe(path, "train.weight_decay=0.5", "loss.lambda_=100")
    assert changed.train.weight_decay == 0.5
    assert changed.loss.lambda_ == 100.0
    assert runs.load_recipe(path, "loss.lambda_=1", "loss.lambda_=2").loss.lambda_ == 2.0


def test_override_values_are_yaml(path: Path):
    recipe = runs.load_recipe(
        path,
        "sample.guidance_scales=[1.5, 4]",
        "sample.top_k=null",
        "train.control=true",
        "train.learning_rate=1e-4",
        "data.heldout_split=null",
    )
    assert recipe.sample.guidance_scales == [1.5, 4.0]
    assert recipe.sample.top_k is None
    assert recipe.train.control is True
    assert recipe.train.learning_rate == 1e-4
    assert recipe.data.heldout_split is None


@pytest.mark.parametrize("value", ["a=b", "x=y=z", "=first"])
def test_value_may_contain_equals_signs(path: Path, value: str):
    assert runs.load_recipe(path, f"run.dir={value}").run.dir == value


@pytest.mark.parametrize(
    ("override", "part"),
    [
        ("train.seed", "'train.seed' is not an override"),
        ("=1", "'=1' is not an override"),
        ("train.seed=[1", "can't be read as YAML"),
        ("train.seed.deeper=1", None),
    ],
)
def test_bad_override(path: Path, override: str, part: str | None):
    message = runs.message_of(path, override)
    assert (part or "train.seed.deeper") in message


def test_override_below_a_value_of_the_file(path: Path):
    message = runs.message_of(path, "train.max_steps.deeper=1")
    assert "max_steps is a value, not a group of keys" in message


@pytest.mark.parametrize(
    ("override", "suggestion"),
    [
        ("loss.lambda=3", "loss.lambda_"),
        ("train.lr_rate=3", "train."),
        ("trian.seed=3", "train.seed"),
        ("sample.guidance_scale=[2]", "sample.guidance_scales"),
    ],
)
def test_unknown_key_gets_a_suggestion(path: Path, override: str, suggestion: str):
    message = runs.message_of(path, override)
    key = override.split("=", maxsplit=1)[0]
    assert f"unknown key {key}; did you mean {suggestion}" in message


def test_unknown_key_without_a_neighbour(path: Path):
    message = runs.message_of(path, "zzzzqqqq=1")
    assert "unknown key zzzzqqqq" in message
    assert "did you mean" not in message


def test_all_mistakes_at_once(path: Path):
    message = runs.message_of(
        path,
        "loss.lambda=3",
        "train.seed=first",
        "train.max_steps=0",
        "model.adapter=show-o",
        "data.image_size=[16]",
    )
    assert message.startswith(f"{path} has 5 mistake(s):")
    for key in (
        "unknown key loss.lambda;",
        "train.seed is 'first'",
        "train.max_steps is 0",
        "model.adapter is 'show-o'",
        "data.image_size is [16]",
    ):
        assert f"  - {key}" in message
    assert len(message.splitlines()) == 6


@pytest.mark.parametrize(
    "override",
    [
        "train.max_steps=many",
        "train.max_steps=1.5",
        "train.learning_rate=fast",
        "train.control=perhaps",
        "train.trackers=null",
        "sample.guidance_scales=[low]",
        "train.seed=null",
        "train.batch_size=[4]",
    ],
)
def test_wrong_type(path: Path, override: str):
    key = override.split("=", maxsplit=1)[0]
    message = runs.message_of(path, override)
    assert "has 1 mistake(s)" in message
    assert f"  - {key} is " in message


MANDATORY = (
    "run.dir",
    "model.adapter",
    "model.path",
    "data.path",
    "data.image_size",
    "train.max_steps",
    "train.batch_size",
    "train.micro_batch_size",
    "train.learning_rate",
    "eval.scorer",
)


@pytest.mark.parametrize("key", MANDATORY)
def test_missing_key(path: Path, key: str):
    values = yaml.safe_load(path.read_text())
    group, name = key.split(".")
    del values[group][name]
    runs.write_recipe(path, values)
    message = runs.message_of(path)
    assert "has 1 mistake(s)" in message
    assert f"  - {key} is missing; set it in the YAML file" in message


def test_all_missing_keys_at_once(tmp_path: Path):
    empty = tmp_path / "empty.yaml"
    empty.write_text("job: finetune\n")
    message = runs.message_of(empty)
    assert f"has {len(MANDATORY)} mistake(s)" in message
    for key in MANDATORY:
        assert f"{key} is missing" in message


@pytest.mark.parametrize(
    ("override", "found"),
    [
        ("sample.dial=0.5", [0.5]),
        ("sample.guidance_scales=2", [2.0]),
        ("sample.negative_prompts=blurry", ["blurry"]),
        ("sample.negative_prompts=''", [""]),
        ("run.stages=train", ["train"]),
    ],
)
def test_one_bare_value_is_a_list_of_one(path: Path, override: str, found: list[object]):
    group, _, key = override.partition("=")[0].partition(".")
    assert getattr(getattr(runs.load_recipe(path, override), group), key) == found


def test_one_bare_value_in_the_file(path: Path):
    values = yaml.safe_load(path.read_text())
    values["sample"]["dial"] = 0.5
    assert runs.load_recipe(runs.write_recipe(path, values)).sample.dial == [0.5]


def test_unknown_job(path: Path):
    message = runs.message_of(path, "job=pretrain")
    assert "job is 'pretrain'; allowed: finetune, tokenizer, scorer." in message


def test_unknown_recipe_name_gets_a_suggestion():
    message = runs.message_of("emojy")
    assert "no recipe 'emojy'" in message
    assert "Did you mean 'emoji'?" in message


def test_unknown_recipe_without_a_neighbour():
    message = runs.message_of("qqqqqqqqqq")
    assert "emoji" in message
    assert "Did you mean" not in message


def test_a_file_goes_before_a_shipped_name(path: Path, monkeypatch: pytest.MonkeyPatch):
    (path.parent / "emoji").write_text(path.read_text())
    monkeypatch.chdir(path.parent)
    assert find_recipe("emoji") == Path("emoji")
    monkeypatch.chdir("/")
    assert find_recipe("emoji").suffix == ".yaml"


@pytest.mark.parametrize("content", [b"a: [1\n", b"\xff\xfe\x00", b"a: 'b\n", b"\tx: 1\n"])
def test_unreadable_yaml(tmp_path: Path, content: bytes):
    bad = tmp_path / "bad.yaml"
    bad.write_bytes(content)
    message = runs.message_of(bad)
    assert str(bad) in message
    assert "can't be read as YAML" in message


@pytest.mark.parametrize(("content", "kind"), [("", "NoneType"), ("- 1\n", "list"), ("x", "str")])
def test_yaml_that_is_not_a_mapping(tmp_path: Path, content: str, kind: str):
    bad = tmp_path / "bad.yaml"
    bad.write_text(content)
    assert f"holds {kind}, not a mapping" in runs.message_of(bad)


def test_dump_names_every_key(path: Path):
    dumped = yaml.safe_load(dump(runs.load_recipe(path)))
    assert dumped["sample"]["temperature"] is None
    assert dumped["train"]["lora_rank"] == 16
    assert dumped["run"]["tokens_dir"] is None


@pytest.mark.parametrize(("text", "value"), [("true", True), ("False", False)])
def test_true_and_false_are_booleans(text: str, value: bool):
    assert load_config("emoji", [f"train.control={text}"]).train.control is value


def test_no_is_text():
    """YAML 1.1 reads it as false, which is not a precision."""
    assert load_config("emoji", ["train.mixed_precision=no"]).train.mixed_precision == "no"


def test_ranges_are_checked_even_where_a_required_key_is_missing(tmp_path: Path):
    values = runs.tiny_recipe(tmp_path, tmp_path / "no-model", tmp_path / "no-data.parquet")
    del values["train"]["max_steps"]
    path = runs.write_recipe(tmp_path / "recipe.yaml", values)
    message = runs.message_of(path, "loss.beta=-1", "data.image_size=[3]", "train.tuning=foo")
    assert "has 4 mistake(s)" in message
    for part in ("train.max_steps is missing", "loss.beta is -1.0", "data.image_size is [3]"):
        assert part in message


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("set #1", "set #1"),
        ("'set #1'", "set #1"),
        ("set#1", "set#1"),
        ("a # b # c", "a # b # c"),
    ],
)
def test_a_sign_for_comments_is_part_of_an_override(tmp_path: Path, text: str, path: str):
    recipe = runs.load_recipe(runs.unread_recipe(tmp_path), f"data.path={text}")
    assert recipe.data.path == path
