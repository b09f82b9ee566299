"""Reference sets of distances: real images, or a file with their mean and covariance.

Shapes: m images, F feature size.
"""

import hashlib
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from mm_cca.config.metrics import METRICS, FeatureSource, ReferenceNeed
from mm_cca.config.read_files import reading
from mm_cca.config.schema import Recipe
from mm_cca.errors import UserError
from mm_cca.eval.features.extract import Extractors, Features, extract
from mm_cca.eval.features.image_sets import RESIZE, ImageSet, folder_images, size_of, table_images
from mm_cca.eval.features.inception import RESIZE as INCEPTION_RESIZE
from mm_cca.eval.metrics.distances import Gaussian, frechet_distance, frechet_to, gaussian_of
from mm_cca.eval.metrics.frechet import FrechetTarget
from mm_cca.runs.files import atomic_path

FIELDS = ("extractor", "extractor_sha256", "resize", "image_size", "images", "images_sha256")
"""Protocol fields of a file of statistics, all of them text."""
INCEPTION_SIZE = 2048
NOT_RECORDED = "not recorded"
KINDS = {FeatureSource.SCORER: "scorer", FeatureSource.INCEPTION: "inception"}
"""What a file of statistics is called after."""


@dataclass(frozen=True)
class Statistics:
    """Mean and covariance of a set under one extractor, and how they were made.

    Attributes:
        gaussian: mu [F], sigma [F, F], n.
        protocol: a text for each of ``FIELDS``.
    """

    gaussian: Gaussian
    protocol: dict[str, str]


@dataclass(frozen=True)
class ReferenceSet:
    """One reference set.

    Attributes:
        name: a path, a hub name, or the split.
        n: images.
        sha256: over their pixels in order, or over the file of statistics.
        features: of its images; None where only statistics are left.
        statistics: of the only extractor that ``frechet`` may then be called for; None with
            features.
    """

    name: str
    n: int
    sha256: str
    features: Features | None
    statistics: Statistics | None
    _targets: dict[FeatureSource, FrechetTarget] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def frechet(self, generated: torch.Tensor, source: FeatureSource) -> float:
        """Frechet distance of [n, F] generated features of the same source."""
        if self.statistics is not None:
            return frechet_to(generated, self.statistics.gaussian)
        assert self.features is not None
        return frechet_distance(generated, self.features.of(source))

    def target(self, source: FeatureSource) -> FrechetTarget:
        """This set, prepared once for many Frechet distances."""
        if source not in self._targets:
            if self.statistics is not None:
                gaussian = self.statistics.gaussian
            else:
                assert self.features is not None
                gaussian = gaussian_of(self.features.of(source))
            self._targets[source] = FrechetTarget.of(gaussian)
        return self._targets[source]


def external_reference(recipe: Recipe, extractors: Extractors) -> ReferenceSet:
    """The reference set that ``eval.reference`` names.

    Raises:
        UserError: it does not exist, or is statistics of another extractor.
    """
    name = recipe.eval.real_reference
    assert name is not None
    path = Path(name)
    if path.suffix == ".npz":
        return _from_file(recipe, path, extractors)
    size = size_of(recipe)
    images = (
        folder_images(path, size)
        if path.is_dir()
        else table_images(recipe, name, recipe.eval.reference_split, size)
    )
    return reference_of(images, extract(images, extractors))


def files_digest(name: str) -> str | None:
    """sha256 over the names and sizes of ``eval.reference``'s files; None for one of the hub.

    A run scored with another reference must be noticed.
    """
    path = Path(name)
    if not path.exists():
        return None
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    lines = (f"{file.relative_to(path)} {file.stat().st_size}\n" for file in files)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def reference_of(images: ImageSet, features: Features) -> ReferenceSet:
    """A reference set of these images."""
    return ReferenceSet(images.name, images.count, features.sha256, features, None)


