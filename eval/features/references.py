"""What distances between sets compare with: real images, or their mean and covariance in a file.

Shapes: m images, F feature size.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mm_cca.config.schema import Recipe
from mm_cca.errors import UserError
from mm_cca.eval.features.extract import Extractors, Features, extract
from mm_cca.eval.features.image_sets import RESIZE, ImageSet, folder_images, size_of, table_images
from mm_cca.eval.features.inception import RESIZE as INCEPTION_RESIZE
from mm_cca.eval.metrics.distances import Gaussian, frechet_distance, frechet_to, gaussian_of
from mm_cca.runs.files import atomic_path

FIELDS = ("extractor", "extractor_sha256", "resize", "image_size", "images", "images_sha256")
"""Protocol fields of a file of statistics, all of them text."""
INCEPTION_SIZE = 2048


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
        name: what it is.
        n: images.
        sha256: over their pixels in order, or over the file of statistics.
        features: of its images; None where only statistics are left.
        statistics: of the extractor that ``frechet`` is asked about; None with features.
    """

    name: str
    n: int
    sha256: str
    features: Features | None
    statistics: Statistics | None

    def frechet(self, generated: Features, *, inception: bool) -> float:
        """Frechet distance of a generated set, on Inception or on the scorer's features."""
        ours = generated.inception if inception else generated.scorer
        assert ours is not None
        if self.statistics is not None:
            return frechet_to(ours, self.statistics.gaussian)
        assert self.features is not None
        real = self.features.inception if inception else self.features.scorer
        assert real is not None
        return frechet_distance(ours, real)


def external_reference(recipe: Recipe, extractors: Extractors) -> ReferenceSet:
    """What ``eval.reference`` names.

    Raises:
        UserError: nothing there, or statistics of another extractor.
    """
    name = recipe.eval.reference
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

    A reference that was exchanged must not pass for the one that a run was scored with.
    """
    path = Path(name)
    if not path.exists():
        return None
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    lines = (f"{file.relative_to(path)} {file.stat().st_size}\n" for file in files)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def reference_of(images: ImageSet, features: Features) -> ReferenceSet:
    """A reference of images that are at hand."""
    return ReferenceSet(images.name, images.count, features.sha256, features, None)


def save_statistics(
    recipe: Recipe, reference: ReferenceSet, extractors: Extractors, folder: Path, split: str
) -> None:
    """Write ``SPLIT.scorer.npz`` and, with Inception features, ``SPLIT.inception.npz``."""
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
            write_statistics(folder / f"{split}.{kind}.npz", features, protocol)


def write_statistics(path: Path, features: torch.Tensor, protocol: dict[str, str]) -> None:
    """Write mu [F], sigma [F, F], n and the protocol of [m, F] features to an ``.npz``."""
    found = gaussian_of(features)
    arrays: dict[str, Any] = {"mu": found.mu, "sigma": found.sigma, "n": found.n, **protocol}
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **arrays)


def read_statistics(path: Path) -> Statistics:
    """Read an ``.npz`` of ours, or one with ``mu`` and ``sigma`` of another tool.

    Raises:
        UserError: not there, not such a file, or shapes that don't fit.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            mu, sigma = (file[key].astype(np.float64) for key in ("mu", "sigma"))
            n = int(file["n"]) if "n" in file else 0
            protocol = {key: str(file[key]) if key in file else "not recorded" for key in FIELDS}
    except (OSError, KeyError, ValueError) as error:
        raise UserError(
            f"eval.reference {path} can't be read: {error}\nIt must be an .npz with mu [F] and "
            "sigma [F, F], such as runs/NAME/eval/reference/SPLIT.scorer.npz."
        ) from error
    if mu.ndim != 1 or sigma.shape != (len(mu), len(mu)):
        raise UserError(
            f"eval.reference {path} holds mu {mu.shape} and sigma {sigma.shape}; they must be [F] "
            "and [F, F]."
        )
    return Statistics(Gaussian(mu, sigma, n), protocol)


def _from_file(recipe: Recipe, path: Path, extractors: Extractors) -> ReferenceSet:
    statistics = read_statistics(path)
    kinds = {"frechet_distance": "scorer", "fid": "inception"}
    wanted = [kinds[name] for name in recipe.eval.metrics if name in kinds]
    if len(wanted) != 1:
        raise UserError(
            f"eval.reference {path} serves one extractor, and eval.metrics asks for "
            f"{len(wanted)} of fid and frechet_distance. Ask for one of them."
        )
    _refuse_another_extractor(path, statistics, _protocol(recipe, extractors, wanted[0]), wanted[0])
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return ReferenceSet(str(path), statistics.gaussian.n, digest, None, statistics)


def _refuse_another_extractor(
    path: Path, statistics: Statistics, ours: dict[str, str], kind: str
) -> None:
    theirs = statistics.protocol
    if theirs["extractor"] == "not recorded":
        if kind == "inception" and len(statistics.gaussian.mu) == INCEPTION_SIZE:
            return  # told in the summary's warnings
        raise UserError(
            f"eval.reference {path} does not say which extractor made it, and only fid takes such "
            f"a file, of {INCEPTION_SIZE} features. Make it anew with `mm-cca eval`."
        )
    differing = [
        f"  - {key}: {theirs[key]} in the file, {ours[key]} here"
        for key in ("extractor_sha256", "resize", "image_size")
        if theirs[key] != ours[key]
    ]
    if differing:
        listed = "\n".join(differing)
        raise UserError(
            f"eval.reference {path} was made in another way:\n{listed}\nUse the same extractor "
            "and size, or make the file anew with `mm-cca eval`."
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
