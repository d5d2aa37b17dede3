"""When a rollout counts as right (FFR eq. 4, arXiv 2604.16243)."""

from __future__ import annotations

import torch
from torch import Tensor


def outcome(scores: Tensor, thresholds: Tensor | float) -> Tensor:
    """Success indicator z of each rollout.

        z_i = 1[R_acc(tau_i) >= threshold(problem_type)]

    Source: FFR eq. 4, whose verifier is binary. The release compares with 1.0 for every problem type, so
    that nearly each free-form rollout (scored by mean ROUGE) counts as failed; here the threshold belongs
    to the problem type (1 for multiple choice and numbers).

    Args:
        scores: R_acc in [0, 1], any shape.
        thresholds: One threshold, or a tensor that broadcasts against `scores`.

    Returns:
        Bool tensor of the broadcast shape. A NaN score is not a success.
    """
    return torch.as_tensor(scores >= thresholds)
