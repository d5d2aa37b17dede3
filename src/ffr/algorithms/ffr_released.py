"""The rule of the authors' released trainer, for comparison only (github.com/JethroJames/FFR).

Differences from GRPO:
1. A failed rollout is repaired, and the repaired rollout is judged, but its tokens are never trained on.
2. The repaired reward minus kappa replaces the failed rollout's reward, and the advantage made of it acts
   on the *failed* first-pass tokens under x: a wrong answer is pushed up when its repair came out right.
3. The tax is taken from every patched rollout, failed repairs too.
Left to the configuration: the release's loss is the mean of per-sequence means
(`reason.loss_norm = "seq_mean"`), and it counts every score below 1 as a failure
(`find.free_form_threshold` and its siblings = 1.0). It also caps a repair at 512 tokens and has no
clip, which is the same as one update per batch (`train.updates_per_batch = 1`): the ratio is then 1.
"""

from __future__ import annotations

from dataclasses import dataclass

from ffr.algorithms.base import GroupScore
from ffr.algorithms.ffr import FFR
from ffr.config import ReasonConfig
from ffr.types import RolloutGroup


@dataclass(frozen=True)
class FFRReleased:
    """FFR as released: right view, wrong tokens.

    Example:
        >>> FFRReleased().name
        'ffr_released'
    """

    reason: ReasonConfig = ReasonConfig()
    name: str = "ffr_released"
    repairs: bool = True

    def score(self, group: RolloutGroup) -> GroupScore:
        """Score a group by the released rule, whatever those four switches say.

        Args:
            group: First passes, repairs and chosen rollouts with their verdicts.

        Returns:
            `GroupScore` with `trained_G = first_G` and the chosen rollouts' taxed rewards.

        Raises:
            ValueError: The group is ragged or empty.
        """
        update = {
            "credit": "released",
            "tax_on": "any_patched",
            "train_view": "own",
            "chosen": "per_slot",
        }
        return FFR(self.reason.model_copy(update=update)).score(group)
