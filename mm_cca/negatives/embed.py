"""Caption embeddings: TF-IDF, or the text encoder of a model that the recipe names."""

import itertools
from collections.abc import Callable, Sequence
from importlib.util import find_spec

import numpy as np
from tqdm import tqdm

from mm_cca.errors import UserError
from mm_cca.negatives.captions import WORD
from mm_cca.negatives.clip_activation import model_for_weights
from mm_cca.negatives.vectors import BLOCK, DenseVectors, SparseVectors, Vectors, blocks, on_grid

ALLOWED = (
    "tfidf, sentence-transformers:NAME_OR_FOLDER, open_clip:NAME, open_clip:NAME:PRETRAINED, "
    "open_clip:local-dir:FOLDER"
)
ENCODE_AT_ONCE = 4096
MAX_FIT_ROWS = 1_000_000
MAX_TERMS = 1 << 18
"""Above ``MAX_FIT_ROWS`` captions TF-IDF is fitted on that many of them and keeps the most common
``MAX_TERMS``; all pairs of words would be tens of millions."""

Encode = Callable[[list[str]], np.ndarray]


def check_embedding(name: str) -> None:
    """Raises UserError for a malformed name; loads nothing."""
    family, colon, rest = name.partition(":")
    if name != "tfidf" and not (family in _ENCODERS and colon and rest):
        raise UserError(f"loss.negatives_embedding is {name!r}; allowed: {ALLOWED}.")


def check_installed(name: str) -> None:
    """Raises UserError if the package of an embedding is not installed; loads no model."""
    family, _, rest = name.partition(":")
    if family == "sentence-transformers" and find_spec("sentence_transformers") is None:
        raise UserError(_missing(rest))


def _missing(name: str) -> str:
    return (
        f"loss.negatives_embedding sentence-transformers:{name} needs a package that is not "
        'installed; pip install "mm-cca[hard]", or use tfidf.'
    )


def embed(texts: Sequence[str], name: str, *, show: bool = False) -> Vectors:
    """Embed [D] normalised captions.

    Args:
        texts: the captions.
        name: of the embedding, as in the recipe.
        show: whether to show a progress bar.

    Raises:
        UserError: unknown name, a missing package, or a model that can't be loaded.
    """
    check_embedding(name)
    if name == "tfidf":
        return _tfidf(texts)
    family, _, rest = name.partition(":")
    encode = _ENCODERS[family](rest)
    parts = []
    with tqdm(total=len(texts), desc="embedding captions", disable=not show) as bar:
        for part in blocks(len(texts), ENCODE_AT_ONCE):
            parts.append(on_grid(encode(list(texts[part]))))
            bar.update(len(parts[-1]))
    return DenseVectors(np.concatenate(parts))


def _tfidf(texts: Sequence[str]) -> Vectors:
    from scipy.sparse import csr_matrix, vstack
    from sklearn.feature_extraction.text import TfidfVectorizer

    step = -(-len(texts) // MAX_FIT_ROWS)
    vectorizer = TfidfVectorizer(
        # The texts are normalised already; single letters and digits count as words.
        lowercase=False,
        token_pattern=WORD.pattern,
        ngram_range=(1, 2),
        sublinear_tf=True,
        max_features=MAX_TERMS if step > 1 else None,
        dtype=np.float32,
    )
    try:
        vectorizer.fit(itertools.islice(texts, 0, None, step))
    except ValueError:  # captions without any word
        return SparseVectors(csr_matrix((len(texts), 1), dtype=np.float32))
    parts = [vectorizer.transform(texts[part]) for part in blocks(len(texts), BLOCK * 8)]
    return SparseVectors(vstack(parts, format="csr"))


def _sentence_transformers(name: str) -> Encode:
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise UserError(_missing(name)) from error
    try:
        model = SentenceTransformer(name)
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(
            f"embedding sentence-transformers:{name} can't be loaded: {error}\n"
            "Use the name or the folder of a sentence-transformers model."
        ) from error

    def encode(texts: list[str]) -> np.ndarray:
        return np.asarray(model.encode(texts, batch_size=256, show_progress_bar=False))

    return encode


def _open_clip(name: str) -> Encode:
    import open_clip
    import torch

    has_schema = name.startswith(("local-dir:", "hf-hub:"))
    model_name, _, pretrained = (name, "", "") if has_schema else name.partition(":")
    if not has_schema:
        model_name = model_for_weights(model_name, pretrained or None)
    device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    try:
        model = open_clip.create_model(model_name, pretrained or None, device=device)
        tokenize = open_clip.get_tokenizer(model_name)
    except (RuntimeError, OSError, ValueError, KeyError) as error:
        raise UserError(
            f"embedding open_clip:{name} can't be loaded: {error}\nAllowed: {ALLOWED}."
        ) from error
    model.eval()

    @torch.no_grad()
    def encode(texts: list[str]) -> np.ndarray:
        parts = (texts[start : start + 256] for start in range(0, len(texts), 256))
        rows = [model.encode_text(tokenize(part).to(device)).float().cpu() for part in parts]
        return np.asarray(torch.cat(rows).numpy())

    return encode


_ENCODERS: dict[str, Callable[[str], Encode]] = {
    "sentence-transformers": _sentence_transformers,
    "open_clip": _open_clip,
}
