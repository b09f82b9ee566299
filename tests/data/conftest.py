"""What the tests of data and their caches share."""

import pytest
import torch


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many pictures each call of ``encode`` got."""
    from mm_cca.adapters.emu3 import Emu3

    counts: list[int] = []
    encode = Emu3.encode

    def counted(self: Emu3, pixels: torch.Tensor) -> torch.Tensor:
        counts.append(len(pixels))
        return encode(self, pixels)

    monkeypatch.setattr(Emu3, "encode", counted)
    return counts
