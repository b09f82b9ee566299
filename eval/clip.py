"""Image and text features of an open_clip model, and how well the two agree.

Scores carry the model's name. Only a published CLIP gives a CLIP score; the demo's ``emoji-clip``
gives an alignment that compares arms of one run and nothing else.

Shapes: n images, m captions, F feature size.
"""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import open_clip
import torch
from PIL import Image
from torch import nn
from torchvision.transforms import Compose

from mm_cca.demo import SHIPPED, shipped
from mm_cca.errors import UserError


@dataclass(frozen=True)
class Scorer:
    """A loaded open_clip model with its own preprocessing and tokenizer."""

    name: str
    sha256: str
    model: nn.Module
    preprocess: Compose
    tokenize: Callable[[list[str]], torch.Tensor]
    batch_size: int
    device: torch.device

    @torch.no_grad()
    def image_features(self, images: Iterable[Image.Image]) -> torch.Tensor:
        """[n, F] float32 on the CPU, not normalised."""
        found, batch = [], []
        for image in images:
            batch.append(self.preprocess(image))
            if len(batch) == self.batch_size:
                found.append(self._encode(batch))
                batch = []
        if batch:
            found.append(self._encode(batch))
        return torch.cat(found)

    def _encode(self, batch: list[torch.Tensor]) -> torch.Tensor:
        pixels = torch.stack(batch).to(self.device)
        return self.model.encode_image(pixels).float().cpu()  # type: ignore[operator]

    @torch.no_grad()
    def text_features(self, captions: Sequence[str]) -> torch.Tensor:
        """[m, F] float32 on the CPU, not normalised."""
        found = []
        for start in range(0, len(captions), self.batch_size):
            tokens = self.tokenize(list(captions[start : start + self.batch_size]))
            features = self.model.encode_text(tokens.to(self.device))  # type: ignore[operator]
            found.append(features.float().cpu())
        return torch.cat(found)


def load_scorer(
    name: str, pretrained: str | None, *, batch_size: int, device: torch.device
) -> Scorer:
    """Load a scorer.

    Args:
        name: ``emoji-clip``, ``local-dir:FOLDER``, ``hf-hub:NAME`` or an open_clip model name.
        pretrained: tag or weights file for an open_clip model name, else None.
        batch_size: images or captions at a time.
        device: where to run.

    Raises:
        UserError: unknown model or unreadable weights.
    """
    location = f"local-dir:{shipped(name)}" if name in SHIPPED else name
    try:
        model, _, preprocess = open_clip.create_model_and_transforms(
            location, pretrained=pretrained, device=device
        )
        tokenize = open_clip.get_tokenizer(location)
    except (RuntimeError, OSError, ValueError, KeyError) as error:
        raise UserError(
            f"eval.scorer {name!r} (eval.scorer_pretrained {pretrained!r}) can't be loaded: "
            f"{error}\nGive emoji-clip, local-dir:FOLDER, hf-hub:NAME, or an open_clip model name "
            "with a pretrained tag."
        ) from error
    model.eval()
    return Scorer(name, _digest(model), model, preprocess, tokenize, batch_size, device)


def _digest(model: nn.Module) -> str:
    """sha256 over all weights in the order of their names: two equal scorers have one digest."""
    digest = hashlib.sha256()
    for key, value in sorted(model.state_dict().items()):
        digest.update(key.encode())
        digest.update(value.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def cosines(images: torch.Tensor, texts: torch.Tensor) -> torch.Tensor:
    """[n, F] and [n, F] -> [n] cosine of each image with its own caption."""
    return nn.functional.cosine_similarity(images, texts)


def retrieval_ranks(
    images: torch.Tensor, captions: torch.Tensor, own: torch.Tensor, chunk: int = 1024
) -> torch.Tensor:
    """How many captions fit each image better than its own.

    Args:
        images: [n, F].
        captions: [m, F], all distinct.
        own: [n] index of each image's caption in ``captions``.
        chunk: images compared at a time.

    Returns:
        [n] int64; 0 means its own caption comes first.
    """
    texts = nn.functional.normalize(captions, dim=-1)
    ranks = []
    for part, mine in zip(images.split(chunk), own.split(chunk), strict=True):
        scores = nn.functional.normalize(part, dim=-1) @ texts.T
        ranks.append((scores > scores.gather(1, mine[:, None])).sum(dim=1))
    return torch.cat(ranks)


def open_images(folder: Path, indices: Iterable[int]) -> Iterable[Image.Image]:
    """The PNG files of an arm, one at a time."""
    for index in indices:
        with Image.open(folder / f"{index:06d}.png") as image:
            yield image.convert("RGB")
