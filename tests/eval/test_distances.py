"""Cosines, ranks, distances between sets and intervals, against loops and formulas."""

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm

from mm_cca.eval.metrics.distances import frechet_distance, kernel_distance
from mm_cca.eval.metrics.intervals import mean_interval
from mm_cca.eval.metrics.prdc import precision_recall
from mm_cca.eval.metrics.retrieval import among_best, cosines, retrieval_ranks
from tests.support import naive
from tests.support.closeness import features


def test_cosines_against_a_loop():
    images, texts = features(0, 9), features(1, 9)
    expected = [naive.cosine(a, b) for a, b in zip(images, texts, strict=True)]
    assert cosines(images, texts).tolist() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("chunk", [1, 4, 1024])
def test_retrieval_ranks_against_a_loop(chunk: int):
    images, captions = features(0, 11), features(1, 7)
    own = torch.from_numpy(np.random.default_rng(2).integers(0, 7, 11))
    expected = []
    for image, mine in zip(images, own.tolist(), strict=True):
        scores = [naive.cosine(image, caption) for caption in captions]
        above = sum(score > scores[mine] for score in scores)
        equal = sum(score == scores[mine] for score in scores) - 1
        expected.append(above + equal / 2)
    assert len(set(expected)) > 3
    assert retrieval_ranks(images, captions, own, chunk).tolist() == expected


def test_retrieval_rank_of_a_perfect_scorer_is_zero():
    captions = features(0, 7)
    assert retrieval_ranks(3 * captions, captions, torch.arange(7)).tolist() == [0] * 7


def test_ties_count_half():
    """Image 0 ties with one caption, image 1 has one above it and ties with one, 2 is alone."""
    captions = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    images = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    ranks = retrieval_ranks(images, captions, torch.tensor([0, 1, 2]))
    assert ranks.tolist() == [0.5, 1.5, 0]
    assert among_best(ranks.numpy(), 1).tolist() == [0.5, 0, 1]
    assert among_best(ranks.numpy(), 2).tolist() == [1, 0.5, 1]
    # A scorer that likes everything equally is in the middle, not first.
    assert retrieval_ranks(torch.zeros(2, 2), captions, torch.tensor([0, 2])).tolist() == [1, 1]


def closed_form(a: torch.Tensor, b: torch.Tensor) -> float:
    """|m1 - m2|^2 + tr(C1 + C2 - 2 sqrt(C1 C2))."""
    x, y = a.double().numpy(), b.double().numpy()
    c1, c2 = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    root = sqrtm(c1 @ c2).real
    return float(((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(c1 + c2 - 2 * root))


@pytest.mark.parametrize(("rows", "shift"), [(40, 0.0), (40, 2.0), (15, 0.3)])
def test_frechet_distance_against_the_formula(rows: int, shift: float):
    generated, real = features(0, rows, shift=shift), 1.5 * features(1, 30)
    assert frechet_distance(generated, real) == pytest.approx(
        closed_form(generated, real), rel=1e-4
    )


def test_frechet_distance_of_a_shift_is_its_square():
    real = features(0, 50)
    assert frechet_distance(real + 2, real) == pytest.approx(4 * 6, rel=1e-4)


def test_identical_sets_are_at_no_distance():
    real = features(0, 60)
    assert frechet_distance(real.clone(), real) == pytest.approx(0, abs=1e-4)
    # Each subset leaves out other rows, so its estimate scatters around zero.
    assert abs(kernel_distance(real.clone(), real, seed=0)) < 1
    assert precision_recall(real.clone(), real) == (1.0, 1.0)


def naive_kernel_distance(a: np.ndarray, b: np.ndarray) -> float:
    def kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return (x @ y.T / x.shape[1] + 1) ** 3

    n = len(a)
    own = sum((kernel(x, x).sum() - np.trace(kernel(x, x))) / (n * (n - 1)) for x in (a, b))
    return own - 2 * kernel(a, b).mean()


def test_kernel_distance_against_the_formula_for_whole_sets(monkeypatch: pytest.MonkeyPatch):
    """With subsets as large as the sets every subset is the set itself."""
    import mm_cca.eval.metrics.distances as module

    generated, real = features(0, 20, shift=1.0), features(1, 20)
    original = module.KernelInceptionDistance
    monkeypatch.setattr(
        module,
        "KernelInceptionDistance",
        lambda feature, subset_size, subsets, sync_on_compute: original(
            feature=feature, subset_size=2 * subset_size, subsets=subsets
        ),
    )
    expected = naive_kernel_distance(generated.double().numpy(), real.double().numpy())
    assert kernel_distance(generated, real, seed=0) == pytest.approx(expected, rel=1e-3)


def test_kernel_distance_grows_with_the_shift_and_is_seeded():
    real = features(0, 60)
    found = [kernel_distance(features(1, 60, shift=s), real, seed=0) for s in (0.0, 0.5, 2.0)]
    assert found[0] < found[1] < found[2]
    state = torch.random.get_rng_state()
    assert kernel_distance(features(1, 60, shift=0.5), real, seed=0) == found[1]
    assert kernel_distance(features(1, 60, shift=0.5), real, seed=1) != found[1]
    assert torch.equal(torch.random.get_rng_state(), state)


def test_precision_and_recall_tell_fidelity_from_diversity():
    real = features(0, 80)
    one_point = real[:1].repeat(40, 1) + 1e-4 * features(1, 40)
    precision, recall = precision_recall(one_point, real)
    assert precision == 1.0
    assert recall < 0.1
    assert precision_recall(features(1, 40, shift=50.0), real) == (0.0, 0.0)


def test_mean_interval_covers_what_theory_says():
    values = np.random.default_rng(0).normal(3.0, 2.0, 400)
    found = mean_interval(values)
    assert found["value"] == pytest.approx(values.mean())
    half = 1.96 * values.std() / 400**0.5
    assert found["low"] == pytest.approx(values.mean() - half, abs=0.01)
    assert found["high"] == pytest.approx(values.mean() + half, abs=0.01)
    assert mean_interval(values) == found


def test_mean_interval_of_booleans_and_constants():
    mixed = mean_interval(np.array([True, False] * 50))
    assert 0.35 < mixed["low"] < mixed["value"] == 0.5 < mixed["high"] < 0.65
    assert mean_interval(np.ones(5)) == {
        "value": 1.0,
        "low": 1.0,
        "high": 1.0,
    }
