"""Features must be numbers."""

import torch

from mm_cca.errors import UserError


def refuse_not_finite(features: torch.Tensor, whose: str) -> None:
    """Refuse [n, F] features with NaN or infinite entries.

    Args:
        features: of one set of images or captions.
        whose: such as "cca train, judged by emoji-clip"; begins the message.

    Raises:
        UserError: with the number of rows, the first of them, and what to do.
    """
    bad = (~torch.isfinite(features)).any(dim=-1).nonzero()[:, 0]
    if len(bad):
        raise UserError(
            f"{whose}: {len(bad)} of {len(features)} rows of features have NaN or infinite "
            f"entries, the first is row {int(bad[0])}. Scores of such features mean nothing. Look "
            "at that image, check the weights of eval.scorer, and delete cached features."
        )
