"""Recipes: shipped ones, precedence, and that every mistake is named in one message."""

from pathlib import Path

import mm_cca.recipes
import pytest
import yaml

from mm_cca.config import dump, find_recipe, load_config
from mm_cca.errors import UserError
from mm_cca.schema import Recipe, ScorerRecipe, TokenizerRecipe
from tests import runs

SHIPPED = sorted(Path(mm_cca.recipes.__file__).parent.glob("*.yaml"))
HEADINGS = ("What:", "Download:", "Launch:", "Override:", "Needs:")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    values = runs.tiny_recipe(tmp_path, tmp_path / "model", tmp_path / "data.parquet")
    values["data"]["heldout_split"] = "heldout"
    return runs.write_recipe(tmp_path / "recipe.yaml", values)


def message_of(path: Path | str, *overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        load_config(str(path), overrides)
    return str(caught.value)


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
        said = [
            line.removeprefix(f"# {heading}") for line in header if line[2:].startswith(heading)
        ]
        assert len(said) == 1, heading
        assert said[0].strip(), heading
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
        ("train.seed", "'train.seed' is no override"),
        ("=1", "'=1' is no override"),
        ("train.seed=[1", "can't be read as YAML"),
        ("train.seed.deeper=1", None),
    ],
)
def test_bad_override(path: Path, override: str, part: str | None):
    message = message_of(path, override)
    assert (part or "train.seed.deeper") in message


def test_override_below_a_value_of_the_file(path: Path):
    message = message_of(path, "train.max_steps.deeper=1")
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
    message = message_of(path, override)
    key = override.split("=", maxsplit=1)[0]
    assert f"{key} is no key of this recipe; did you mean {suggestion}" in message


def test_unknown_key_without_a_neighbour(path: Path):
    message = message_of(path, "zzzzqqqq=1")
    assert "zzzzqqqq is no key of this recipe" in message
    assert "did you mean" not in message


