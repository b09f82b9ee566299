"""One rule for the beta of ``cca`` and ``dpo``, from what the base knows about its prompts.

``loss.beta`` multiplies a log-likelihood ratio of whole images, so the beta that works depends on
how many nats an image carries about its prompt, not on its number of codes: 8,100 codes do not say
126 times as much about a caption as 64 do.

The rule. Guidance of scale s adds ``(s - 1) (log p(x|c) - log p(x))`` to ``log p(x|c)``. Between an
image's own prompt c and a wrong one c' it so opens a margin of ``(s - 1) W`` nats, where
``W = log p(x|c) - log p(x|c')`` of the base; with its own prompt alone the image gains
``(s - 1) U`` nats, where ``U = log p(x|c) - log p(x)``. The logistic functions of the loss bend
within a few units and are flat beyond, so beta times these margins must be a few units at the
strength of guidance that is to be replaced (s of 2 to 3): ``beta = K / max(U, W)`` makes the wider
of the two K (s - 1) units wide. K is fitted once, to the demo: beta .01 is best there (RESULTS.md),
where W is 153 nats, so K = 1.5.

Assumptions: that the useful strength is a scale of 2 to 3; that negatives are typical of the
recipe's own; and that training stops long before the optimum
``beta * gap = log p(x|c) - log p(x) - log lambda``, which with so small a beta would be guidance of
scale 1 + 1/beta. By the same rule the paper's 0.02 (arXiv 2410.09347, images of 576 codes given a
class) is right for a base with W of 75 nats; the paper does not give W.
"""

import math
from dataclasses import dataclass

import numpy as np

from mm_cca import objectives
from mm_cca.config.schema import LossConfig

K = 1.5
"""Units of the logistic's argument per unit of guidance scale above 1, between own and wrong."""
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
        """The margin that the rule divides by."""
        return max(self.unconditional.mean, self.negative.mean, LEAST_NATS)


def beta_by_rule(measured: BaseMeasurement) -> float:
    """K / max(U, W, 1 nat): of whole images, not to be rescaled by the number of codes."""
    return K / measured.nats


def beta_of(loss: LossConfig, num_codes: int) -> float:
    """The factor on the gap of images of ``num_codes`` codes, once ``auto`` has been settled."""
    assert not isinstance(loss.beta, str), "settle_beta comes first"
    return objectives.length_aware_beta(loss.beta, loss.beta_codes, num_codes)
