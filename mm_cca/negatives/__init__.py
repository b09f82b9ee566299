"""Negative captions: another image's caption, or the image's own with one attribute swapped.

Imports neither torch nor scikit-learn nor faiss, so that checking a recipe is fast.
"""

from mm_cca.negatives.captions import normalise
from mm_cca.negatives.edit import attributes_of, variants
from mm_cca.negatives.epoch_plan import EDITED, EpochPlan
from mm_cca.negatives.planner import Planner
from mm_cca.negatives.record import write_plan
from mm_cca.negatives.settings import KINDS, NegativeSettings
from mm_cca.negatives.shuffle import plan
from mm_cca.negatives.words import WordLists, load_words

__all__ = [
    "EDITED",
    "KINDS",
    "EpochPlan",
    "NegativeSettings",
    "Planner",
    "WordLists",
    "attributes_of",
    "load_words",
    "normalise",
    "plan",
    "variants",
    "write_plan",
]