def test_all_mistakes_at_once(path: Path):
    message = message_of(
        path,
        "loss.lambda=3",
        "train.seed=first",
        "train.max_steps=0",
        "model.adapter=show-o",
        "data.image_size=[16]",
    )
    assert message.startswith(f"{path} has 5 mistake(s):")
    for key in (
        "loss.lambda is no key",
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
    message = message_of(path, override)
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
    message = message_of(path)
    assert "has 1 mistake(s)" in message
    assert f"  - {key} is missing; set it in the YAML file" in message


def test_all_missing_keys_at_once(tmp_path: Path):
    empty = tmp_path / "empty.yaml"
    empty.write_text("job: finetune\n")
    message = message_of(empty)
    assert f"has {len(MANDATORY)} mistake(s)" in message
    for key in MANDATORY:
        assert f"{key} is missing" in message


@pytest.mark.parametrize(
    ("override", "allowed"),
    [
        ("run.stages=[prepare, dance]", "prepare, train, sample, eval, report"),
        ("data.image_size=[16, 0]", "[height, width]"),
        ("data.image_size=[]", "[height, width]"),
        ("data.variants=0", "1 or more"),
        ("data.max_zoom=0.5", "1 or more"),
        ("data.max_shift=1", "0 up to, but not, 1"),
        ("data.max_shift=-0.1", "0 up to, but not, 1"),
        ("data.max_bad=-1", "0 or more"),
        ("data.encode_batch_size=0", "1 or more"),
        ("data.rows_per_shard=0", "1 or more"),
        ("model.adapter=show-o", "emu3, chameleon, janus, lumina-mgpt, or package.module:Class"),
        ("model.dtype=float8", "float32, bfloat16, float16"),
        ("train.compile=true", "false with loss.objective=cca"),
        ("loss.objective=dpoo", "cca, nll, dpo"),
        ("loss.objective=cca + -1 nll", "cca, nll, dpo"),
        ("loss.negatives=0.5 shuffle + 0.4 hard", "weights that sum to 1; these sum to 0.9"),
        ("loss.negatives=swap", "shuffle, hard, edit"),
        ("loss.num_negatives=0", "1 or more"),
        ("loss.max_similarity=1.5", "null, or more than 0"),
        ("loss.negatives_embedding=bert", "tfidf, sentence-transformers:NAME_OR_FOLDER"),
        ("loss.distill_scale=1", "more than 1"),
        ("loss.text_weight=-1", "0 or more"),
        ("loss.lambda_=.inf", "0 or more"),
        ("sample.dial=.inf", "0 or more, but not 1"),
        ("eval.text_nll=no.txt", "null, or a file that ends in"),
        ("data.text_path=no.txt", "null, or a file that ends in"),
        ("eval.attributes=flavour", "colour, hair"),
        ("data.attribute_words=no.yaml", "a YAML file of word lists"),
        ("run.sources=ours", "base, cca, control"),
        ("loss.beta=0", "more than 0"),
        ("loss.beta_codes=0", "1 or more"),
        ("loss.lambda_=-1", "0 or more"),
        ("loss.uncond_ratio=1", "0 up to, but not, 1"),
        ("loss.negatives=hardest", "shuffle"),
        ("train.seed=-1", "0 or more"),
        ("train.max_steps=0", "1 or more"),
        ("train.micro_batch_size=0", "1 or more"),
        ("train.batch_size=6", "a multiple of train.micro_batch_size (4)"),
        ("train.batch_size=0", "a multiple of train.micro_batch_size (4)"),
        ("train.learning_rate=0", "more than 0"),
        ("train.schedule=linear", "cosine, constant"),
        ("train.warmup_steps=-1", "0 or more"),
        ("train.weight_decay=-0.1", "0 or more"),
        ("train.max_grad_norm=0", "more than 0"),
        ("train.mixed_precision=fp8", "no, bf16, fp16"),
        ("train.tuning=prefix", "full, lora"),
        (
            "train.reference=lora",
            "copy, cached (computed once by prepare), or lora when train.tuning is lora",
        ),
        ("train.reference=ema", "copy, cached"),
        ("train.lora_rank=0", "1 or more"),
        ("train.save_every=0", "1 or more"),
        ("train.keep_checkpoints=0", "1 or more"),
        ("train.eval_every=-1", "0 or more"),
        ("train.keep=first", "last, best"),
        ("train.keep=best", "last, or best with train.eval_every > 0 and a data.heldout_split"),
        ("train.trackers=[mlflow]", "tensorboard, wandb, trackio"),
        ("sample.num_images=3", "4 or more"),
        ("sample.guidance_scales=[1.0]", "more than 1"),
        ("sample.control_scales=[0.5]", "more than 1"),
        ("sample.cca_scales=[2, 1]", "more than 1"),
        ("sample.dial=[0.5, 1]", "0 or more, but not 1, which is the arm cca"),
        ("sample.dial=[-0.5]", "0 or more, but not 1"),
        ("sample.dial=[0.5, 0.50000001]", "no two alike"),
        ("sample.guidance_scales=[2, 3, 2.0]", "no two alike"),
        ("sample.control_scales=[2, 2]", "no two alike"),
        ("sample.cca_scales=[2, 2]", "no two alike"),
        ("sample.negative_prompts=[blurry, blurry]", "no two alike"),
        ("sample.negative_prompts=[]", "one or more texts"),
        ("sample.temperature=0", "more than 0"),
        ("sample.top_k=0", "1 or more"),
        ("sample.top_p=0", "null, or more than 0 and at most 1"),
        ("sample.top_p=1.1", "null, or more than 0 and at most 1"),
        ("sample.batch_size=0", "1 or more"),
        ("eval.bootstrap_samples=99", "100 or more"),
        ("eval.grid_prompts=0", "1 or more"),
    ],
)
def test_value_out_of_range(path: Path, override: str, allowed: str):
    key = override.split("=", maxsplit=1)[0]
    message = message_of(path, override)
    assert f"  - {key} is " in message
    assert f"allowed: {allowed}" in message


@pytest.mark.parametrize(
    "override",
    [
        "data.max_shift=0.99",
        "loss.uncond_ratio=0",
        "loss.lambda_=0",
        "loss.beta_codes=null",
        "sample.top_p=1",
        "sample.top_k=1",
        "model.adapter=some.module:Class",
        "sample.guidance_scales=[]",
        "sample.dial=[0, 1.5]",
        "sample.negative_prompts=['', blurry]",
        "train.batch_size=8",
        "data.max_zoom=1",
    ],
)
def test_value_at_the_edge_is_accepted(path: Path, override: str):
    runs.load_recipe(path, override)


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


def test_a_bare_value_of_a_list_is_still_checked(path: Path):
    assert "data.image_size is [16]; allowed: [height, width]" in message_of(
        path, "data.image_size=16"
    )
    assert "sample.dial is 'much': " in message_of(path, "sample.dial=much")
    assert "sample.dial is None: " in message_of(path, "sample.dial=null")


def test_keys_that_allow_each_other(path: Path):
    runs.load_recipe(path, "train.tuning=lora", "train.reference=lora")
    runs.load_recipe(path, "train.keep=best", "train.eval_every=2")
    message = message_of(path, "train.keep=best", "train.eval_every=2", "data.heldout_split=null")
    assert "data.heldout_split" in message


@pytest.mark.parametrize(
    ("name", "override"),
    [
        ("emoji-tokenizer", "tokenizer.num_codes=1"),
        ("emoji-tokenizer", "tokenizer.steps=0"),
        ("emoji-tokenizer", "data.image_size=[30, 32]"),
        ("emoji-tokenizer", "tokenizer.mixed_precision=fp8"),
        ("emoji-scorer", "scorer.steps=0"),
        ("emoji-scorer", "scorer.batch_size=1"),
        ("emoji-scorer", "scorer.mixed_precision=fp8"),
        ("emoji-scorer", "train.seed=1"),
    ],
)
def test_mistake_in_a_demo_job(name: str, override: str):
    assert f"  - {override.split('=', maxsplit=1)[0]} is " in message_of(name, override)


def test_unknown_job(path: Path):
    message = message_of(path, "job=pretrain")
    assert "job is 'pretrain'; allowed: finetune, tokenizer, scorer." in message


def test_unknown_recipe_name_gets_a_suggestion():
    message = message_of("emojy")
    assert "no recipe 'emojy'" in message
    assert "Did you mean 'emoji'?" in message


def test_unknown_recipe_without_a_neighbour():
    message = message_of("qqqqqqqqqq")
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
    message = message_of(bad)
    assert str(bad) in message
    assert "can't be read as YAML" in message


@pytest.mark.parametrize(("content", "kind"), [("", "NoneType"), ("- 1\n", "list"), ("x", "str")])
def test_yaml_that_is_no_mapping(tmp_path: Path, content: str, kind: str):
    bad = tmp_path / "bad.yaml"
    bad.write_text(content)
    assert f"holds {kind}, not a mapping" in message_of(bad)


def test_dump_names_every_key(path: Path):
    dumped = yaml.safe_load(dump(runs.load_recipe(path)))
    assert dumped["sample"]["temperature"] is None
    assert dumped["train"]["lora_rank"] == 16
    assert dumped["run"]["tokens_dir"] is None


@pytest.mark.parametrize(("text", "value"), [("true", True), ("False", False)])
def test_true_and_false_are_booleans(text: str, value: bool):
    assert load_config("emoji", [f"train.control={text}"]).train.control is value


def test_no_is_a_word():
    """YAML 1.1 reads it as false, which is no precision."""
    assert load_config("emoji", ["train.mixed_precision=no"]).train.mixed_precision == "no"


def test_held_out_captions_need_a_held_out_split(path: Path):
    told = message_of(path, "eval.text_nll=captions", "data.heldout_split=null")
    assert "captions are those of data.heldout_split, which is null" in told
