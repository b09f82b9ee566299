"""What several test files share."""

import numpy as np
import torch

CPU = torch.device("cpu")


def assert_close(actual: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-5) -> None:
    """Fail with the largest and the mean difference."""
    assert actual.shape == expected.shape, f"{tuple(actual.shape)} != {tuple(expected.shape)}"
    difference = (actual.double() - expected.double()).abs()
    message = f"max difference {difference.max():.3g}, mean {difference.mean():.3g}"
    assert difference.max() <= tolerance, f"{message}, allowed {tolerance:.3g}"


def told(name: str, found: object, expected: object) -> None:
    """Print how far two numbers or arrays are apart; shown by ``pytest -rP``."""
    apart = np.abs(np.asarray(found, dtype=float) - np.asarray(expected, dtype=float))
    print(f"{name}: max difference {apart.max():.3g}, mean {apart.mean():.3g}")


def features(seed: int, rows: int, size: int = 6, shift: float = 0.0) -> torch.Tensor:
    return torch.from_numpy(
        np.random.default_rng(seed).normal(size=(rows, size)).astype(np.float32) + shift
    )
