"""Group-relative advantages (FFR eq. 1 and 9, arXiv 2604.16243; GRPO, arXiv 2402.03300).

With the group baseline the spread s is the sample standard deviation. With the first-pass baseline it is
the spread *about that baseline*: equal to GRPO's when nothing was repaired, and still finite when all
repairs earn the same reward (where the plain deviation is 0 and A would be 0.7 / 1e-4 = 7,000).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Scale = Literal["std", "none"]
Baseline = Literal["group", "first_pass"]


def group_advantages(
    rewards_PG: Tensor,
    *,
    scale: Scale = "std",
    baseline: Baseline = "group",
    eps: float = 1e-4,
    first_rewards_PG: Tensor | None = None,
    clamp_mask_PG: Tensor | None = None,
) -> Tensor:
    """Advantage of each rollout against its own question's group.

        b   = mean_j R_j             (baseline group: eq. 1, 9)
            = mean_j R(tau_j)        (baseline first_pass: the un-repaired rewards)
        s   = sqrt(sum_j (R_j - b)^2 / (G - 1))
        A_i = (R_i - b) / (s + eps)  (scale std)   or   R_i - b  (scale none)
        A_i = max(A_i, 0)            where clamp_mask is True

    Source: FFR eq. 1 and 9; sample std (n - 1) and eps 1e-4 as in TRL and the authors' release, which know
    only (std, group).

    Args:
        rewards_PG: R, shape (P, G) or (G,).
        scale: Divide by the group's spread or not.
        baseline: What is subtracted.
        eps: Added to the spread.
        first_rewards_PG: Rewards of the first passes, same shape; needed by `first_pass`.
        clamp_mask_PG: Bool, same shape; True keeps A from going below 0 (successful repairs).

    Returns:
        Advantages, same shape and dtype as the rewards (bfloat16 and float16 give float32), computed in
        float64 so that equal rewards give exactly 0. A group of one has s = |R - b|, hence A = 0 with the
        group baseline.

    Raises:
        ValueError: Empty group, a reward that is not finite, a missing or misshapen first pass or mask, or
            an unknown switch.
    """
    if rewards_PG.dim() not in (1, 2) or rewards_PG.shape[-1] == 0:
        raise ValueError(f"rewards must have shape (P, G) or (G,) with G >= 1, got {tuple(rewards_PG.shape)}")
    _check_finite("rewards", rewards_PG)
    rewards = rewards_PG.double()
    center = _center(rewards, baseline, first_rewards_PG)
    advantages = rewards - center
    if scale == "std":
        degrees = max(rewards.shape[-1] - 1, 1)
        spread = (advantages.square().sum(dim=-1, keepdim=True) / degrees).sqrt()
        advantages = advantages / (spread + eps)
    elif scale != "none":
        raise ValueError(f"scale must be 'std' or 'none', got {scale!r}")
    if clamp_mask_PG is not None:
        _check_like("clamp_mask_PG", clamp_mask_PG, rewards)
        advantages = torch.where(clamp_mask_PG.bool(), advantages.clamp(min=0.0), advantages)
    keep = rewards_PG.dtype in (torch.float32, torch.float64)
    return advantages.to(rewards_PG.dtype if keep else torch.float32)


def _center(rewards: Tensor, baseline: Baseline, first_rewards_PG: Tensor | None) -> Tensor:
    if baseline == "group":
        return rewards.mean(dim=-1, keepdim=True)
    if baseline != "first_pass":
        raise ValueError(f"baseline must be 'group' or 'first_pass', got {baseline!r}")
    if first_rewards_PG is None:
        raise ValueError("baseline 'first_pass' needs first_rewards_PG, the un-repaired rewards")
    _check_like("first_rewards_PG", first_rewards_PG, rewards)
    _check_finite("first-pass rewards", first_rewards_PG)
    return first_rewards_PG.double().mean(dim=-1, keepdim=True)


def _check_finite(name: str, values: Tensor) -> None:
    if not bool(torch.isfinite(values).all()):
        raise ValueError(f"{name} must be finite, got {values}")


def _check_like(name: str, values: Tensor, rewards: Tensor) -> None:
    if values.shape != rewards.shape:
        raise ValueError(f"{name} has shape {tuple(values.shape)}, the rewards {tuple(rewards.shape)}")
