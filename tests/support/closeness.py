"""Comparison of tensors and arrays within a tolerance."""

import numpy as np
import torch

CPU = torch.device("cpu")


def assert_close(actual: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-5) -> None:
    """Fail with the largest and the mean difference if the largest exceeds the tolerance."""
    assert actual.shape == expected.shape, f"{tuple(actual.shape)} != {tuple(expected.shape)}"
    difference = (actual.double() - expected.double()).abs()
    message = f"max difference {difference.max():.3g}, mean {difference.mean():.3g}"
    assert difference.max() <= tolerance, f"{message}, allowed {tolerance:.3g}"


def report_difference(name: str, actual: object, expected: object) -> None:
    """Print the difference of two numbers or arrays; shown by ``pytest -rP``."""
    difference = np.abs(np.asarray(actual, dtype=float) - np.asarray(expected, dtype=float))
    print(f"{name}: max difference {difference.max():.3g}, mean {difference.mean():.3g}")


def features(seed: int, rows: int, size: int = 6, shift: float = 0.0) -> torch.Tensor:
    return torch.from_numpy(
        np.random.default_rng(seed).normal(size=(rows, size)).astype(np.float32) + shift
    )
