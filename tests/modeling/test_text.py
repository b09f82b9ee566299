"""Negative log-likelihood of plain text: against stock logits, and as a part of training."""

from pathlib import Path

import pytest
import torch
from transformers import (
    ChameleonForConditionalGeneration,
    Emu3ForConditionalGeneration,
    JanusForConditionalGeneration,
)

from mm_cca import load_adapter
from mm_cca.data.texts import TextStream, read_texts
from mm_cca.errors import UserError
from mm_cca.modeling.text_nll import MAX_TOKENS, text_batch, text_nll
from mm_cca.testing.tiny import write_tiny
from tests.support import runs
from tests.support.closeness import assert_close

STOCK = {
    "emu3": Emu3ForConditionalGeneration,
    "chameleon": ChameleonForConditionalGeneration,
    "janus": JanusForConditionalGeneration,
}
TEXTS = ["a red owl", "owl", "a small green hand that waves at three friends"]


@pytest.mark.parametrize("family", STOCK)
@torch.no_grad()
def test_equals_the_stock_forward(family: str, tmp_path: Path):
    """Chameleon's stock forward masks image logits, so its text logits are renormalised by hand."""
    write_tiny(family, tmp_path / "m", side=2)
    model = load_adapter(family, str(tmp_path / "m"))
    model.module.eval()
    stock = STOCK[family].from_pretrained(tmp_path / "m", dtype=torch.float32).eval()
    ours = text_nll(model, *text_batch(model, TEXTS))
    expected = []
    for row in model.text_ids(TEXTS):
        ids = torch.tensor([row])
        if family == "chameleon":
            logits = stock.lm_head(stock.model(input_ids=ids).last_hidden_state)
        else:
            logits = stock(input_ids=ids).logits
        logps = logits[0].double().log_softmax(-1)
        picked = [float(logps[i, token]) for i, token in enumerate(row[1:])]
        expected.append(-sum(picked) / len(picked))
    assert_close(ours, torch.tensor(expected), 1e-4)


def test_long_texts_are_truncated(tiny_model):
    ids, mask = text_batch(tiny_model, ["owl " * 2000])
    assert mask.sum() == min(MAX_TOKENS, tiny_model.max_tokens)
    assert ids.shape == mask.shape


def test_every_text_once_an_epoch_in_a_seeded_order():
    texts = [f"text {i}" for i in range(7)]
    stream = TextStream(texts, seed=3)
    seen = list(stream.at(range(14)))
    assert sorted(seen[:7]) == sorted(seen[7:]) == texts
    assert seen[:7] != seen[7:]
    assert list(TextStream(texts, seed=3).at(range(5, 9))) == seen[5:9]


def test_texts_of_every_format(tmp_path: Path):
    (tmp_path / "a.txt").write_text("one\n\ntwo\n")
    (tmp_path / "b.jsonl").write_text('{"text": "one"}\n{"text": "two"}\n')
    for name in ("a.txt", "b.jsonl"):
        assert read_texts(str(tmp_path / name), "data.text_path") == ["one", "two"]


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("no.txt", None, "allowed: a file that ends in .txt"),
        ("a.pdf", "x", "allowed: a file"),
        ("a.jsonl", '{"words": "x"}\n', "no column 'text'"),
        ("a.jsonl", "{truncated", "can't be read"),
        ("a.txt", "\n\n", "has no texts"),
    ],
)
def test_invalid_text_files(tmp_path: Path, name: str, content: str | None, problem: str):
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=problem):
        read_texts(str(tmp_path / name), "data.text_path")


def test_training_on_texts_learns_them(tmp_path: Path, tiny_folder: Path):
    values = runs.tiny_recipe(tmp_path, tiny_folder, runs.two_splits(tmp_path / "data.parquet"))
    values["loss"]["text_weight"] = 1.0
    values["train"].update(max_steps=30, save_every=100, learning_rate=1e-2)
    (tmp_path / "texts.txt").write_text("".join(f"the owl says {n}\n" for n in "abcdef"))
    values["data"]["text_path"] = str(tmp_path / "texts.txt")
    path = runs.write_recipe(tmp_path / "recipe.yaml", values)
    runs.do(path)
    lines = runs.metrics(tmp_path / "run" / "train")
    assert lines[-1]["text_nll"] < lines[0]["text_nll"] - 1
    without = tmp_path / "without"
    tokens = f"run.tokens_dir={tmp_path / 'run' / 'tokens'}"
    runs.do(path, "loss.text_weight=0", f"run.dir={without}", tokens)
    assert "text_nll" not in runs.metrics(without / "train")[0]
    difference = lines[0]["loss"] - runs.metrics(without / "train")[0]["loss"]
    assert difference == pytest.approx(lines[0]["text_nll"], rel=1e-4)
