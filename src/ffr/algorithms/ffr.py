"""Find, Fix, Reason (arXiv 2604.16243).

Differences from GRPO:
1. A failed rollout is repaired: the chosen rollout is tau* under x + c, right or wrong (eq. 7).
2. Reward RIR: a patch tax kappa is taken off an assisted success, or off any patched rollout (eq. 8).
3. The gradient flows through the chosen rollout's tokens, in the view they were sampled in (eq. 10, 11).
Switches, all off by default:
4. `chosen = best_of_group`: only the best rollout of the group is trained (appendix D.2).
5. `credit = released`: the chosen reward lands on the first-pass tokens (the authors' release).
6. `baseline = first_pass`, `scale = none`, `clamp_repaired`: keep a successful repair from being unlearned.
7. `train_view` in reattach, shaped, true_is: repaired tokens are trained in x, what the test asks. Meant
   for patches that point at what x already shows: with `fix.visual = frames` it would teach to guess.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ffr.algorithms.base import GroupScore, base_rewards, check_group
from ffr.config import ReasonConfig
from ffr.reason import best_of_group, group_advantages, robust_improvement_reward, taxed_mask
from ffr.types import Rollout, RolloutGroup


@dataclass(frozen=True)
class FFR:
    """The paper's method with every switch of `ReasonConfig`.

    Example:
        >>> FFR(ReasonConfig(patch_tax=0.1)).repairs
        True
    """

    reason: ReasonConfig = ReasonConfig()
    name: str = "ffr"
    repairs: bool = True

    def score(self, group: RolloutGroup) -> GroupScore:
        """Score a group after find and fix.

        Args:
            group: First passes, repairs and chosen rollouts with their verdicts.

        Returns:
            `GroupScore`; without repairs it equals GRPO's.

        Raises:
            ValueError: The group is ragged or empty.
        """
        check_group(group)
        rewards, taxed, success = self._rewards(group)
        advantages = group_advantages(
            rewards,
            scale=self.reason.scale,
            baseline=self.reason.baseline,
            eps=self.reason.advantage_eps,
            first_rewards_PG=base_rewards(group.first_verdicts_G),
            clamp_mask_PG=success if self.reason.clamp_repaired else None,
        )
        active = torch.ones(len(rewards), dtype=torch.bool)
        if self.reason.chosen == "best_of_group":
            best = best_of_group(rewards.tolist(), group.patched_G)
            active = torch.arange(len(rewards)) == best
        views = [self._view(*pair) for pair in zip(group.first_G, group.chosen_G, strict=True)]
        return GroupScore(
            rewards_G=rewards.to(torch.float32),
            advantages_G=(advantages * active).to(torch.float32),
            taxed_G=tuple(taxed.tolist()),
            trained_G=tuple(rollout for rollout, _ in views),
            view_treatment_G=tuple(treatment for _, treatment in views),
            active_G=tuple(active.tolist()),
        )

    def _rewards(self, group: RolloutGroup) -> tuple[Tensor, Tensor, Tensor]:
        """RIR (float64), who was taxed, and which chosen rollouts are successful repairs."""
        verdicts = group.chosen_verdicts_G
        outcome, form = (
            torch.tensor(column, dtype=torch.float64)
            for column in ([v.score for v in verdicts], [v.format_score for v in verdicts])
        )
        first_correct = torch.tensor([v.correct for v in group.first_verdicts_G])
        correct = torch.tensor([v.correct for v in verdicts])
        patched = torch.tensor(group.patched_G)
        flags = (first_correct, patched)
        rule, kappa = self.reason.tax_on, self.reason.patch_tax
        rewards = robust_improvement_reward(
            outcome, form, *flags, patch_tax=kappa, tax_on=rule, chosen_correct=correct
        )
        taxed = taxed_mask(outcome, *flags, tax_on=rule, chosen_correct=correct)
        return rewards, taxed, patched & correct

    def _view(self, first: Rollout, chosen: Rollout) -> tuple[Rollout, str]:
        """The tokens to train with the observation to train them in, and how that view is treated."""
        if self.reason.credit == "released":
            return first, "own"
        if self.reason.train_view == "own" or not chosen.observation.patched:
            return chosen, "own"
        return replace(chosen, observation=first.observation), self.reason.train_view
