"""Features of a split's real images, kept beside its token cache for the next evaluation.

A training set is larger than what is drawn, does not change and is compared with by every run and
every point of a sweep.
"""

import hashlib
import json
from pathlib import Path

import torch
from accelerate import PartialState
from mm_cca.eval.features import Extractors, Features, extract
from mm_cca.eval.images import ImageSet
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from mm_cca.errors import UserError


def extract_once(
    images: ImageSet, extractors: Extractors, folder: Path, made_from: dict[str, object]
) -> Features:
    """``extract``, or what it gave before.

    Args:
        images: the set.
        extractors: the networks.
        folder: the cache; one file for each set and pair of networks.
        made_from: what tells this set from others, besides the networks and where they run.

    Raises:
        UserError: an image or the cache can't be read, or the cache can't be written.
    """
    inception = extractors.inception
    key = made_from | {
        "count": images.count,
        "scorer": extractors.scorer.sha256,
        "scorer_resize": extractors.scorer.resize,
        "inception": None if inception is None else inception.sha256,
        "device": PartialState().device.type,
        "torch": torch.__version__,
    }
    name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:32]
    path = folder / f"{name}.safetensors"
    is_there = path.exists()
    PartialState().wait_for_everyone()  # or a slow rank would find what a quick one has just made
    if is_there:
        return _read(path)
    found = extract(images, extractors)
    if PartialState().is_main_process:
        _write(path, found)
    return found


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
    beside = path.with_name(path.name + ".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(present, beside, metadata={"sha256": features.sha256})
        beside.replace(path)
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"{path} can't be written: {error}\nFree some space, or choose another run.tokens_dir."
        ) from error
