"""What ``mm-cca compare`` finds out about two runs, A and B."""

from typing import NamedTuple

from mm_cca.eval.summary_types import Interval


class ScoreDifference(NamedTuple):
    """One score of an arm of A and an arm of B.

    Attributes:
        metric: its name.
        values: of A and of B. Of a mean over prompts: over those that both drew.
        difference: B minus A, paired by prompt; None where its interval can't be told.
        own: each side's own interval, if it has one.
        lacking: why there is no difference with an interval, in words; empty where there is one.
        better: the run that is better, ``A`` or ``B``, where the interval excludes 0.
    """

    metric: str
    values: tuple[float, float]
    difference: Interval | None
    better: str | None
    own: tuple[Interval | None, Interval | None] = (None, None)
    lacking: str = ""


class ArmPair(NamedTuple):
    """An arm of A and an arm of B."""

    a: str
    b: str

    @property
    def name(self) -> str:
        return self.a if self.a == self.b else f"{self.a} / {self.b}"


class JudgedPair(NamedTuple):
    """A pair of arms by one judge; ``confidence`` is that of every interval."""

    pair: ArmPair
    judge: str
    scores: list[ScoreDifference]

    @property
    def is_same(self) -> bool:
        """Whether both runs have the same numbers, as arms of one base do."""
        return all(score.values[0] == score.values[1] for score in self.scores)


class SharedPrompt(NamedTuple):
    """A prompt that both drew: the numbers of its first image in A and in B, and by judge and pair
    the alignments x100 of its images in A and in B, as means."""

    caption: str
    images: tuple[int, int]
    alignments: dict[str, dict[str, tuple[float, float]]]


class SplitComparison(NamedTuple):
    """One split.

    Attributes:
        split: its name.
        num_prompts: how many A and B drew.
        prompts: those of both.
        judged: by judge and pair of arms.
    """

    split: str
    num_prompts: tuple[int, int]
    prompts: list[SharedPrompt]
    judged: list[JudgedPair]


class ProtocolDifference(NamedTuple):
    """A field of the protocols that differs, and what that means for the comparison."""

    field: str
    values: tuple[object, object]
    consequence: str


class RunComparison(NamedTuple):
    """Two runs, split by split, and how they were scored differently."""

    names: tuple[str, str]
    splits: list[SplitComparison]
    differing: list[ProtocolDifference]


class Preference(NamedTuple):
    """How often the first arm was preferred.

    Attributes:
        share: of the first arm over prompts, a vote for neither counting half; its 95 % interval.
        first: votes for the first arm.
        second: for the second one.
        neither: for neither.
        left: share of the votes for either that were for the left picture; far from a half, the
            place decided.
    """

    share: Interval
    first: int
    second: int
    neither: int
    left: float | None
