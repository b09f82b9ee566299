"""Lumina-mGPT (Alpha-VLLM/Lumina-mGPT-7B-*): Chameleon's classes and codes, another span.

An image is ``boi``, its height and width in units of 32 pixels, and rows of codes each closed by a
new-line token (https://github.com/Alpha-VLLM/Lumina-mGPT, lumina_mgpt/data/item_processor.py). Its
guidance drops everything before ``boi`` and keeps the size (inference_solver.py).
"""

import torch
from transformers import AutoTokenizer, ChameleonImageProcessor, ChameleonProcessor

from mm_cca.adapters.chameleon import Chameleon, Span, read
from mm_cca.adapters.loading import expect_family, reading_checkpoint

SPAN = Span(
    template="Generate an image of {width}x{height} according to the following prompt:\n{prompt}",
    unconditional_has_bos=False,
    row_end="<reserved08799>",
    size_zero=8800,
)


class LuminaMGPT:
    """The adapter named ``lumina-mgpt``."""

    @staticmethod
    def load(path: str, dtype: torch.dtype, image_tokenizer: str | None) -> Chameleon:
        """As ``Chameleon.load``; the folders hold a tokenizer but no processor files."""
        expect_family(path, "chameleon")
        with reading_checkpoint():
            tokenizer = AutoTokenizer.from_pretrained(path)
            processor = ChameleonProcessor(ChameleonImageProcessor(), tokenizer)
        return read(path, dtype, image_tokenizer, processor, SPAN)
