"""Plans of whole epochs: the guarantees for each negative caption, and reproducibility."""

import os
import subprocess
import sys
import tracemalloc
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from mm_cca.config.shipped import SHIPPED
from mm_cca.errors import UserError
from mm_cca.negatives import (
    EDITED,
    KINDS,
    EpochPlan,
    NegativeSettings,
    Planner,
    load_words,
    neighbours,
    normalise,
    plan,
    variants,
    write_plan,
)
from mm_cca.negatives.captions import spaced_words
from mm_cca.negatives.embed import embed
from mm_cca.negatives.epoch_plan import EditDraws
from mm_cca.negatives.guard import contains

ALL = {"shuffle": 0.4, "hard": 0.3, "edit": 0.3}
RECORDED_PLANS = [[7, 6, 5, 1, 2, 0, 4, 3], [7, 6, 0, 5, 3, 4, 1, 2], [4, 4, 3, 0, 2]]


@pytest.fixture(scope="module")
def emoji() -> list[str]:
    column = parquet.read_table(SHIPPED["emoji"], columns=["caption"])["caption"]
    return column.to_pylist()[::12]


def same(left: EpochPlan, right: EpochPlan) -> bool:
    return (
        (left.negatives() == right.negatives()).all()
        and (left.kinds == right.kinds).all()
        and np.array_equal(left.similarity, right.similarity, equal_nan=True)
        and left.replaced == right.replaced
    )


def cosine(texts: list[str], left: str, right: str) -> float:
    vectors = embed(texts, "tfidf")
    pair = [np.array([texts.index(normalise(text))]) for text in (left, right)]
    return float(vectors.cosines(*pair)[0])


def test_shuffle_without_conflicts_is_the_plan():
    captions = [f"{i} owls" for i in range(200)]
    planner = Planner(captions, NegativeSettings({"shuffle": 1.0}, max_similarity=None), seed=3)
    for epoch in (0, 4):
        made = planner.epoch(epoch)
        chosen = plan(captions, seed=3, epoch=epoch)
        assert made.negatives()[:, 0].tolist() == [captions[i] for i in chosen]
        assert set(made.replaced.values()) == {0}
        assert np.isnan(made.similarity).all()


def test_shuffle_gives_the_recorded_plans():
    """Another plan for the same seed would change every run that resumes or is repeated."""
    captions = ["a", "b", "c", "a", "b", "d", "e", "f"]
    assert plan(captions, seed=0, epoch=0).tolist() == RECORDED_PLANS[0]
    assert plan(captions, seed=5, epoch=3).tolist() == RECORDED_PLANS[1]
    assert plan(["s", "s", "s", "a", "b"], seed=1, epoch=1).tolist() == RECORDED_PLANS[2]


def test_columns_are_different_permutations():
    captions = [f"{i} owls" for i in range(100)]
    chosen = NegativeSettings({"shuffle": 1.0}, num_negatives=3, max_similarity=None)
    made = Planner(captions, chosen, seed=0).epoch(0)
    for column in made.negatives().T:
        # Rows that drew one caption twice were drawn again, so not quite a permutation.
        assert len(set(column)) > 90
    assert all(len(set(row)) == 3 for row in made.negatives())
    assert all(caption not in row for caption, row in zip(captions, made.negatives(), strict=True))


@pytest.mark.parametrize("mixture", [ALL, {"shuffle": 1.0}, {"hard": 1.0}, {"edit": 1.0}])
def test_guarantees_for_every_negative(emoji: list[str], mixture: dict[str, float]):
    planner = Planner(emoji, NegativeSettings(mixture, num_negatives=2), seed=0)
    made = planner.epoch(1)
    lists = load_words()
    known = {normalise(caption) for caption in emoji}
    texts = sorted(known)
    vectors = embed(texts, "tfidf")
    index = {text: i for i, text in enumerate(texts)}
    for row, caption in enumerate(emoji):
        first, second = made.negatives(np.array([row]))[0].tolist()
        assert normalise(first) != normalise(second)
        for column, negative in enumerate((first, second)):
            kind = KINDS[made.kinds[row, column]]
            assert mixture[kind] > 0
            assert normalise(negative) != normalise(caption)
            if kind == "edit":
                edits = variants(caption, lists).values()
                assert negative in [text for texts in edits for text in texts]
                assert np.isnan(made.similarity[row, column])
            else:
                assert negative in emoji
                assert not contains(spaced_words(caption), spaced_words(negative))
                pair = [np.array([index[normalise(text)]]) for text in (caption, negative)]
                (expected,) = vectors.cosines(*pair)
                assert made.similarity[row, column] == expected
                assert expected <= 0.95


