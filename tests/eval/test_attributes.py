"""Is the attribute right? By hand, and against a plain loop."""

import numpy as np
import pytest
import torch

from mm_cca.eval.metrics.attributes import Question, answers, questions_of
from mm_cca.negatives import load_words, variants
from tests.support import runs

CAPTIONS = ["a red owl, noto style", "an owl", "two blue cats"]
LISTS = load_words()


def _one_hot(texts: list[str]) -> torch.Tensor:
    """A feature for each word of a small vocabulary."""
    words = ["a", "an", "red", "blue", "green", "owl", "cats", "two", "three", "noto", "twemoji"]
    return torch.tensor([[float(w in t.replace(",", "").split()) for w in words] for t in texts])


def test_only_prompts_that_have_the_attribute_are_asked():
    found = questions_of(CAPTIONS, ["colour", "number", "size"], LISTS, _one_hot)
    assert set(found) == {"colour", "number"}
    assert found["colour"].prompts.tolist() == [0, 2]
    assert found["number"].prompts.tolist() == [2]
    num_values = 1 + len(variants("red", LISTS)["colour"])
    assert found["colour"].chance == pytest.approx(1 / num_values)


def test_answers_by_hand():
    """Image 0 is near its caption, image 2 nearer to the first of its two variants."""
    question = Question(
        prompts=np.array([0, 2]),
        owner=torch.tensor([0, 2, 2]),
        texts=torch.tensor([[0.0, 1.0], [1.0, 1.0], [0.0, 1.0]]),
        chance=0.4,
    )
    images = torch.tensor([[1.0, 0.1], [5.0, 5.0], [1.0, 0.8]])
    own = torch.tensor([[1.0, 0.0]] * 3)
    assert answers(images, own, question).tolist() == [True, False]
    tied = torch.tensor([[1.0, 0.1], [5.0, 5.0], [1.0, 1.0]])
    equal = Question(question.prompts, question.owner, question.texts[[0, 0, 0]], 0.4)
    assert answers(tied, own, equal).tolist() == [True, 0.5], "ties count half"


def test_answers_equal_a_loop():
    generator = torch.Generator().manual_seed(0)
    images, own = (torch.randn(9, 5, generator=generator) for _ in range(2))
    owner = torch.tensor([0, 0, 3, 4, 4, 4, 8])
    texts = torch.randn(7, 5, generator=generator)
    found = answers(images, own, Question(np.array([0, 3, 4, 8]), owner, texts, 0.5))

    def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
        return float(a @ b / a.norm() / b.norm())

    for prompt, right in zip((0, 3, 4, 8), found, strict=True):
        mine = [cosine(images[prompt], texts[t]) for t in range(7) if owner[t] == prompt]
        assert right == (cosine(images[prompt], own[prompt]) > max(mine))
    assert 0 < found.sum() < 4


def test_in_a_run_beside_the_language_side(tmp_path, tiny_folder):
    import json

    values = runs.tiny_recipe(tmp_path, tiny_folder, runs.two_splits(tmp_path / "data.parquet"))
    values["data"]["heldout_split"] = "heldout"
    values["train"].update(max_steps=2, control=True)
    values["eval"].update(attributes=["colour", "number"], text_nll="captions")
    path = runs.write_recipe(tmp_path / "recipe.yaml", values)
    runs.do(path, stages=["prepare", "train", "sample", "eval", "report"])
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    score = report["arms"][0]["scores"]["emoji-clip"]["train"]["attribute_colour"]
    assert score["count"] == 6
    assert 0 <= score["low"] <= score["value"] <= score["high"] <= 1
    assert "attribute_number" not in report["arms"][0]["scores"]["emoji-clip"]["train"]
    text = report["text_nll"]
    assert set(text["sources"]) == {"base", "cca", "control"}
    assert set(text["minus_base"]) == {"cca", "control"}
    difference = text["sources"]["cca"]["value"] - text["sources"]["base"]["value"]
    assert text["minus_base"]["cca"]["value"] == pytest.approx(difference, abs=1e-6)
    assert text["num_texts"] == 12
    page = (tmp_path / "run" / "report.html").read_text()
    assert "colour right" in page
    assert "The language side" in page
