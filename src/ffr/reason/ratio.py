"""Token-level ratios and the treatments of the view gap (FFR eq. 10, arXiv 2604.16243).

Two views of one completion: x, what the test asks, and x + c, what a repaired rollout saw. Suffix
`_x` or `_xc` says under which one a log-probability was taken.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

MAX_LOG_RATIO = 20.0
"""Log-ratios are clamped to +-20 before exp: exp(20) = 4.9e8 is safe in float32, exp(89) is not."""


def token_log_ratio(logprobs_BT: Tensor, old_logprobs_BT: Tensor) -> Tensor:
    """Log of eq. 10, both log-probabilities under the same observation.

        log r_t = log pi_theta(y_t | x', y_<t) - log pi_old(y_t | x', y_<t)
        x' = x + c for a repair, x otherwise

    Source: FFR eq. 10. The release stores no old log-probabilities; it uses lp - sg(lp), which is 0 always.

    Args:
        logprobs_BT: log pi_theta, shape (B, T).
        old_logprobs_BT: log pi_old, shape (B, T); no gradient goes through it.

    Returns:
        Shape (B, T), float32 at least.
    """
    return at_least_float32(logprobs_BT) - at_least_float32(old_logprobs_BT).detach()


def importance_ratio(logprobs_BT: Tensor, old_logprobs_BT: Tensor) -> Tensor:
    """Token-level importance ratio.

        r_t = pi_theta(y_t | x', y_<t) / pi_old(y_t | x', y_<t)

    Source: FFR eq. 10. Exactly 1 when both are the same numbers.

    Args:
        logprobs_BT: log pi_theta, shape (B, T).
        old_logprobs_BT: log pi_old under the same observation, shape (B, T).

    Returns:
        Shape (B, T), positive and finite (see `MAX_LOG_RATIO`).
    """
    return token_log_ratio(logprobs_BT, old_logprobs_BT).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()


def shaped_weight(logprobs: Tensor, gamma: float = 0.1) -> Tensor:
    """Policy shaping for tokens that the trained view did not sample.

        f(p) = p / (p + gamma),  p = pi_theta(y_t | x);   f'(p) = gamma / (p + gamma)^2

    Source: LUFFY (arXiv 2504.14945), used by Critique-GRPO and GOLF on refinements. The behaviour
    probability is taken as 1, so no old log-probabilities enter. Computed as
    sigmoid(log p - log gamma), which neither overflows nor divides by 0.

    Args:
        logprobs: log pi_theta(y_t | x), any shape.
        gamma: > 0.

    Returns:
        Same shape, in (0, 1 / (1 + gamma)].

    Raises:
        ValueError: gamma <= 0.
    """
    if gamma <= 0:
        raise ValueError(f"gamma must be > 0, got {gamma}")
    return torch.sigmoid(at_least_float32(logprobs) - math.log(gamma))


def true_is_ratio(logprobs_x: Tensor, old_logprobs_xc: Tensor, clamp: float = 2.0) -> Tensor:
    """Importance weight of a repaired token in the test view.

        r_t = min(pi_theta(y_t | x, y_<t) / pi_old(y_t | x + c, y_<t), clamp)

    Source: GOLF (arXiv 2603.04597), its exact option. Unbiased for the test view before the clamp; it is
    not 1 on the first update, since the views differ. Clamped tokens carry no gradient.

    Args:
        logprobs_x: log pi_theta under x, any shape.
        old_logprobs_xc: log pi_old under x + c, as sampled; same shape, no gradient.
        clamp: Upper limit, > 0.

    Returns:
        Same shape, in (0, clamp].

    Raises:
        ValueError: clamp <= 0.
    """
    if clamp <= 0:
        raise ValueError(f"clamp must be > 0, got {clamp}")
    return importance_ratio(logprobs_x, old_logprobs_xc).clamp(max=clamp)


def sampler_correction(
    old_logprobs_BT: Tensor, sampler_logprobs_BT: Tensor, mask_BT: Tensor, cap: float = 2.0
) -> Tensor:
    """Weight of a token that another program sampled than the one that trains (vLLM beside PyTorch).

        w_t = min(pi_old(y_t | x', y_<t) / mu(y_t | x', y_<t), cap)

    pi_old is the trainer's and mu the sampler's probability under the same weights and the same observation:
    equal in theory, apart in kernels and precision. The weight multiplies the policy term of a token's loss
    and carries no gradient; small ones stay as they are. Source: truncated importance sampling, per token
    (Yao et al. 2025, "Your efficient RL framework secretly brings you off-policy RL training"); TRL 1.16's
    `token_truncate`. mu must be of the whole distribution: under top-p < 1 the ratio is biased.

    Args:
        old_logprobs_BT: log pi_old, shape (B, T).
        sampler_logprobs_BT: log mu, shape (B, T); NaN where the sampler reported nothing.
        mask_BT: 1 where a weight is wanted, shape (B, T).
        cap: Upper limit, >= 1.

    Returns:
        Shape (B, T), in (0, cap]; exactly 1 outside the mask and where nothing was reported.

    Raises:
        ValueError: cap < 1: it would shrink tokens on which both agree.
    """
    if cap < 1:
        raise ValueError(f"cap must be >= 1, got {cap}")
    old, sampler = at_least_float32(old_logprobs_BT).detach(), at_least_float32(sampler_logprobs_BT).detach()
    known = mask_BT.bool() & ~sampler.isnan()
    gap = torch.where(known, old - sampler, torch.zeros_like(old))
    return importance_ratio(gap, torch.zeros_like(gap)).clamp(max=cap)


def reliance(logprobs_x_BT: Tensor, logprobs_xc_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """How much a repaired completion leans on its patch.

        Delta_i = mean_t log pi(y_t | x, y_<t) - mean_t log pi(y_t | x + c, y_<t)

    Source: HiLL (arXiv 2604.00698), hint reliance. Near 0: the completion is as likely without the patch;
    strongly negative: only the patch makes it likely. exp(Delta) is the geometric-mean ratio.

    Args:
        logprobs_x_BT: Under x, shape (B, T).
        logprobs_xc_BT: Under x + c, shape (B, T).
        mask_BT: 1 on completion tokens, shape (B, T).

    Returns:
        Shape (B,); 0 for a row without completion tokens.
    """
    mask = mask_BT.bool()
    gap = at_least_float32(logprobs_x_BT) - at_least_float32(logprobs_xc_BT)
    gap = torch.where(mask, gap, torch.zeros_like(gap))
    return gap.sum(dim=-1) / mask.sum(dim=-1).clamp(min=1)


def at_least_float32(values: Tensor) -> Tensor:
    """The same values in float32, or float64 if they already are: exp of a bfloat16 log-ratio is noise."""
    return values if values.dtype in (torch.float32, torch.float64) else values.float()
