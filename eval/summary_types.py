"""What ``eval/summary.json``, ``report.json``, ``per_prompt.json`` and ``sweep.json`` hold."""

from collections.abc import Iterable, Mapping
from typing import Any, Literal, NotRequired, cast

from typing_extensions import TypedDict


class Interval(TypedDict):
    """A mean over prompts, and its 95 % interval."""

    value: float
    low: float
    high: float


class Score(TypedDict):
    """One metric of one arm on one split.

    ``low`` and ``high`` belong to means over prompts, Frechet distances and recalls (not in
    summaries of older versions), ``deviation`` to the Inception score;
    ``count`` (of prompts) and ``chance`` (share right by guessing) to attributes; ``extrapolated``
    (to infinitely many images) to Frechet distances of the scorer. ``left_out`` has the values
    without each group of prompts (``metrics/jackknife.py``), for differences between runs: of
    Frechet distances, recalls and, up to a constant that all arms share, kernel distances.
    """

    value: float
    low: NotRequired[float]
    high: NotRequired[float]
    deviation: NotRequired[float]
    count: NotRequired[int]
    chance: NotRequired[float]
    extrapolated: NotRequired[float]
    left_out: NotRequired[list[float]]


Scores = dict[str, Score]
"""By metric."""


SplitScores = dict[str, Scores]
"""By split."""
INCEPTION = "inception"
"""Where the scores of Inception are: they have no judge, and are listed like one of their own."""


class ArmFields(TypedDict):
    """What an arm is; points of a sweep have ``values`` (of the swept keys) and ``signals``.

    ``engine`` is what drew it, such as ``vllm 0.32.0, bfloat16``; without it, our own sampler.
    """

    name: str
    source: str
    guidance_scale: float
    negative_prompt: str | None
    dial: float | None
    num_images: int
    forwards_per_image: int
    seconds_per_image: float
    engine: NotRequired[str]
    values: NotRequired[dict[str, Any]]
    signals: NotRequired[dict[str, float]]


class ArmEntry(ArmFields):
    """One arm, with its scores by judge and split."""

    scores: dict[str, SplitScores]


class JudgedArm(ArmFields):
    """One arm as one judge sees it, with its scores by split."""

    scores: SplitScores


def judged_scores(scores: Mapping[str, SplitScores], judge: str) -> SplitScores:
    """By split: a judge's scores, followed by those of Inception, if there are any."""
    inception = scores.get(INCEPTION, {})
    return {split: own | inception.get(split, {}) for split, own in scores[judge].items()}


def judged(arms: Iterable[ArmEntry], judge: str) -> list[JudgedArm]:
    """Arms as one judge sees them."""
    return [cast(JudgedArm, {**arm, "scores": judged_scores(arm["scores"], judge)}) for arm in arms]


class Margin(TypedDict):
    """A mean difference of 100 cos over prompts, and its standard error."""

    value: float
    standard_error: float


FigureName = Literal["real", "reconstruction", "other_style", "other_caption"]


class Examination(TypedDict):
    """One judge on one split: means of 100 cos, in the order in which they should fall.

    ``other_style`` is null where no caption has an attribute; ``margins`` are between neighbours.
    """

    num_images: int
    real: float
    reconstruction: float
    other_style: float | None
    other_caption: float
    r_at_5: float
    margins: dict[str, Margin]


Examinations = dict[str, Examination]
"""By split."""


class JudgeEntry(TypedDict):
    """One of ``eval.scorer``, whether it may judge, and if not, why.

    ``examination`` is null where the judge was never examined; ``examined_in`` names the file of
    an earlier run that it was taken from.
    """

    name: str
    sha256: str
    may_judge: bool
    reasons: list[str]
    examination: Examinations | None
    examined_in: str | None


def leading_judge(judges: Iterable[JudgeEntry]) -> str:
    """The first judge that may judge, else the first: whose scores are plotted."""
    in_order = sorted(judges, key=lambda judge: not judge["may_judge"])
    return in_order[0]["name"]


class Compared(TypedDict):
    """The arms that stood for either side in one metric: one each, or two where the halves of the
    prompts disagree on which is the best."""

    arm: list[str]
    against: list[str]


class VerdictEntry(TypedDict):
    """CCA minus a baseline; next to these keys, one interval per metric.

    ``ours`` and ``rival`` are kinds of arms, such as ``cca`` and ``guided base``. ``arm`` and
    ``against`` are their members with the highest alignment; ``compared`` has those that each
    metric compares. ``confidence`` is that of every interval: those of the sentence then hold
    together at 95 %. ``cautions`` are sentences about this comparison.
    """

    split: str
    ours: str
    rival: str
    arm: str
    against: str
    confidence: float
    compared: dict[str, Compared]
    cautions: list[str]