def test_hard_draws_every_one_of_the_nearest_valid_captions(emoji: list[str]):
    """Only these are drawn; the expected candidates come from a full sort."""
    chosen = NegativeSettings({"hard": 1.0}, candidates=3)
    planner = Planner(emoji, chosen, seed=0)
    row = 5
    texts = sorted({normalise(caption) for caption in emoji})
    cosines = embed(texts, "tfidf").against_all(np.array([texts.index(normalise(emoji[row]))]))[0]
    own = spaced_words(emoji[row])
    valid = [
        i
        for i in np.argsort(-cosines, kind="stable")
        if cosines[i] <= 0.95 and not contains(spaced_words(texts[i]), own)
    ]
    drawn = Counter(planner.epoch(epoch).negatives()[row, 0] for epoch in range(60))
    assert set(drawn) == {texts[i] for i in valid[:3]}
    assert min(drawn.values()) > 5


def test_kinds_follow_their_weights_and_take_over_for_each_other(emoji: list[str]):
    captions = [f"{caption.split(',')[0]} number {i}" for i, caption in enumerate(emoji)]
    captions[: len(emoji) // 2] = emoji[: len(emoji) // 2]
    lists = load_words()
    editable = np.array([bool(variants(caption, lists)) for caption in captions])
    assert 0.4 < editable.mean() < 0.6
    made = Planner(captions, NegativeSettings({"edit": 0.75, "shuffle": 0.25}), seed=0).epoch(0)
    edits = made.kinds[:, 0] == KINDS.index("edit")
    assert not edits[~editable].any()
    assert edits[editable].mean() == pytest.approx(0.75, abs=0.08)
    assert made.replaced["impossible"] == pytest.approx(0.75 * (~editable).sum(), rel=0.15)


def test_replaced_counts_by_hand():
    """Only "owl" is a true negative of the other two; each plan is one of two rotations."""
    captions = ["a dog", "a dog on grass", "owl"]
    planner = Planner(captions, NegativeSettings({"shuffle": 1.0}), seed=0)
    for epoch in range(5):
        planned = plan(captions, seed=0, epoch=epoch).tolist()
        made = planner.epoch(epoch)
        assert made.negatives()[:2, 0].tolist() == ["owl", "owl"]
        expected = (planned[0] == 1) + (planned[1] == 0)
        assert made.replaced == {
            "identical": 0,
            "similar": 0,
            "contained": expected,
            "impossible": 0,
            "repeated": 0,
        }


def test_similar_captions_are_replaced():
    """The same words in another order differ in their pairs of words only."""
    captions = ["red owl", "owl red", "cat", "dog"]
    limit = cosine(sorted(captions), "red owl", "owl red") - 0.01
    for seed in range(8):
        planned = plan(captions, seed=seed, epoch=0).tolist()
        chosen = NegativeSettings({"shuffle": 1.0}, max_similarity=limit)
        made = Planner(captions, chosen, seed=seed).epoch(0)
        assert made.replaced["similar"] == (planned[0] == 1) + (planned[1] == 0)
        assert {made.negatives()[0, 0], made.negatives()[1, 0]} <= {"cat", "dog"}
        allowing = replace(chosen, max_similarity=limit + 0.02)
        made = Planner(captions, allowing, seed=seed).epoch(0)
        assert made.negatives()[:, 0].tolist() == [captions[i] for i in planned]


def test_the_only_true_negative_is_found_by_the_full_scan():
    """3,000 captions contain "owl" as a whole word; random draws rarely hit the other one."""
    captions = ["owl", *(f"owl {i}" for i in range(3000)), "cat"]
    made = Planner(captions, NegativeSettings({"shuffle": 1.0}), seed=1).epoch(0)
    assert made.negatives()[0, 0] == "cat"


@pytest.mark.parametrize(
    ("captions", "mixture", "message"),
    [
        (["owl", "owl 1", "owl 2"], {"shuffle": 1.0}, "1 of 3 captions .*'owl'.*shuffle: every"),
        (["red owl", "cat", "A cat", "dog"], {"edit": 1.0}, "3 of 4 captions .*'cat', 'A cat', 'd"),
        (["owl", "cat", "dog 1", "dog 2"], {"hard": 1.0}, "2 of 4 captions .*'owl', 'cat'.*hard"),
        (["owl", "owl 1", "owl 2"], {"shuffle": 0.5, "edit": 0.5}, "1 of 3 .*shuffle.*; edit: "),
    ],
)
def test_captions_without_any_negative_are_refused_at_once(
    captions: list[str], mixture: dict[str, float], message: str
):
    with pytest.raises(UserError, match=message) as caught:
        Planner(captions, NegativeSettings(mixture), seed=0)
    assert "0.5 shuffle + 0.5 edit" in str(caught.value)
    assert "data.attribute_words" in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mixture": {"roll": 1.0}}, "negatives are 'roll'; allowed: shuffle, hard, edit"),
        ({"mixture": {}}, "allowed: shuffle, hard, edit"),
        ({"mixture": {"edit": 0.0}}, "weights"),
        ({"num_negatives": 0}, "num_negatives is 0"),
        ({"candidates": 0}, "candidates is 0"),
        ({"max_similarity": 0.0}, r"max_similarity is 0\.0"),
        ({"max_similarity": 1.5}, r"max_similarity is 1\.5"),
        ({"embedding": "word2vec"}, "embedding is 'word2vec'"),
        ({"words": "nowhere.yaml"}, "can't be read"),
    ],
)
def test_invalid_settings(change: dict[str, object], message: str):
    with pytest.raises(UserError, match=message):
        Planner(["a", "b"], replace(NegativeSettings({"shuffle": 1.0}), **change), seed=0)


