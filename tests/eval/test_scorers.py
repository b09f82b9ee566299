"""Scorers: CLIP score by hand, long captions, towers of transformers."""

import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import open_clip
import pytest
import torch
from transformers import CLIPModel, CLIPProcessor, SiglipModel, SiglipProcessor

from mm_cca.errors import UserError
from mm_cca.eval.features.scorer import load_scorer
from mm_cca.eval.metrics.retrieval import cosines
from tests.support import runs, towers
from tests.support.closeness import CPU, assert_close, report_difference

LONG = " ".join(["red owl"] * 60)


@pytest.fixture(scope="module")
def clip_by_openai_layout() -> SimpleNamespace:
    """open_clip's own 77-token BPE and a tiny CLIP beside it."""
    torch.manual_seed(0)
    model = open_clip.CLIP(
        embed_dim=16,
        vision_cfg={"image_size": 16, "patch_size": 8, "width": 32, "layers": 1, "head_width": 16},
        text_cfg={"context_length": 77, "width": 32, "heads": 2, "layers": 1},
    ).eval()
    return SimpleNamespace(model=model, tokenize=open_clip.tokenizer.SimpleTokenizer())


def _scorer_of(parts: SimpleNamespace):
    from torchvision.transforms import functional as F

    from mm_cca.eval.features.scorer import OpenClipScorer

    return OpenClipScorer(
        "tiny", "0" * 64, "none", 77, 4, parts.model, F.to_tensor, parts.tokenize, CPU
    )


def test_captions_over_77_tokens_keep_their_end(clip_by_openai_layout: SimpleNamespace):
    """What comes after 76 tokens changes nothing, and the feature is that of the end token."""
    scorer = _scorer_of(clip_by_openai_layout)
    ids = clip_by_openai_layout.tokenize([LONG])[0]
    assert len(ids) == 77
    assert ids[-1] == 49407
    short = "red owl"
    assert scorer.num_cut([short, LONG, LONG + " and more", short]) == 2
    found = scorer.text_features([LONG, LONG + " and more", short])
    assert_close(found[0], found[1], 0.0)
    assert (found[0] - found[2]).abs().max() > 1e-3
    exactly = " ".join(["owl"] * 75)
    assert scorer.num_cut([exactly]) == 0
    assert scorer.num_cut([exactly + " owl"]) == 1


def test_clip_score_by_hand(clip_by_openai_layout: SimpleNamespace):
    """Cosine of encode_image and encode_text, written out in Python."""
    scorer = _scorer_of(clip_by_openai_layout)
    pictures, captions = [runs.picture(i) for i in range(5)], runs.CAPTIONS[:5]
    found = 100 * cosines(scorer.image_features(pictures), scorer.text_features(captions))
    expected = []
    for picture, caption in zip(pictures, captions, strict=True):
        pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None] / 255
        with torch.no_grad():
            image = clip_by_openai_layout.model.encode_image(pixels)[0].tolist()
            ids = clip_by_openai_layout.tokenize([caption])
            text = clip_by_openai_layout.model.encode_text(ids)[0].tolist()
        dot = sum(a * b for a, b in zip(image, text, strict=True))
        expected.append(100 * dot / math.hypot(*image) / math.hypot(*text))
    report_difference("CLIP score", found, expected)
    assert found.tolist() == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(
    ("kind", "model_class", "processor_class"),
    [("clip", CLIPModel, CLIPProcessor), ("siglip", SiglipModel, SiglipProcessor)],
)
def test_hf_towers_give_what_transformers_gives(
    kind: str, model_class: type, processor_class: type, tmp_path: Path
):
    """Against the model's own forward pass on the processor's own output, one row at a time."""
    folder = towers.write_hf(tmp_path / kind, kind)
    scorer = load_scorer(f"hf:{folder}", None, batch_size=2, device=CPU)
    pictures, captions = [runs.picture(i, 24) for i in range(3)], ["red owl", "cat", "blue house"]
    model = model_class.from_pretrained(folder).eval()
    processor = processor_class.from_pretrained(folder)
    images, texts = [], []
    for picture, caption in zip(pictures, captions, strict=True):
        inputs = processor(
            text=[caption], images=[picture], return_tensors="pt", padding="max_length"
        )
        if kind == "siglip":
            inputs.pop("attention_mask", None)
        inputs.pop("token_type_ids", None)
        with torch.no_grad():
            output = model(**inputs)
        images.append(output.image_embeds[0])
        texts.append(output.text_embeds[0])
    unit = torch.nn.functional.normalize
    for found, expected in (
        (scorer.image_features(pictures), torch.stack(images)),
        (scorer.text_features(captions), torch.stack(texts)),
    ):
        report_difference(kind, unit(found), unit(expected))
        assert_close(unit(found), unit(expected), 1e-5)
        assert (found[0] - found[1]).abs().max() > 1e-3
    assert scorer.context_length == towers.CONTEXT
    assert scorer.num_cut([LONG, "cat"]) == 1
    long, longer = scorer.text_features([LONG, LONG + " tree"])
    assert_close(long, longer, 0.0)
    assert "resample 3" in scorer.resize
    assert len(scorer.sha256) == 64


def test_hf_of_nothing(tmp_path: Path):
    with pytest.raises(UserError, match=r"eval\.scorer 'hf:.*can't be loaded"):
        load_scorer(f"hf:{tmp_path}", None, batch_size=2, device=CPU)
