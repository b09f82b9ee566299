"""Features of a split's real images, kept beside its token cache for the next evaluation.

They are more than what is drawn, and every point of a sweep compares with the same ones. A file is
named after the images' bytes and after what the networks make of a probe, so that other weights,
preprocessing, libraries or devices find no file of theirs.
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
    """``extract``, or what it gave before.

    Args:
        images: the set.
        extractors: the networks.
        folder: the cache; one file for each set and pair of networks.
        made_from: tells this set from all others: its bytes and what becomes of them.

    Raises:
        UserError: an image or a file of the cache can't be read.
    """
    key = hashlib.sha256(repr([*made_from, images.count, *_probe(extractors)]).encode())
    path = folder / f"{key.hexdigest()[:32]}.safetensors"
    # One rank looks, for another run may finish the file while the ranks look one by one.
    if gather_object([path.exists()])[0]:
        return _read(path)
    found = extract(images, extractors)
    if PartialState().is_main_process:
        _write(path, found)
    return found


def _probe(extractors: Extractors) -> list[str]:
    """Digests of the features of one picture."""
    pixels = np.random.default_rng(0).integers(0, 256, (PROBE_SIDE, PROBE_SIDE, 3), dtype=np.uint8)
    picture = [Image.fromarray(pixels)]
    found = [extractors.scorer.image_features(picture)]
    if extractors.inception is not None:
        found.append(extractors.inception.features(picture)[0])
    return [hashlib.sha256(features.numpy().tobytes()).hexdigest() for features in found]


def _read(path: Path) -> Features:
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            sha256 = file.metadata()["sha256"]
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} can't be read: {error}\nDelete it to make it anew.") from error
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
        # The scores are right without it, and tokens may be shared by people who only read them.
        print(f"features of real images were not kept: {error}", file=sys.stderr)