@pytest.mark.parametrize("mixture", [{"shuffle": 1.0}, {"hard": 1.0}, {"edit": 1.0}, ALL])
def test_fewer_than_two_distinct_captions(mixture: dict[str, float]):
    with pytest.raises(UserError, match="two distinct captions"):
        Planner(["red owl", "Red  owl"], NegativeSettings(mixture), seed=0)


def test_more_negatives_than_there_are():
    """Two edits for three negatives: one is repeated, none is the caption itself."""
    captions = ["owl, noto style", "cat, noto style"]
    made = Planner(captions, NegativeSettings({"edit": 1.0}, num_negatives=3), seed=0).epoch(0)
    assert set(made.negatives()[0]) == {"owl, twemoji style", "owl, fluent 3d style"}
    chosen = NegativeSettings({"shuffle": 0.5, "hard": 0.5}, num_negatives=4)
    made = Planner(["a owl", "a cat", "a dog"], chosen, seed=0).epoch(0)
    assert [set(row) for row in made.negatives()] == [
        {"a cat", "a dog"},
        {"a owl", "a dog"},
        {"a owl", "a cat"},
    ]


def test_a_function_of_seed_and_epoch(emoji: list[str]):
    chosen = NegativeSettings(ALL, num_negatives=2)
    planner = Planner(emoji, chosen, seed=1)
    later = planner.epoch(2)
    assert same(later, planner.epoch(2)), "an epoch changes the planner"
    reordered = replace(chosen, mixture=dict(reversed(ALL.items())))
    assert same(later, Planner(emoji, reordered, seed=1).epoch(2))
    assert not same(later, planner.epoch(1))
    assert not same(later, Planner(emoji, chosen, seed=2).epoch(2))


def test_plans_do_not_depend_on_the_process_hash_seed_or_threads(tmp_path: Path):
    code = (
        "import sys, numpy as np\n"
        "from mm_cca.negatives import *\n"
        "captions = [f'{a} {b} owl, {c} style' for a in ('red', 'old', 'two') for b in 'xyz'\n"
        "            for c in ('noto', 'twemoji')]\n"
        f"made = Planner(captions, NegativeSettings({ALL!r}, num_negatives=2), seed=1).epoch(1)\n"
        "print(made.negatives().tolist(), made.kinds.tolist(), made.similarity.tobytes().hex())\n"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code],
            env=os.environ | {"PYTHONHASHSEED": number, "OMP_NUM_THREADS": number},
            cwd=Path(__file__).parents[2],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for number in ("1", "2")
    }
    assert len(outputs) == 1


