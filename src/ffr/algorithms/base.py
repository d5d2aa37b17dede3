"""What every method answers: which tokens are trained, in which view, with which advantage."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ffr.types import Rollout, RolloutGroup, Verdict


@dataclass(frozen=True)
class GroupScore:
    """One question's group, ready for the loss. All tuples and tensors have length G.

    Example:
        >>> score = GroupScore(
        ...     rewards_G=torch.tensor([2.0, 1.7]),
        ...     advantages_G=torch.tensor([0.7, -0.7]),
        ...     taxed_G=(False, True),
        ...     trained_G=(first, repaired),
        ...     view_treatment_G=("own", "own"),
        ...     active_G=(True, True),
        ... )  # doctest: +SKIP
    """

    rewards_G: Tensor
    """R_i, float32 on the CPU."""
    advantages_G: Tensor
    """A_i, float32 on the CPU."""
    taxed_G: tuple[bool, ...]
    """True where the patch tax was taken off the reward."""
    trained_G: tuple[Rollout, ...]
    """The tokens that get the gradient, each with the observation it is *trained* in. `logprobs` are
    always those of sampling."""
    view_treatment_G: tuple[str, ...]
    """`own`: trained in the view it was sampled in. The others carry the first pass's un-patched
    observation, while `logprobs` were taken under x + c: `reattach` (recompute the old log-probs under x),
    `shaped` (old log-probs unused), `true_is` (old log-probs as sampled). See `ffr.reason.loss`."""
    active_G: tuple[bool, ...]
    """False where a rollout must not count at all (`chosen = "best_of_group"`): its advantage is 0, and an
    engine also leaves its tokens out of the mask, so that neither KL nor the token count sees them."""


class Algorithm(Protocol):
    """A method as the engine sees it: two facts and one function of a finished group.

    Example:
        >>> make_algorithm(Config()).repairs  # doctest: +SKIP
        True
    """

    @property
    def name(self) -> str:
        """Name in configurations and tables."""
        ...

    @property
    def repairs(self) -> bool:
        """Whether failed rollouts are sent to the teacher before `score`."""
        ...

    def score(self, group: RolloutGroup) -> GroupScore:
        """Rewards, advantages and trained rollouts of one group."""
        ...


def base_rewards(verdicts_G: tuple[Verdict, ...]) -> Tensor:
    """R_acc + R_fmt of each verdict, shape (G,), float64."""
    return torch.tensor([v.score + v.format_score for v in verdicts_G], dtype=torch.float64)


def check_group(group: RolloutGroup) -> None:
    """Raise ValueError unless all five tuples of the group have the same length G >= 1."""
    lengths = {
        "first_G": len(group.first_G),
        "first_verdicts_G": len(group.first_verdicts_G),
        "repairs_G": len(group.repairs_G),
        "chosen_G": len(group.chosen_G),
        "chosen_verdicts_G": len(group.chosen_verdicts_G),
    }
    if 0 in lengths.values() or len(set(lengths.values())) != 1:
        raise ValueError(f"group of {group.sample.uid!r} is ragged or empty: {lengths}")
