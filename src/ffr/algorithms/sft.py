"""Supervised fine-tuning on written completions: the cold start and the distillation baseline.

Differences from GRPO:
1. Nothing is sampled: completions come with the data (correct traces, or demonstrations).
2. No reward, no group, no ratio, no KL: the loss is the negative log-likelihood of the completion tokens.
3. It therefore has no `score`; the loop that feeds `nll_loss` lives in `engines`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ffr.reason import aggregate


def nll_loss(logprobs_BT: Tensor, mask_BT: Tensor, *, normalizer: Tensor | float | None = None) -> Tensor:
    """Negative log-likelihood of the completion tokens.

        loss = -sum_{i,t} mask_{i,t} log pi(y_t | x_i, y_<t) / sum_{i,t} mask_{i,t}

    Source: the SFT baselines of FFR tables 3 and 4 (arXiv 2604.16243); token mean as in TRL.

    Args:
        logprobs_BT: log pi_theta, shape (B, T); anything outside the mask, inf and NaN included.
        mask_BT: 1 on completion tokens, shape (B, T).
        normalizer: Replaces the local token count across micro-batches and ranks; see
            `ffr.reason.loss.aggregate`.

    Returns:
        Scalar, float32 at least; 0 with zero gradient for an empty mask.

    Raises:
        ValueError: Shapes differ or the normalizer is negative.
    """
    if logprobs_BT.shape != mask_BT.shape:
        raise ValueError(
            f"log-probs have shape {tuple(logprobs_BT.shape)}, the mask {tuple(mask_BT.shape)}; "
            "both must be (B, T)"
        )
    values = logprobs_BT if logprobs_BT.dtype == torch.float64 else logprobs_BT.float()
    return -aggregate(values, mask_BT, "token_mean", normalizer)
