"""GRPO (arXiv 2402.03300), the baseline every other file is read against.

Differences from GRPO: none.
1. G rollouts of x, reward R_acc + R_fmt, advantage (R - mean) / (std + eps) within the group (eq. 1).
2. Every rollout is trained in x, with the log-probabilities it was sampled with.
3. Nothing is repaired: the trained rollouts are the first passes, whatever the group holds.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ffr.algorithms.base import GroupScore, base_rewards, check_group
from ffr.config import ReasonConfig
from ffr.reason import group_advantages
from ffr.types import RolloutGroup


@dataclass(frozen=True)
class GRPO:
    """Group-relative policy optimisation on first passes only.

    Example:
        >>> GRPO().repairs
        False
    """

    reason: ReasonConfig = ReasonConfig()
    name: str = "grpo"
    repairs: bool = False

    def score(self, group: RolloutGroup) -> GroupScore:
        """Score the first passes; repairs in the group, if any, are ignored.

        Args:
            group: G first passes with their verdicts.

        Returns:
            `GroupScore` with `trained_G = first_G`.

        Raises:
            ValueError: The group is ragged or empty.
        """
        check_group(group)
        rewards = base_rewards(group.first_verdicts_G)
        advantages = group_advantages(rewards, scale=self.reason.scale, eps=self.reason.advantage_eps)
        size = len(group.first_G)
        return GroupScore(
            rewards_G=rewards.to(torch.float32),
            advantages_G=advantages.to(torch.float32),
            taxed_G=(False,) * size,
            trained_G=group.first_G,
            view_treatment_G=("own",) * size,
            active_G=(True,) * size,
        )
