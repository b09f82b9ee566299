"""The metrics of ``eval.metrics``: everything about each that is not its computation.

A new metric is an entry here and a function of the same name in ``eval/scores.py``. Recipe checks,
protocol, report, verdicts, model card and sweep page read this table. Nothing here imports torch,
as recipes are checked before it is loaded.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from enum import Enum
from typing import Literal

from mm_cca.config.paths import exists


class FeatureSource(Enum):
    """What a metric is computed from; the value is how the protocol says it."""

    CAPTIONS = "scorer, image and caption"
    SCORER = "scorer's image features"
    INCEPTION = "Inception features"


class ReferenceNeed(Enum):
    """What a metric needs of the real images."""

    NONE = "nothing"
    STATISTICS = "their mean and covariance"
    IMAGES = "every single image"


class Verdict(Enum):
    """How CCA's difference to a baseline in this metric is reported."""

    NONE = "not computed"
    TABLE = "in the table of differences"
    SENTENCE = "in the table and in the sentence of the verdict"


@dataclass(frozen=True)
class Metric:
    """One metric.

    Attributes:
        label: its name in tables, plots and sentences.
        definition: in words, for the protocol; runs compare only if it is the same.
        digits: shown after the decimal point.
        source: of the features it is computed from.
        needs: what it needs of real images.
        higher_is_better: its direction.
        unit: added to the label in headings, such as the factor of the alignment.
        hint: what it measures, in a word or two, for the tooltip of its column.
        min_reference_images: fewer real images than this are refused.
        is_default: whether recipes that name no metrics compute it.
        terminal_priority: the five lowest numbers that a run has get a column in the terminal;
            None never does.
        on_model_card: whether ``mm-cca export`` lists it.
        on_sweep_page: whether a sweep can't do without it.
        axis: of the plot of fidelity against diversity; the first metric that a run has is plotted.
        verdict: how differences between arms are reported.
        reference: which images it compares with, where it needs any: real ones, or the image
            tokenizer's reconstructions of the same ones.
    """

    label: str
    definition: str
    digits: int
    source: FeatureSource
    needs: ReferenceNeed = ReferenceNeed.NONE
    higher_is_better: bool = True
    unit: str = ""
    hint: str = ""
    min_reference_images: int = 0
    is_default: bool = False
    terminal_priority: int | None = None
    on_model_card: bool = False
    on_sweep_page: bool = False
    axis: Literal["fidelity", "diversity"] | None = None
    verdict: Verdict = Verdict.NONE
    reference: Literal["real", "reconstruction"] = "real"

    @property
    def heading(self) -> str:
        """The label with its unit."""
        return f"{self.label} {self.unit}".rstrip()

    @property
    def direction(self) -> str:
        """Which way is better, and what is measured."""
        better = "higher is better" if self.higher_is_better else "lower is better"
        return f"{better}: {self.hint}" if self.hint else better


TO_REAL = {
    "alignment": Metric(
        label="alignment",
        unit="×100",
        definition="mean of 100 cos(image, caption)",
        digits=1,
        source=FeatureSource.CAPTIONS,
        is_default=True,
        terminal_priority=1,
        on_model_card=True,
        on_sweep_page=True,
        verdict=Verdict.SENTENCE,
    ),
    "r_at_1": Metric(
        label="R@1",
        definition="share whose own caption is the best of all",
        digits=3,
        source=FeatureSource.CAPTIONS,
        is_default=True,
        terminal_priority=7,
        on_sweep_page=True,
    ),
    "r_at_5": Metric(
        label="R@5",
        definition="share whose own caption is among the best 5",
        digits=3,
        source=FeatureSource.CAPTIONS,
        is_default=True,
        terminal_priority=2,
        on_model_card=True,
        on_sweep_page=True,
        verdict=Verdict.TABLE,
    ),
    "frechet_distance": Metric(
        label="FD",
        definition="Frechet distance (torchmetrics)",
        digits=2,
        source=FeatureSource.SCORER,
        needs=ReferenceNeed.STATISTICS,
        higher_is_better=False,
        is_default=True,
        terminal_priority=3,
        on_model_card=True,
        on_sweep_page=True,
        axis="fidelity",
        verdict=Verdict.SENTENCE,
    ),
    "kernel_distance": Metric(
        label="KD",
        definition="cubic-kernel MMD, mean of 50 subsets of at most 1,000",
        digits=3,
        source=FeatureSource.SCORER,
        needs=ReferenceNeed.IMAGES,
        higher_is_better=False,
        is_default=True,
        verdict=Verdict.SENTENCE,
    ),
    "precision": Metric(
        label="precision",
        definition="improved precision, 3 neighbours (torch-fidelity)",
        digits=3,
        source=FeatureSource.SCORER,
        needs=ReferenceNeed.IMAGES,
        hint="fidelity",
        is_default=True,
    ),
    "recall": Metric(
        label="recall",
        definition="improved recall, 3 neighbours (torch-fidelity)",
        digits=3,
        source=FeatureSource.SCORER,
        needs=ReferenceNeed.IMAGES,
        hint="diversity",
        is_default=True,
        terminal_priority=6,
        on_sweep_page=True,
        axis="diversity",
    ),
    "clip_score": Metric(
        label="CLIP score",
        definition="mean of 100 max(cos(image, caption), 0)",
        digits=2,
        source=FeatureSource.CAPTIONS,
        terminal_priority=5,
        on_model_card=True,
    ),
    "density": Metric(
        label="density",
        definition="density, 5 neighbours (Naeem et al., 2020)",
        digits=3,
        source=FeatureSource.SCORER,
        needs=ReferenceNeed.IMAGES,
        hint="fidelity",
        min_reference_images=6,
    ),
    "coverage": Metric(
        label="coverage",
        definition="coverage, 5 neighbours (Naeem et al., 2020)",
        digits=3,
        source=FeatureSource.SCORER,
        needs=ReferenceNeed.IMAGES,
        hint="diversity",
        min_reference_images=6,
        axis="diversity",
    ),
    "cmmd": Metric(
        label="CMMD",
        definition="1000 x MMD^2, Gaussian kernel of width 10, normalised",
        digits=3,
        source=FeatureSource.SCORER,
        needs=ReferenceNeed.IMAGES,
        higher_is_better=False,
    ),
    "fid": Metric(
        label="FID",
        definition="Frechet Inception distance (torchmetrics)",
        digits=2,
        source=FeatureSource.INCEPTION,
        needs=ReferenceNeed.STATISTICS,
        higher_is_better=False,
        terminal_priority=4,
        on_model_card=True,
        axis="fidelity",
    ),
    "kid": Metric(
        label="KID",
        definition="cubic-kernel MMD, mean of 50 subsets of at most 1,000",
        digits=4,
        source=FeatureSource.INCEPTION,
        needs=ReferenceNeed.IMAGES,
        higher_is_better=False,
    ),
    "inception_score": Metric(
        label="IS",
        definition="10 shuffled splits (torchmetrics)",
        digits=2,
        source=FeatureSource.INCEPTION,
    ),
}
"""The metrics that recipes name; distances are to real images."""
AGAINST_RECONSTRUCTIONS = (
    "frechet_distance",
    "kernel_distance",
    "precision",
    "recall",
    "density",
    "coverage",
)
"""Computed against reconstructions too, with ``eval.reference: reconstruction``."""