def with_differences(entry: VerdictEntry, differences: Mapping[str, Interval]) -> VerdictEntry:
    """The entry with an interval per metric."""
    return cast(VerdictEntry, {**entry, **differences})


def differences_of(entry: VerdictEntry) -> dict[str, Interval]:
    """Metric -> interval of the difference."""
    fields = cast(dict[str, Interval], entry)
    return {
        name: value for name, value in fields.items() if name not in VerdictEntry.__annotations__
    }


Standing = Literal["ahead", "level", "behind"]


class HeadlineEntry(TypedDict):
    """One comparison by the least favourable judge, which is ``judge``.

    ``compared``, ``difference``, ``confidence`` and ``cautions`` are that judge's: judges may
    differ in which guided arm is the best. ``ours`` and ``rival`` are the kinds of arms that all
    compared. ``shared_by`` of ``num_judges`` judges come to the same ``standing``.
    """

    split: str
    ours: str
    rival: str
    metric: str
    standing: Standing
    judge: str
    compared: Compared
    difference: Interval
    confidence: float
    cautions: list[str]
    shared_by: int
    num_judges: int
    standings: dict[str, Standing]


class ReferenceEntry(TypedDict):
    """The images that a split is compared with."""

    images: str
    sha256: str


class JudgeProtocol(TypedDict):
    """How one judge reads images and captions; ``captions_cut`` is by split."""

    name: str
    resize: str
    context_length: int
    captions_cut: dict[str, int]


OWN_SAMPLER = "our own sampler"
"""What drew an arm without ``engine``."""


class DrawnBy(TypedDict):
    """What drew the arms without guidance, if an engine drew any, and the image sizes besides
    ``data.image_size``, if there are any."""

    engine: NotRequired[str]
    buckets: NotRequired[list[str]]


class ScoringProtocol(DrawnBy):
    """Everything that another run must share to be comparable; dictionaries are by split.

    ``judges`` is by the sha256 of the weights: names may differ.
    """

    judges: dict[str, JudgeProtocol]
    inception_sha256: str | None
    metrics: dict[str, str]
    num_prompts: dict[str, int]
    images_per_prompt: int
    prompts_sha256: dict[str, str]
    num_reference_images: dict[str, int]
    reference: dict[str, ReferenceEntry | None]
    reconstruction: dict[str, ReferenceEntry | None]
    num_captions_ranked: int
    captions_ranked_sha256: str
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
    """``floors`` is by floor, judge and split; ``verdicts`` by judge, also of those that may not
    judge; ``headline`` is of those that may. ``text_nll`` needs ``eval.text_nll``. ``model_name``
    is what sentences call the trained model (older versions: CCA).
    """

    judges: list[JudgeEntry]
    headline: list[HeadlineEntry]
    arms: list[ArmEntry]
    floors: dict[str, dict[str, SplitScores]]
    verdicts: dict[str, list[VerdictEntry]]
    warnings: list[str]
    protocol: ScoringProtocol
    text_nll: NotRequired[TextNll]
    model_name: NotRequired[str]


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


class SweepVerdict(TypedDict):
    """A point's ``metric`` minus that of the best guided base, ``rival``, by one judge on one
    split; over the ``seeds`` of the point."""

    point: str
    seeds: int
    judge: str
    split: str
    rival: str
    metric: str
    difference: Interval
    confidence: float
    standing: Standing


class SweepSummary(TypedDict):
    """``diverged`` is name -> reason; ``over_seeds`` is by judge, ``best`` by judge and split."""

    judges: list[JudgeEntry]
    arms: list[ArmEntry]
    over_seeds: dict[str, list[SeedsEntry]]
    diverged: dict[str, str]
    floors: dict[str, dict[str, SplitScores]]
    warnings: list[str]
    protocol: ScoringProtocol
    best: dict[str, dict[str, BestArms]]
    verdicts: list[SweepVerdict]


class ImageNumbers(TypedDict):
    """One arm on one split, in the order of its images."""

    alignment: list[float]
    rank: list[float]


class SplitNumbers(TypedDict):
    """One split of ``per_prompt.json``; ``judges`` is by judge and arm."""

    indices: list[int]
    captions: list[str]
    judges: dict[str, dict[str, ImageNumbers]]
