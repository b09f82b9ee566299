"""What ``eval/summary.json``, ``report.json``, ``per_prompt.json`` and ``sweep.json`` hold."""

from collections.abc import Mapping
from typing import Any, NotRequired, TypedDict, cast


class Interval(TypedDict):
    """A mean over prompts, and its 95 % interval."""

    value: float
    low: float
    high: float


class Score(TypedDict):
    """One metric of one arm on one split.

    ``low`` and ``high`` belong to means over prompts, ``deviation`` to the Inception score;
    ``count`` (of prompts) and ``chance`` (share right by guessing) to attributes.
    """

    value: float
    low: NotRequired[float]
    high: NotRequired[float]
    deviation: NotRequired[float]
    count: NotRequired[int]
    chance: NotRequired[float]


Scores = dict[str, Score]
"""By metric."""


class ArmEntry(TypedDict):
    """One arm; points of a sweep have ``values`` (of the swept keys) and ``signals`` (means)."""

    name: str
    source: str
    guidance_scale: float
    negative_prompt: str | None
    dial: float | None
    num_images: int
    forwards_per_image: int
    seconds_per_image: float
    scores: dict[str, Scores]
    values: NotRequired[dict[str, Any]]
    signals: NotRequired[dict[str, float]]


class VerdictEntry(TypedDict):
    """CCA's ``arm`` minus the arm ``against``; next to these keys, one interval per metric."""

    split: str
    arm: str
    against: str


def with_differences(entry: VerdictEntry, differences: Mapping[str, Interval]) -> VerdictEntry:
    """The entry with an interval per metric."""
    return cast(VerdictEntry, {**entry, **differences})


def differences_of(entry: VerdictEntry) -> dict[str, Interval]:
    """Metric -> interval of the difference."""
    fields = cast(dict[str, Interval], entry)
    return {
        name: value for name, value in fields.items() if name not in VerdictEntry.__annotations__
    }


class ReferenceEntry(TypedDict):
    """The real images that a split is compared with."""

    images: str
    sha256: str


class ScoringProtocol(TypedDict):
    """Everything that another run must share to be comparable; dictionaries are by split."""

    scorer: str
    scorer_sha256: str
    inception_sha256: str | None
    metrics: dict[str, str]
    num_prompts: dict[str, int]
    images_per_prompt: int
    prompts_sha256: dict[str, str]
    num_reference_images: dict[str, int]
    reference: dict[str, ReferenceEntry | None]
    num_captions_ranked: int
    captions_ranked_sha256: str
    captions_cut: dict[str, int]
    context_length: int
    image_size: list[int]
    resize: dict[str, str | None]
    features: str
    intervals: str
    seeds: dict[str, int]
    sampling: dict[str, Any]
    dtype: dict[str, str]
    device: str
    versions: dict[str, str]


class TextNll(TypedDict):
    """Nats per token of ``num_texts`` texts by source, and the differences to the base."""

    texts: str | None
    num_texts: int
    sources: dict[str, Interval]
    minus_base: dict[str, Interval]


class Summary(TypedDict):
    """``floors`` is by floor and split; ``text_nll`` needs ``eval.text_nll``."""

    arms: list[ArmEntry]
    floors: dict[str, dict[str, Scores]]
    verdicts: list[VerdictEntry]
    warnings: list[str]
    protocol: ScoringProtocol
    text_nll: NotRequired[TextNll]


class SeedsEntry(TypedDict):
    """Arms that differ only in their seed: means, and ``low`` and ``high`` over the seeds."""

    name: str
    seeds: list[int]
    forwards_per_image: int
    scores: dict[str, dict[str, Interval]]
    signals: dict[str, float]


class BestArms(TypedDict):
    """Names of the arms with the highest alignment, where there are any."""

    point: str | None
    base: str | None
    control: str | None


class SweepSummary(TypedDict):
    """``diverged`` is name -> reason; ``best`` is by split."""

    arms: list[ArmEntry]
    over_seeds: list[SeedsEntry]
    diverged: dict[str, str]
    floors: dict[str, dict[str, Scores]]
    protocol: ScoringProtocol
    best: dict[str, BestArms]


class ImageNumbers(TypedDict):
    """One arm on one split, in the order of its images."""

    alignment: list[float]
    rank: list[int]


class SplitNumbers(TypedDict):
    """One split of ``per_prompt.json``; ``arms`` is by name."""

    indices: list[int]
    captions: list[str]
    arms: dict[str, ImageNumbers]
