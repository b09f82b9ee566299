"""SimpleAR's prompts and defaults, on tiny weights; the rest is in test_appended_codes.py."""

from pathlib import Path

import pytest
from tokenizers import Tokenizer

from mm_cca import load_adapter
from mm_cca.adapters.base import Defaults
from mm_cca.adapters.check import check_checkpoint
from mm_cca.adapters.simplear import COSMOS, SimpleAR
from mm_cca.config.schema import ModelConfig
from mm_cca.errors import UserError
from mm_cca.testing.tiny import image_tokenizer_of
from tests.support.hub_folders import read_json

GRID = (4, 4)
PROMPTS = ["red owl, noto style", "a", "small  café owl\nand 3 “hands”"]
NEGATIVE = "An image of aerial view, overexposed, low quality"


@pytest.fixture(scope="module")
def folder(both_folders: Path) -> Path:
    return both_folders / "simplear"


@pytest.fixture(scope="module")
def model(folder: Path) -> SimpleAR:
    """Not changed by any test."""
    model = load_adapter(
        "simplear", str(folder), image_tokenizer=image_tokenizer_of("simplear", folder)
    )
    model.module.eval()
    assert isinstance(model, SimpleAR)
    return model


def test_ids_are_those_of_the_folders_own_tokenizer(model: SimpleAR, folder: Path):
    """``tokenizer.json`` as it lies there, without transformers; Qwen has no BOS."""
    raw = Tokenizer.from_file(str(folder / "tokenizer.json"))
    added = {x["content"]: x["id"] for x in read_json(folder / "tokenizer.json")["added_tokens"]}
    for prompt in PROMPTS:
        (ours,) = model.prompt_ids([prompt], GRID)
        assert ours == raw.encode(f"<|t2i|>{prompt}<|soi|>").ids
        assert ours[0] == added["<|t2i|>"]
        assert ours[-1] == added["<|soi|>"]
    bare = [added["<|t2i|>"], added["<|soi|>"]]
    assert model.unconditional_ids([5, 6], GRID) == bare
    guided_from = model.unconditional_ids([], GRID, NEGATIVE)
    assert guided_from == raw.encode(f"<|t2i|>{NEGATIVE}<|soi|>").ids
    assert model.text_ids(["red owl"]) == [raw.encode("<|endoftext|>red owl").ids]


def test_the_chats_generation_config_is_not_used(model: SimpleAR, folder: Path):
    """Qwen's own, in the folder: temperature .7, top-k 20; images are drawn without."""
    chat = read_json(folder / "generation_config.json")
    assert (chat["temperature"], chat["top_k"]) == (0.7, 20)
    assert model.defaults == Defaults(6.0, 1.0, None, None)
    assert model.side * model.pixels_per_code == 1024


def test_validate_takes_a_tokenizer_on_the_hub_for_nvidias(folder: Path):
    """Its files have no headers to look at: a real one has 64,000 codes."""
    config = ModelConfig("simplear", str(folder), image_tokenizer=COSMOS)
    with pytest.raises(UserError, match=r"the image tokenizer's 64000 codes are"):
        check_checkpoint(config, [64, 64])
