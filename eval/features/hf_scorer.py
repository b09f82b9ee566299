"""CLIP and SigLIP in the layout of transformers, as a scorer: ``hf:NAME_OR_FOLDER``."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeVar

import torch
from PIL import Image
from torch import nn
from transformers import AutoModel, AutoProcessor

from mm_cca.errors import UserError
from mm_cca.runs.digests import weights_digest

HF = "hf:"
KINDS = ("clip", "siglip")
READ_ERRORS = (OSError, ValueError, KeyError, RuntimeError, TypeError)
Item = TypeVar("Item")


def in_batches(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Lists of ``size`` items; the last may be shorter."""
    rest = iter(items)
    while batch := list(islice(rest, size)):
        yield batch


@dataclass(frozen=True)
class HfScorer:
    """A loaded ``CLIPModel`` or ``SiglipModel``."""

    name: str
    sha256: str
    resize: str
    context_length: int
    batch_size: int
    kind: str
    model: nn.Module
    processor: Any
    device: torch.device

    @torch.no_grad()
    def image_features(self, images: Iterable[Image.Image]) -> torch.Tensor:
        """[n, F] float32 on the CPU, not normalised."""
        parts = []
        for batch in in_batches(images, self.batch_size):
            pixels = self.processor.image_processor(batch, return_tensors="pt")["pixel_values"]
            output = self.model.get_image_features(pixel_values=pixels.to(self.device))  # type: ignore[operator]
            parts.append(output.pooler_output.float().cpu())
        return torch.cat(parts)

    @torch.no_grad()
    def text_features(self, captions: Sequence[str]) -> torch.Tensor:
        """[m, F] float32 on the CPU, not normalised; captions that are too long are truncated."""
        parts = []
        for batch in in_batches(captions, self.batch_size):
            tokens = self.processor.tokenizer(
                batch,
                padding="max_length",
                truncation=True,
                max_length=self.context_length,
                return_attention_mask=True,
                return_tensors="pt",
            ).to(self.device)
            # SigLIP was trained on texts padded to the full length, with no mask.
            mask = None if self.kind == "siglip" else tokens["attention_mask"]
            output = self.model.get_text_features(  # type: ignore[operator]
                input_ids=tokens["input_ids"], attention_mask=mask
            )
            parts.append(output.pooler_output.float().cpu())
        return torch.cat(parts)

    def num_cut(self, captions: Sequence[str]) -> int:
        """How many captions are longer than ``context_length`` tokens."""
        tokens = self.processor.tokenizer(list(captions), verbose=False).input_ids
        return sum(len(ids) > self.context_length for ids in tokens)


def load_hf(name: str, *, batch_size: int, device: torch.device) -> HfScorer:
    """Load ``hf:NAME_OR_FOLDER`` with its own preprocessing and tokenizer.

    Raises:
        UserError: missing, unreadable, or neither a CLIP nor a SigLIP.
    """
    place = name.removeprefix(HF)
    try:
        model = AutoModel.from_pretrained(place, dtype=torch.float32)
        processor = AutoProcessor.from_pretrained(place)
    except READ_ERRORS as error:
        raise UserError(
            f"eval.scorer {name!r} can't be loaded: {error}\nhf: takes a hub name or a folder of "
            "transformers with config.json, weights, preprocessor and tokenizer files."
        ) from error
    kind = model.config.model_type
    if kind not in KINDS:
        raise UserError(
            f"eval.scorer {name!r} is a {kind}; allowed after hf: {', '.join(KINDS)}. open_clip "
            "loads many more: eval.scorer=NAME eval.scorer_pretrained=TAG."
        )
    return HfScorer(
        name,
        weights_digest(model),
        _resize_in_words(processor.image_processor.to_dict()),
        int(model.config.text_config.max_position_embeddings),
        batch_size,
        kind,
        model.eval().to(device),
        processor,
        device,
    )


def _resize_in_words(settings: Mapping[str, object]) -> str:
    keys = ("do_resize", "size", "resample", "do_center_crop", "crop_size")
    named = ", ".join(f"{key} {settings[key]}" for key in keys if settings.get(key) is not None)
    return f"transformers {settings['image_processor_type']}: {named}, antialiased"
