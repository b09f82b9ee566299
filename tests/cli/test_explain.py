"""``mm-cca explain``, and that every key is documented."""

from dataclasses import dataclass

import pytest

from mm_cca import cli
from mm_cca.cli.commands.explain import explain_key
from mm_cca.config.declarations import declared, docstrings
from mm_cca.config.key_text import all_keys, groups
from mm_cca.config.keys import TRAIN, Condition, Key, key
from mm_cca.config.schema import JOBS, PROMPT_FILES, TEXT_FILES
from mm_cca.config.shipped import ADAPTERS, PROMPT_SETS
from mm_cca.errors import UserError
from mm_cca.negatives import KINDS
from mm_cca.negatives.embed import ALLOWED as EMBEDDINGS
from tests.support import runs


@pytest.mark.parametrize("job", JOBS)
def test_every_key_is_described(job: str):
    for name, entry in declared(JOBS[job]).items():
        assert len(entry.doc) > 10, name
        assert entry.doc.endswith((".", "?")), name


def test_the_page_of_a_key(capsys: pytest.CaptureFixture[str]):
    assert cli.main(["explain", "loss.beta"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:7] == [
        "loss.beta",
        "",
        "  type     number or auto",
        "  default  0.02",
        "  allowed  a number, above 0 and at most 1,000,000, or auto",
        "  decides  training (if loss.objective has cca, dpo or ddo)",
        "",
    ]
    assert lines[7].startswith("  Factor on the log-likelihood ratio between model and reference")
    assert max(len(line) for line in lines) <= 80


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("train.keep", "allowed  last, best"),
        ("train.max_steps", "default  none: a recipe must set it"),
        ("train.seed", "allowed  a whole number, 0 to 4,294,967,295"),
        ("train.save_every", "decides  no result: it may be changed at any time"),
        ("train.control", "allowed  true or false"),
        ("sample.top_p", "allowed  a number, above 0 and at most 1, or null"),
        ("sample.guidance_scales", "allowed  numbers, each above 1 and at most 100"),
        ("sample.guidance_scales", "default  [1.5, 2.0, 3.0, 5.0, 7.5]"),
        ("sample.negative_prompts", 'default  [""]'),
        ("run.stages", "allowed  prepare, train, sample, eval, report"),
        ("run.tokens_dir", "type     text or null"),
        ("model.path", "allowed  any text"),
        ("tokenizer.commitment", "default  0.25"),
        ("scorer.learning_rate", "default  0.001"),
        ("job", "default  finetune"),
    ],
)
def test_parts_of_pages(name: str, part: str):
    assert f"\n  {part}\n" in explain_key(name)


def test_a_group_lists_its_keys_and_nothing_lists_the_groups():
    page = explain_key("loss")
    own = [name for name in all_keys() if name.startswith("loss.")]
    assert len(own) == 18
    for name in own:
        assert f"\n  {name} " in page
    assert "train." not in page
    for group in ("run", "model", "loss", "tokenizer", "scorer"):
        assert f"\n  {group} " in explain_key(None)


@pytest.mark.parametrize(
    ("name", "near"), [("beta", "loss.beta"), ("loss.lambda", "loss.lambda_"), ("los", "loss")]
)
def test_an_unknown_key_gets_near_ones(name: str, near: str):
    with pytest.raises(UserError, match=rf"unknown key {name}\. Did you mean .*{near}"):
        explain_key(name)


def test_an_unknown_key_without_a_near_one(capsys: pytest.CaptureFixture[str]):
    assert cli.main(["explain", "qqqqqq"]) == 2
    message = capsys.readouterr().err
    assert "unknown key qqqqqq. `mm-cca explain` lists the groups" in message
    assert "Did you mean" not in message


def test_docstrings_are_those_below_the_fields():
    @dataclass
    class Group:
        """Not this one."""

        one: int = key(1)
        """Number
        one."""
        two: int = key(2)
        three: int = key(3)
        "Number three."

    assert docstrings(Group) == {"one": "Number one.", "three": "Number three."}


def test_ranges_by_hand():
    half_open = Key(at_least=0, below=1)
    assert [half_open.has(value) for value in (-0.1, 0, 0.99, 1)] == [False, True, True, False]
    other = Key(above=0, at_most=1)
    assert [other.has(value) for value in (0, 1e-9, 1, 1.01)] == [False, True, True, False]
    assert not Key(at_least=0).has(float("inf"))
    assert not Key().has(float("nan"))


def test_a_condition_leaves_the_stage_itself_alone():
    never = Condition("never", lambda recipe: False)
    assert TRAIN.given(never).stage == TRAIN.stage
    assert TRAIN.condition is None


def test_lists_of_defaults_are_not_shared(tmp_path):
    path = runs.unread_recipe(tmp_path)
    one, two = runs.load_recipe(path), runs.load_recipe(path)
    one.run.stages.clear()
    assert two.run.stages
    assert JOBS["finetune"]().run.stages


def test_allowed_values_are_complete():
    """The schema repeats these names, so that reading it imports nothing heavy."""
    allowed = {name: entry.allowed for name, entry in all_keys().items()}
    assert allowed["model.adapter"].startswith(f"{', '.join(ADAPTERS)}, or ")
    assert allowed["loss.negatives"].startswith(f"{', '.join(KINDS)}, or ")
    assert allowed["loss.negatives_embedding"] == EMBEDDINGS
    assert allowed["sample.prompts"].endswith(f"a folder of them, or {', '.join(PROMPT_SETS)}")
    assert ", ".join(PROMPT_FILES) in allowed["sample.prompts"]
    assert allowed["eval.text_nll"].endswith(", ".join(TEXT_FILES))


def test_groups_are_described():
    assert all(words.endswith(".") and "``" not in words for words in groups().values())
