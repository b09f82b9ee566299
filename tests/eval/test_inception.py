"""FID and its kin: three tools, one number, and weights that are checked before they are read."""

import hashlib
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch_fidelity
from torch.utils.data import Dataset
from torchmetrics.image.fid import FrechetInceptionDistance, NoTrainInceptionV3

from mm_cca.errors import UserError
from mm_cca.eval.features.inception import Inception, load_inception
from mm_cca.eval.metrics.distances import (
    cmmd,
    frechet_distance,
    frechet_to,
    gaussian_of,
    inception_score,
)
from mm_cca.eval.metrics.prdc import density_coverage
from tests.support import runs, towers
from tests.support.closeness import CPU, assert_close, features, report_difference


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
    report_difference(
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
    report_difference("FID of equal sets", distances, 0)
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
        report_difference(layer, found, expected)
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
    report_difference("Inception score", found, expected)
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