def reconstruction_name(name: str) -> str:
    """The name of a metric against reconstructions."""
    return f"{name}_reconstruction"


def _against_reconstructions(metric: Metric) -> Metric:
    return replace(
        metric,
        label=f"{metric.label} (rec)",
        definition=f"{metric.definition}, to the tokenizer's reconstructions of real images",
        reference="reconstruction",
        hint=f"{metric.hint} of the decoder" if metric.hint else "the tokenizer's loss left out",
        is_default=False,
        on_sweep_page=False,
    )


def _with_reconstructions(metrics: Mapping[str, Metric]) -> dict[str, Metric]:
    """Every metric, followed by the same against reconstructions where there is such."""
    both = {}
    for name, metric in metrics.items():
        both[name] = metric
        if name in AGAINST_RECONSTRUCTIONS:
            both[reconstruction_name(name)] = _against_reconstructions(metric)
    return both


METRICS = _with_reconstructions(TO_REAL)
"""In the order of the columns of a table."""


def with_reconstructions(names: Iterable[str]) -> list[str]:
    """Metrics in their order, each followed by the same against reconstructions if there is one."""
    both: dict[str, None] = {}
    for name in names:
        both[name] = None
        if name in AGAINST_RECONSTRUCTIONS:
            both[reconstruction_name(name)] = None
    return list(both)


def in_sentence(present: Iterable[str]) -> list[str]:
    """The metrics that a verdict's sentence names, of those that have a difference.

    A distance to reconstructions takes the place of the same distance to real images, most of which
    is the image tokenizer's.
    """
    names = set(present)
    return [
        name
        for name, metric in METRICS.items()
        if name in names
        and metric.verdict is Verdict.SENTENCE
        and reconstruction_name(name) not in names
    ]


LEAD = "alignment"
"""The metric that comes first in a verdict, and that names the best guided arm in tables."""
DEFAULT = [name for name, metric in METRICS.items() if metric.is_default]
SWEEP_VERDICTS = (LEAD, "frechet_distance", "kernel_distance", "recall")
"""What the points of a sweep are compared with the guided base in."""
NEEDED_BY_SWEEP = tuple(name for name, metric in METRICS.items() if metric.on_sweep_page)
"""Columns and plots of sweep.html."""


def is_published_clip(scorer: str, pretrained: str | None) -> bool:
    """Whether the name alone says that this is a published CLIP: a hub name or an open_clip tag.

    A folder may hold anything, and SigLIP is no CLIP: their cosines are an alignment.
    """
    if "siglip" in scorer.lower():
        return False
    if scorer.startswith(("hf-hub:", "hf:")):
        name = scorer.partition(":")[2]
        return name.count("/") == 1 and not exists(name)
    # A tag of open_clip has neither a slash nor a dot; a file of weights has one of them.
    return ":" not in scorer and pretrained is not None and not {"/", "."} & set(pretrained)
