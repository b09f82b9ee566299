"""Scorers: CLIP score by hand, long captions, towers of transformers."""

import math
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import open_clip
import pytest
import torch
from transformers import CLIPModel, CLIPProcessor, SiglipModel, SiglipProcessor

from mm_cca.config.load import load_config
from mm_cca.config.shipped import shipped_recipes
from mm_cca.errors import UserError
from mm_cca.eval.features.scorer import OpenClipScorer, load_scorer
from mm_cca.eval.metrics.retrieval import cosines
from mm_cca.negatives.clip_activation import model_for_weights
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


@pytest.fixture
def random_weights(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Weights of a tag are neither downloaded nor read: the model keeps its random ones."""
    file = tmp_path / "weights.pt"
    file.touch()
    monkeypatch.setattr("open_clip.factory.download_pretrained", lambda *_, **__: str(file))
    monkeypatch.setattr("open_clip.factory.load_checkpoint", lambda *_, **__: None)


def test_openai_weights_run_quick_gelu(random_weights: None):
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # open_clip only warns of a mismatch
        scorer = load_scorer("ViT-B-32", "openai", batch_size=2, device=torch.device("cpu"))
    assert isinstance(scorer, OpenClipScorer)
    assert scorer.name == "ViT-B-32-quickgelu openai"  # unlike what scored with GELU
    kinds = {type(module).__name__ for module in scorer.model.modules()}
    assert "QuickGELU" in kinds
    assert "GELU" not in kinds


@pytest.mark.parametrize(
    ("name", "tag", "expected"),
    [
        ("ViT-L-14", "openai", "ViT-L-14-quickgelu"),
        ("ViT-L-14-quickgelu", "openai", "ViT-L-14-quickgelu"),
        ("ViT-B/32", "openai", "ViT-B-32-quickgelu"),
        ("ViT-B-16", "dfn2b", "ViT-B-16-quickgelu"),
        ("ViT-B-32", "laion2b_s34b_b79k", "ViT-B-32"),
        ("roberta-ViT-B-32", "laion2b_s12b_b32k", "roberta-ViT-B-32"),
        ("ViT-L-14", "/a/file.pt", "ViT-L-14"),
        ("ViT-L-14", None, "ViT-L-14"),
    ],
)
def test_the_activation_is_that_of_the_weights(name: str, tag: str | None, expected: str):
    assert model_for_weights(name, tag) == expected


def test_a_mismatch_that_no_other_model_mends_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("open_clip.get_pretrained_cfg", lambda *_: {"url": "x"})
    with pytest.raises(UserError, match=r"without QuickGELU, .* Use ViT-B-32 laion\."):
        model_for_weights("ViT-B-32-quickgelu", "laion")
    monkeypatch.setattr("open_clip.get_pretrained_cfg", lambda *_: {"quick_gelu": True})
    with pytest.raises(UserError, match=r"with QuickGELU, .* Use another model or tag"):
        model_for_weights("ViT-SO400M-14-SigLIP", "other")


def test_every_recipe_names_the_activation_that_its_weights_need():
    checked = 0
    for name in shipped_recipes():
        recipe = load_config(name)
        for scorer in getattr(getattr(recipe, "eval", None), "scorer", []):
            tag = recipe.eval.pretrained_of(scorer)
            if tag is not None:
                assert model_for_weights(scorer, tag) == scorer, name
                checked += 1
    assert checked > 10
