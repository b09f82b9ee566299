"""The Inception of FID: the TensorFlow network of 2015 in torch-fidelity's conversion.

Only its features make a Frechet distance an FID. Shapes: n images.
"""

import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from urllib.error import URLError

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch_fidelity.feature_extractor_inceptionv3 import (
    URL_INCEPTION_V3,
    FeatureExtractorInceptionV3,
)

from mm_cca.errors import UserError

PUBLISHED = "6726825d"
"""How the sha256 of the published file begins; the file is named after it."""
DOWNLOAD = "download"
RESIZE = "bilinear to 299x299 as TensorFlow 1 does it, not antialiased (torch-fidelity)"
READ_ERRORS = (OSError, RuntimeError, ValueError, EOFError, KeyError)


@dataclass(frozen=True)
class Inception:
    """The network, and the sha256 of its weights file."""

    sha256: str
    model: nn.Module
    device: torch.device

    @property
    def is_published(self) -> bool:
        return self.sha256.startswith(PUBLISHED)

    @torch.no_grad()
    def features(self, images: Sequence[Image.Image]) -> tuple[torch.Tensor, torch.Tensor]:
        """[n, 2048] pool features and [n, 1008] logits without bias, float32 on the CPU.

        Args:
            images: RGB, all of one size.
        """
        pixels = torch.from_numpy(np.stack([np.asarray(image) for image in images]))
        pool, logits = self.model(pixels.permute(0, 3, 1, 2).to(self.device))
        return pool.float().cpu(), logits.float().cpu()


def load_inception(weights: str, sha256: str | None, device: torch.device) -> Inception:
    """Load the weights after checking the sha256 of their file.

    Args:
        weights: a file, or ``download``.
        sha256: how the file's sha256 must begin; None is the published file's.
        device: where to run.

    Raises:
        UserError: no such file, another sha256, or no weights of this network in it.
    """
    path = _downloaded() if weights == DOWNLOAD else Path(weights)
    if not path.is_file():
        raise UserError(
            f"eval.inception_weights is {weights!r}, and there is no such file. Give the file "
            f"{Path(URL_INCEPTION_V3).name} ({URL_INCEPTION_V3}) or {DOWNLOAD!r}."
        )
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    expected = (sha256 or PUBLISHED).lower()
    if not digest.startswith(expected):
        raise UserError(
            f"{path} has the sha256 {digest}, which should begin with {expected}: the download is "
            "incomplete, or it is a different file. Download it again, or set "
            "eval.inception_sha256 if you mean these weights."
        )
    try:
        return Inception(digest, _build(path).to(device), device)
    except UnpicklingError as error:  # torch's own advice is to load it unsafely
        raise UserError(
            f"{path} has no weights of torch-fidelity's Inception: it would run code when read. "
            "Download the published file, or save a plain state dict."
        ) from error
    except READ_ERRORS as error:
        raise UserError(f"{path} has no weights of torch-fidelity's Inception: {error}") from error


def _build(path: Path) -> nn.Module:
    """torch-fidelity unpickles any file; pass it only tensors that were loaded safely."""
    tensors = torch.load(path, map_location="cpu", weights_only=True)
    safe = io.BytesIO()
    torch.save(tensors, safe)
    safe.seek(0)
    return FeatureExtractorInceptionV3(
        "inception-v3-compat", ["2048", "logits_unbiased"], feature_extractor_weights_path=safe
    )


def _downloaded() -> Path:
    """The published file in torch's cache."""
    path = Path(torch.hub.get_dir()) / "checkpoints" / Path(URL_INCEPTION_V3).name
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(URL_INCEPTION_V3, str(path), hash_prefix=PUBLISHED)
        except (URLError, OSError, RuntimeError) as error:
            raise UserError(
                f"{URL_INCEPTION_V3} can't be downloaded: {error}\nDownload it on another "
                "machine and name the file in eval.inception_weights."
            ) from error
    return path
