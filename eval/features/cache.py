"""Features of a split's real images, saved next to its token cache for the next evaluation.

There are more real images than sampled ones, and every point of a sweep uses the same ones. A
file's name is a digest of the images' bytes and of the networks' features of a test image, so
other weights, preprocessing, libraries or devices get a file of their own.
"""

import hashlib
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from mm_cca.config.read_files import is_there, reading
from mm_cca.errors import UserError
from mm_cca.eval.features.extract import Extractors, Features, extract
from mm_cca.eval.features.image_sets import ImageSet
from mm_cca.runs.files import atomic_path

PROBE_SIDE = 96


def extract_once(
    images: ImageSet, extractors: Extractors, folder: Path, made_from: list[str]
) -> Features:
    """``extract``, or its saved result.

    Args:
        images: the set.
        extractors: the networks.
        folder: of the cache; one file for each set and pair of networks.
        made_from: identifies the set: a digest of its bytes, and its preprocessing.

    Raises:
        UserError: an image or a file of the cache can't be read.
    """
    key = hashlib.sha256(repr([*made_from, images.count, *_probe(extractors)]).encode())
    path = folder / f"{key.hexdigest()[:32]}.safetensors"
    # Rank 0 decides for all: another run may finish the file between the ranks' checks.
    if gather_object([is_there(path)])[0]:
        return _read(path)
    features = extract(images, extractors)
    if PartialState().is_main_process:
        _write(path, features)
    return features


def _probe(extractors: Extractors) -> list[str]:
    """Digests of the features of one test image."""
    pixels = np.random.default_rng(0).integers(0, 256, (PROBE_SIDE, PROBE_SIDE, 3), dtype=np.uint8)
    image = [Image.fromarray(pixels)]
    outputs = [extractors.scorer.image_features(image)]
    if extractors.inception is not None:
        outputs.append(extractors.inception.features(image)[0])
    return [hashlib.sha256(features.numpy().tobytes()).hexdigest() for features in outputs]


def _read(path: Path) -> Features:
    with reading(path, "Delete it to recompute."):
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            metadata = file.metadata() or {}
            sha256 = metadata["sha256"]
        if metadata.get("features_sha256") not in (None, _digest(tensors)):
            raise ValueError("its features are not those that were written")
        if not all(bool(value.isfinite().all()) for value in tensors.values()):
            raise ValueError("it holds NaN or infinity")
        if "scorer" not in tensors:
            raise ValueError("it has no features of the scorer")
    return Features(tensors["scorer"], tensors.get("inception"), tensors.get("logits"), sha256)


def _digest(tensors: Mapping[str, torch.Tensor]) -> str:
    digest = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.contiguous().numpy().tobytes())
    return digest.hexdigest()


def _write(path: Path, features: Features) -> None:
    tensors = {
        "scorer": features.scorer,
        "inception": features.inception,
        "logits": features.logits,
    }
    present = {name: t.contiguous() for name, t in tensors.items() if t is not None}
    try:
        with atomic_path(path) as temporary:
            metadata = {"sha256": features.sha256, "features_sha256": _digest(present)}
            save_file(present, temporary, metadata=metadata)
    except (OSError, SafetensorError, UserError) as error:
        # The scores don't need the file, and shared tokens may be read-only.
        print(f"features of real images were not saved: {error}", file=sys.stderr)
