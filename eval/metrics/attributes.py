"""Is the style word right, the colour, the number? The own caption against its edited variants.

An attribute is right if the scorer prefers the own caption to the same caption with any other
value of that attribute, and half right if it likes another one as well.
Shapes: n prompts, T edited captions in all, F feature size.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from mm_cca.negatives import WordLists, variants


@dataclass(frozen=True)
class Question:
    """One kind of attribute, asked of every prompt that has it.

    Attributes:
        prompts: [k] numbers of the prompts, ascending.
        owner: [T] which of the n prompts each variant belongs to.
        texts: [T, F] features of the variants.
        chance: share that is right if the scorer guesses.
    """

    prompts: np.ndarray
    owner: torch.Tensor
    texts: torch.Tensor
    chance: float


def questions_of(
    captions: Sequence[str],
    kinds: Sequence[str],
    lists: WordLists,
    text_features: Callable[[Sequence[str]], torch.Tensor],
) -> dict[str, Question]:
    """Kind -> question, for the kinds that some caption has.

    Args:
        captions: [n] of the prompts.
        kinds: of attributes, such as ``style``.
        lists: which values rule each other out.
        text_features: [m] captions -> [m, F].
    """
    by_caption = [variants(caption, lists) for caption in captions]
    questions = {}
    for kind in kinds:
        others = [texts.get(kind, []) for texts in by_caption]
        owner = np.repeat(np.arange(len(captions)), [len(texts) for texts in others])
        if not len(owner):
            continue
        flat = [text for texts in others for text in texts]
        asked = np.unique(owner)
        chance = float(np.mean([1 / (1 + len(others[i])) for i in asked]))
        questions[kind] = Question(asked, torch.from_numpy(owner), text_features(flat), chance)
    return questions


def answers(images: torch.Tensor, own: torch.Tensor, question: Question) -> np.ndarray:
    """How right each asked prompt is: 1.0 if its image fits its own caption better than every
    variant, 0.5 if the best variant fits as well.

    Args:
        images: [n, F] features of one image per prompt.
        own: [n, F] features of the own captions.
        question: k prompts with their variants.

    Returns:
        [k] float64.
    """
    cosine = torch.nn.functional.cosine_similarity
    right = cosine(images, own)
    other = cosine(images[question.owner], question.texts)
    best = torch.full_like(right, -torch.inf).scatter_reduce(
        0, question.owner, other, reduce="amax"
    )
    return torch.heaviside(right - best, right.new_tensor(0.5)).double().numpy()[question.prompts]
