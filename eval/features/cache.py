"""Features of a split's real images, saved next to its token cache for the next evaluation.

There are more real images than sampled ones, and every point of a sweep uses the same ones. A
file's name is a digest of the images' bytes and of the networks' features of a test image, so
other weights, preprocessing, libraries or devices get a file of their own.
"""

import hashlib
import sys
from pathlib import Path

import numpy as np
from accelerate import PartialState
from accelerate.utils import gather_object
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

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
    if gather_object([path.exists()])[0]:
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
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            sha256 = file.metadata()["sha256"]
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} can't be read: {error}\nDelete it to recompute.") from error
    return Features(tensors["scorer"], tensors.get("inception"), tensors.get("logits"), sha256)


def _write(path: Path, features: Features) -> None:
    tensors = {
        "scorer": features.scorer,
        "inception": features.inception,
        "logits": features.logits,
    }
    present = {name: t.contiguous() for name, t in tensors.items() if t is not None}
    try:
        with atomic_path(path) as temporary:
            save_file(present, temporary, metadata={"sha256": features.sha256})
    except (OSError, SafetensorError) as error:
        # The scores don't need the file, and shared tokens may be read-only.
        print(f"features of real images were not saved: {error}", file=sys.stderr)
