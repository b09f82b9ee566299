"""One rule for the beta of ``cca`` and ``dpo``, from what the base knows about its prompts.

``loss.beta`` multiplies a log-likelihood ratio of whole images, and the logistic functions of the
loss bend where that ratio reaches some 1 / beta nats. Before it they are straight lines, which push
negatives down without a limit; far beyond it they are flat. Where must they bend?

1. Guidance of scale s adds ``(s - 1) (log p(x|c) - log p(x))`` to ``log p(x|c)``. Between an
   image's own prompt c and a wrong one c' it so opens a margin of ``(s - 1) W`` nats, with
   ``W = log p(x|c) - log p(x|c')`` of the base; with its own prompt alone an image gains
   ``(s - 1) U``, with ``U = log p(x|c) - log p(x)``. The loss must bend at the strength of guidance
   that it is to replace (s of 2 to 3): no later than at ``max(U, W) / K``. This does not depend on
   the number of codes: 8,100 codes do not say 126 times as much about a caption as 64 do.
2. What is taken from negatives is in part taken from the images' own captions too, and images are
   ruined by how much each *code* loses. So the loss must also bend before ``BEND`` nats a code.

Hence ``beta = max(K / max(U, W), 1 / (BEND * number of codes))``. Images of many codes are decided
by the first, of few codes by the second; the paper and the old rescaling by codes know only a
constant times the second. Both constants are fitted to one point, the demo's beta .01 at 64 codes
and W = 153 nats (RESULTS.md), which meets both at once: K = 1.5 and BEND = 1.6.

Assumptions: that the useful strength is a scale of 2 to 3; that the measured negatives are typical;
that lambda is about 10; and that training stops long before the optimum
``beta * gap = log p(x|c) - log p(x) - log lambda``, which with so small a beta would be guidance of
scale 1 + 1/beta. By the same rule the paper's 0.02 (arXiv 2410.09347, 576 codes given a class) is
right for a base with W of 75 nats, or U if that is larger; the paper gives neither.
"""

import math
from dataclasses import dataclass

import numpy as np

from mm_cca import objectives
from mm_cca.config.schema import LossConfig

K = 1.5
"""Units of the logistic's argument per unit of guidance scale above 1, between own and wrong."""
BEND = 1.6
"""Nats per code at which the loss must have bent; health.py calls -1 a collapse."""
LEAST_NATS = 1.0
"""A base that ignores its prompts would give an infinite beta; at most K with one nat."""


@dataclass(frozen=True)
class Spread:
    """Of a log-likelihood ratio over pairs, in nats per image.

    Attributes:
        mean: over the pairs.
        error: standard error of the mean.
        low: the 10 % quantile.
        high: the 90 % quantile.
    """

    mean: float
    error: float
    low: float
    high: float

    @classmethod
    def of(cls, values: np.ndarray) -> "Spread":
        """Of [pairs] or [m, pairs] values, two pairs or more.

        The m values of one image are averaged before the standard error, as they are not
        independent.
        """
        per_pair = np.atleast_2d(values).mean(axis=0)
        low, high = np.quantile(values, [0.1, 0.9]).tolist()
        error = float(per_pair.std(ddof=1)) / math.sqrt(len(per_pair))
        return cls(float(per_pair.mean()), error, low, high)


@dataclass(frozen=True)
class BaseMeasurement:
    """What the base knows about its prompts.

    Attributes:
        unconditional: U, log p(x | c) - log p(x).
        negative: W, log p(x | c) - log p(x | negative c).
        num_pairs: how many pairs were measured.
        num_codes: per image.
        usual_scale: the model family's default guidance scale.
    """

    unconditional: Spread
    negative: Spread
    num_pairs: int
    num_codes: int
    usual_scale: float

    @property
    def nats(self) -> float:
        """max(U, W), at least one nat."""
        return max(self.unconditional.mean, self.negative.mean, LEAST_NATS)

    @property
    def few_codes(self) -> bool:
        """Whether the number of codes decides, not what they say."""
        return self.nats / K > BEND * self.num_codes


def beta_by_rule(measured: BaseMeasurement) -> float:
    """Of whole images, not to be rescaled by the number of codes."""
    return 1 / min(measured.nats / K, BEND * measured.num_codes)


def formula_of(measured: BaseMeasurement) -> str:
    """The rule with its numbers, as told to users."""
    beta = f"{beta_by_rule(measured):.2g}"
    if measured.few_codes:
        return f"1 / ({BEND:g} * {measured.num_codes} codes) = {beta}"
    return f"{K:g} / {measured.nats:.0f} nats = {beta}"


def beta_of(loss: LossConfig, num_codes: int) -> float:
    """The factor on the gap of images of ``num_codes`` codes, once ``auto`` has been settled."""
    assert not isinstance(loss.beta, str), "settle_beta comes first"
    return objectives.length_aware_beta(loss.beta, loss.beta_codes, num_codes)