def test_the_plan_of_many_captions_by_the_index(emoji: list[str], monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("faiss")
    chosen = NegativeSettings({"hard": 1.0})
    exact = Planner(emoji, chosen, seed=0).epoch(0)
    monkeypatch.setattr(neighbours, "APPROXIMATE_ABOVE", 100)
    made = Planner(emoji, chosen, seed=0).epoch(0)
    assert same(made, Planner(emoji, chosen, seed=0).epoch(0))
    # Nearly as similar as those of the exact search, and much more similar than a shuffle.
    assert made.similarity.mean() > 0.8 * exact.similarity.mean()
    shuffled = Planner(emoji, NegativeSettings({"shuffle": 1.0}), seed=0).epoch(0)
    assert shuffled.similarity.mean() < 0.3 * exact.similarity.mean()


tiny = st.lists(
    st.sampled_from(
        ["a", "A ", "b", "a b", "red a", "Red a", "blue b", "c d", "d c", "!", "İ red"]
    ),
    min_size=2,
    max_size=12,
)


@settings(deadline=None, max_examples=200)
@given(
    captions=tiny,
    mixture=st.dictionaries(st.sampled_from(KINDS), st.just(1.0), min_size=1),
    limit=st.sampled_from([None, 0.5, 0.95]),
    m=st.integers(1, 3),
    seed=st.integers(0, 3),
)
def test_any_captions_get_valid_negatives_or_are_refused(
    captions: list[str], mixture: dict[str, float], limit: float | None, m: int, seed: int
):
    chosen = NegativeSettings(mixture, num_negatives=m, max_similarity=limit)
    try:
        planner = Planner(captions, chosen, seed=seed)
    except UserError:
        return
    made = planner.epoch(seed)
    negatives = made.negatives()
    for row, caption in enumerate(captions):
        for column in range(m):
            negative = negatives[row, column]
            kind = KINDS[made.kinds[row, column]]
            assert kind in mixture
            assert normalise(negative) != normalise(caption)
            if kind != "edit":
                assert not contains(spaced_words(negative), spaced_words(caption))
                assert limit is None or not made.similarity[row, column] > limit


def test_importing_loads_nothing_heavy():
    heavy = "{'torch', 'sklearn', 'scipy', 'faiss', 'sentence_transformers', 'pyarrow'}"
    code = f"import sys, mm_cca.negatives; assert not {heavy} & set(sys.modules), sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])


def test_a_written_plan_is_read_back(tmp_path: Path):
    made = EpochPlan(
        ["a red owl", "b", "c"],
        rows=np.array([[1, EDITED], [0, 2], [0, 1]]),
        kinds=np.array([[0, 2], [1, 0], [0, 0]], np.int8),
        similarity=np.array([[0.5, np.nan], [0.25, 0], [1, -1]], np.float32),
        replaced={},
        edits=EditDraws(load_words(), np.zeros((3, 2)), np.zeros((3, 2))),
    )
    path = tmp_path / "plan.parquet"
    path.write_text("an old file")
    write_plan(path, made, [7, 1, 3])
    table = parquet.read_table(path)
    edited = variants("a red owl", load_words())["colour"][0]
    assert table.to_pydict() == {
        "image": [7, 7, 1, 1, 3, 3],
        "prompt": ["a red owl", "a red owl", "b", "b", "c", "c"],
        "negative": ["b", edited, "a red owl", "c", "a red owl", "b"],
        "kind": ["shuffle", "edit", "hard", "shuffle", "shuffle", "shuffle"],
        "similarity": [0.5, None, 0.25, 0, 1, -1],
    }
    assert [str(t) for t in table.schema.types] == ["int64", "string", "string", "string", "float"]
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(ValueError, match="3 planned images, 2 rows"):
        write_plan(path, made, [7, 1])


def test_kinds_that_take_over_keep_their_weights(emoji: list[str]):
    captions = [f"thing {caption.split(',')[0]} number {i}" for i, caption in enumerate(emoji)]
    lists = load_words()
    captions = [caption for caption in captions if not variants(caption, lists)]
    made = Planner(captions, NegativeSettings(ALL, max_similarity=None), seed=0).epoch(0)
    assert made.replaced["impossible"] == pytest.approx(0.3 * len(captions), rel=0.2)
    assert (made.kinds == KINDS.index("hard")).mean() == pytest.approx(3 / 7, abs=0.06)


def test_a_word_that_case_hides_is_no_edit():
    """The first two are equal when normalised, but a dotted capital I hides the word "red"."""
    captions = ["İred", "İred".casefold(), "red cat"]
    with pytest.raises(UserError, match="2 of 3 captions"):
        Planner(captions, NegativeSettings({"edit": 1.0}), seed=0)


@pytest.mark.parametrize(("kind", "copies"), [("edit", 0), ("shuffle", 1)])
def test_a_planner_and_a_plan_keep_no_captions(kind: str, copies: int):
    """Only their words where they are compared: a million rows fit in memory."""

    class Read(Sequence[str]):
        def __init__(self, count: int) -> None:
            self.count = count

        def __len__(self) -> int:
            return self.count

        def __getitem__(self, row: int) -> str:
            return f"the red owl number {range(self.count)[row]} of {self.count} {'x' * 400}"

    def held(count: int) -> int:
        of_kind = NegativeSettings({kind: 1.0}, max_similarity=None)
        tracemalloc.start()
        planner = Planner(Read(count), of_kind, seed=0)
        plan = planner.epoch(0)
        kept = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
        assert plan.negatives(np.array([count - 1])).shape == (1, 1)
        return kept

    # The difference of two sizes, as what both hold (word lists, imports) counts for neither.
    held(10)
    per_caption = (held(3000) - held(1000)) / 2000
    assert 400 * copies < per_caption < 400 * copies + 200
