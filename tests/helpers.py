"""What several test files share."""

import torch


def assert_close(actual: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-5) -> None:
    """Fail with the largest and the mean difference."""
    assert actual.shape == expected.shape, f"{tuple(actual.shape)} != {tuple(expected.shape)}"
    difference = (actual.double() - expected.double()).abs()
    message = f"max difference {difference.max():.3g}, mean {difference.mean():.3g}"
    assert difference.max() <= tolerance, f"{message}, allowed {tolerance:.3g}"