def save_statistics(
    recipe: Recipe,
    reference: ReferenceSet,
    extractors: Extractors,
    folder: Path,
    split: str,
    judge: int = 1,
) -> None:
    """Write ``SPLIT.scorer.npz`` and, with Inception features, ``SPLIT.inception.npz``.

    The file of the second judge is ``SPLIT.scorer2.npz``, and so on.
    """
    if reference.features is None:
        return
    for kind, features in (
        ("scorer", reference.features.scorer),
        ("inception", reference.features.inception),
    ):
        if features is not None:
            protocol = _protocol(recipe, extractors, kind) | {
                "images": reference.name,
                "images_sha256": reference.sha256,
            }
            suffix = "" if judge == 1 else str(judge)
            write_statistics(folder / f"{split}.{kind}{suffix}.npz", features, protocol)


def write_statistics(path: Path, features: torch.Tensor, protocol: dict[str, str]) -> None:
    """Write mu [F], sigma [F, F], n and the protocol of [m, F] features to an ``.npz``."""
    gaussian = gaussian_of(features)
    arrays = {
        "mu": gaussian.mu,
        "sigma": gaussian.sigma,
        "n": np.array(gaussian.n),
        **{key: np.array(text) for key, text in protocol.items()},
    }
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)


def read_statistics(path: Path) -> Statistics:
    """Read an ``.npz`` of mm_cca, or one with ``mu`` and ``sigma`` of another tool.

    Raises:
        UserError: missing, not such a file, or shapes that don't fit.
    """
    advice = (
        "eval.reference must be an .npz with mu [F] and sigma [F, F], such as "
        "runs/NAME/eval/reference/SPLIT.scorer.npz."
    )
    with reading(path, advice), np.load(path, allow_pickle=False) as file:
        mu, sigma = (file[key].astype(np.float64) for key in ("mu", "sigma"))
        n = int(file["n"]) if "n" in file else 0
        protocol = {key: str(file[key]) if key in file else NOT_RECORDED for key in FIELDS}
    if mu.ndim != 1 or sigma.shape != (len(mu), len(mu)):
        raise UserError(
            f"eval.reference {path} has mu {mu.shape} and sigma {sigma.shape}; they must be [F] "
            "and [F, F]."
        )
    return Statistics(Gaussian(mu, sigma, n), protocol)


def _from_file(recipe: Recipe, path: Path, extractors: Extractors) -> ReferenceSet:
    statistics = read_statistics(path)
    frechet = {n: m for n, m in METRICS.items() if m.needs is ReferenceNeed.STATISTICS}
    chosen = [name for name in recipe.eval.metrics if name in frechet]
    if len(chosen) != 1:
        raise UserError(
            f"eval.reference {path} has statistics of one extractor, and eval.metrics has "
            f"{len(chosen)} of {' and '.join(frechet)}. Use exactly one of them."
        )
    kind = KINDS[frechet[chosen[0]].source]
    _refuse_another_extractor(path, statistics, _protocol(recipe, extractors, kind), kind)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return ReferenceSet(str(path), statistics.gaussian.n, digest, None, statistics)


def _refuse_another_extractor(
    path: Path, statistics: Statistics, ours: dict[str, str], kind: str
) -> None:
    theirs = statistics.protocol
    if theirs["extractor"] == NOT_RECORDED:
        if kind == "inception" and len(statistics.gaussian.mu) == INCEPTION_SIZE:
            return  # the summary's warnings say so
        raise UserError(
            f"eval.reference {path} does not say which extractor made it; only fid takes such a "
            f"file, with {INCEPTION_SIZE} features. Recompute it with `mm-cca eval`."
        )
    differing = [
        f"  - {key}: {theirs[key]} in the file, {ours[key]} here"
        for key in ("extractor_sha256", "resize", "image_size")
        if theirs[key] != ours[key]
    ]
    if differing:
        listed = "\n".join(differing)
        raise UserError(
            f"eval.reference {path} was made with other settings:\n{listed}\nUse the same "
            "extractor and size, or recompute the file with `mm-cca eval`."
        )


def _protocol(recipe: Recipe, extractors: Extractors, kind: str) -> dict[str, str]:
    height, width = size_of(recipe)
    if kind == "inception":
        assert extractors.inception is not None
        name, sha256, resize = "inception", extractors.inception.sha256, INCEPTION_RESIZE
    else:
        scorer = extractors.scorer
        name, sha256, resize = scorer.name, scorer.sha256, scorer.resize
    return {
        "extractor": name,
        "extractor_sha256": sha256,
        "resize": f"{RESIZE}; then {resize}",
        "image_size": f"{height}x{width}",
    }
