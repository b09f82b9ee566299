"""Image and text features of a two-tower model.

Scores are reported with the model's name. Only a published CLIP gives a CLIP score; the alignment
of the demo's ``emoji-clip`` compares arms of one run and nothing else.

Shapes: n images, m captions, F feature size.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import open_clip
import torch
from open_clip.tokenizer import SimpleTokenizer
from PIL import Image
from torch import nn
from torchvision.transforms import Compose

from mm_cca.config.shipped import SHIPPED, shipped
from mm_cca.errors import UserError
from mm_cca.eval.features.hf_scorer import HF, in_batches, load_hf
from mm_cca.negatives.clip_activation import model_for_weights
from mm_cca.runs.digests import weights_digest


class Scorer(Protocol):
    """Two towers with their own preprocessing and tokenizer.

    Attributes:
        name: as in ``eval.scorer``, with the pretrained tag.
        sha256: over all weights.
        resize: the preprocessing of images, in words.
        context_length: tokens of a caption that the text tower sees, start and end among them.
        batch_size: images or captions at a time.
    """

    @property
    def name(self) -> str: ...
    @property
    def sha256(self) -> str: ...
    @property
    def resize(self) -> str: ...
    @property
    def context_length(self) -> int: ...
    @property
    def batch_size(self) -> int: ...

    def image_features(self, images: Iterable[Image.Image]) -> torch.Tensor:
        """[n, F] float32 on the CPU, not normalised."""
        ...

    def text_features(self, captions: Sequence[str]) -> torch.Tensor:
        """[m, F] float32 on the CPU, not normalised; captions that are too long are truncated."""
        ...

    def num_cut(self, captions: Sequence[str]) -> int:
        """How many captions are longer than ``context_length`` tokens."""
        ...


@dataclass(frozen=True)
class OpenClipScorer:
    """A loaded open_clip model."""

    name: str
    sha256: str
    resize: str
    context_length: int
    batch_size: int
    model: nn.Module
    preprocess: Compose
    tokenize: Any
    device: torch.device

    @torch.no_grad()
    def image_features(self, images: Iterable[Image.Image]) -> torch.Tensor:
        encode: Callable[..., torch.Tensor] = self.model.encode_image  # type: ignore[assignment]
        parts = []
        for batch in in_batches(images, self.batch_size):
            pixels = torch.stack([self.preprocess(image) for image in batch])
            parts.append(encode(pixels.to(self.device)).float().cpu())
        return torch.cat(parts)

    @torch.no_grad()
    def text_features(self, captions: Sequence[str]) -> torch.Tensor:
        encode: Callable[..., torch.Tensor] = self.model.encode_text  # type: ignore[assignment]
        parts = []
        for batch in in_batches(captions, self.batch_size):
            parts.append(encode(self.tokenize(batch).to(self.device)).float().cpu())
        return torch.cat(parts)

    def num_cut(self, captions: Sequence[str]) -> int:
        return sum(self._num_tokens(caption) > self.context_length for caption in captions)

    def _num_tokens(self, caption: str) -> int:
        if isinstance(self.tokenize, SimpleTokenizer):
            return len(self.tokenize.encode(caption)) + 2  # start and end
        return len(self.tokenize.tokenizer(caption).input_ids)


def load_scorer(
    name: str, pretrained: str | None, *, batch_size: int, device: torch.device
) -> Scorer:
    """Load a scorer.

    Args:
        name: ``emoji-clip``, ``local-dir:FOLDER``, ``hf-hub:NAME`` or a model name of open_clip;
            or ``hf:NAME_OR_FOLDER`` for a CLIP or SigLIP of transformers. ``ViT-L-14`` with
            weights that need QuickGELU, such as ``openai``, becomes ``ViT-L-14-quickgelu``.
        pretrained: tag or weights file for an open_clip model name, else None.
        batch_size: images or captions at a time.
        device: where to run.

    Raises:
        UserError: unknown model, unreadable weights, or weights of another activation.
    """
    if name.startswith(HF):
        return load_hf(name, batch_size=batch_size, device=device)
    location = f"local-dir:{shipped(name)}" if name in SHIPPED else name
    if ":" not in location:
        name = location = model_for_weights(name, pretrained)
    try:
        model, _, preprocess = open_clip.create_model_and_transforms(
            location, pretrained=pretrained, device=device
        )
        tokenize = open_clip.get_tokenizer(location)
    except (RuntimeError, OSError, ValueError, KeyError) as error:
        raise UserError(
            f"eval.scorer {name!r} (eval.scorer_pretrained {pretrained!r}) can't be loaded: "
            f"{error}\nGive a built-in one such as judge-vit, local-dir:FOLDER, hf-hub:NAME, "
            "hf:NAME_OR_FOLDER, or an open_clip model name with a pretrained tag."
        ) from error
    model.eval()
    settings = model.visual.preprocess_cfg
    resize = (
        f"open_clip: {settings['resize_mode']}, {settings['interpolation']} to "
        f"{settings['size']}, antialiased (PIL)"
    )
    full_name = name if pretrained is None else f"{name} {pretrained}"
    return OpenClipScorer(
        full_name,
        weights_digest(model),
        resize,
        int(tokenize.context_length),
        batch_size,
        model,
        preprocess,
        tokenize,
        device,
    )
