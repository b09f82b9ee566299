"""Who stands for CCA and for each baseline: the best of its kind, chosen on other prompts.

A score of the best of several arms is flattered by the choice. So the prompts are halved; the best
on one half is judged on the other, both ways, and both halves count. Where they agree on the best,
all prompts are judged at once.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mm_cca.eval.differences import Fold, Parts, ScoreOfArms
from mm_cca.eval.metrics.bootstrap import halves_of
from mm_cca.sampling.arms import Arm

ALL, FIRST, SECOND = "all", "first half", "second half"
OTHER = {FIRST: SECOND, SECOND: FIRST}
FEWEST_TO_HALVE = 8
"""Of fewer prompts the best are chosen and judged on all of them, and a caution says so."""
CROSS_FIT_WIDENING = math.sqrt(1.36)
"""Both halves choose and judge, so their differences are not independent: where nothing differs,
the covariance adds up to .36 to the variance (the most over any number of equal arms, which is at
three). The standard error is widened by as much."""
CHOICE_RULE = (
    "For every score, CCA, CCA at other dials, the base, the guided base, the control and the "
    "guided control are each represented by the best of their guidance scales, negative prompts, "
    "dials and temperatures in that score. The best is chosen on one half of the prompts and "
    "judged on the other, both ways; standard errors are widened by "
    f"{CROSS_FIT_WIDENING:.2f} for the dependence of the halves."
)
"""For the protocol and the report."""


@dataclass(frozen=True)
class Contestant:
    """Arms of one kind, of which the best is compared.

    Attributes:
        kind: such as "guided base".
        members: names of arms, one or more.
    """

    kind: str
    members: tuple[str, ...]


def candidates_of(arms: Sequence[Arm], *, finetuned: bool = False) -> list[Contestant]:
    """CCA without guidance at any temperature, and the same at other dials.

    A model that was ``finetuned`` plainly needs guidance, so its guided arms come first.
    """
    guided = tuple(arm.name for arm in arms if arm.source == "cca" and arm.is_guided)
    unguided = [arm for arm in arms if arm.source == "cca" and not arm.is_guided]
    plain = tuple(arm.name for arm in unguided if arm.dial == 1.0)
    dialled = tuple(arm.name for arm in unguided if arm.dial != 1.0)
    return _present(
        Contestant("guided cca", guided if finetuned else ()),
        Contestant("cca", plain),
        Contestant("cca at another dial", dialled),
    )


def rivals_of(arms: Sequence[Arm]) -> list[Contestant]:
    """Base and control, without guidance and with any, at any temperature."""

    def members(source: str, *, guided: bool) -> tuple[str, ...]:
        return tuple(a.name for a in arms if a.source == source and a.is_guided == guided)

    return _present(
        Contestant("base", members("base", guided=False)),
        Contestant("guided base", members("base", guided=True)),
        Contestant("guided control", members("control", guided=True)),
        Contestant("control", members("control", guided=False)),
    )


def _present(*contestants: Contestant) -> list[Contestant]:
    return [each for each in contestants if each.members]


def parts_of(num_prompts: int, seed: int) -> Parts:
    """All prompts, and, unless they are few, their two halves."""
    parts = {ALL: np.arange(num_prompts)}
    if num_prompts >= FEWEST_TO_HALVE:
        parts[FIRST], parts[SECOND] = halves_of(num_prompts, seed=seed)
    return parts


def best_of(
    contestant: Contestant, score: ScoreOfArms, part: str, *, higher_is_better: bool
) -> str:
    """The best member on a part of the prompts; of equal ones the first."""
    if len(contestant.members) == 1:
        return contestant.members[0]
    sign = 1 if higher_is_better else -1
    return max(contestant.members, key=lambda name: sign * score.value(name, part))


def folds_of(
    ours: Contestant,
    theirs: Contestant,
    score: ScoreOfArms,
    parts: Parts,
    *,
    higher_is_better: bool,
) -> list[Fold]:
    """Who is compared on which prompts: one fold with all of them, or one per half."""

    def chosen_on(part: str) -> tuple[str, str]:
        best = [best_of(c, score, part, higher_is_better=higher_is_better) for c in (ours, theirs)]
        return best[0], best[1]

    if not is_choice(ours, theirs) or FIRST not in parts:
        return [Fold(*chosen_on(ALL), ALL)]
    chosen = {part: chosen_on(part) for part in (FIRST, SECOND)}
    if chosen[FIRST] == chosen[SECOND]:
        return [Fold(*chosen[FIRST], ALL)]
    return [Fold(*chosen[OTHER[part]], part) for part in (FIRST, SECOND)]


def is_choice(ours: Contestant, theirs: Contestant) -> bool:
    """Whether either side has more than one arm to choose from."""
    return len(ours.members) > 1 or len(theirs.members) > 1
