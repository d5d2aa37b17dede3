"""Who samples rollouts: one protocol for every back end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from ffr.types import Observation, Rollout


class Sampler(Protocol):
    """A policy that completes observations.

    Back ends that generate in lock-step over processes rely on one call being one generation: callers
    gather all observations of a step and ask once.

    Example:
        >>> class Fixed:
        ...     async def sample(self, observations, *, num, source="policy"):
        ...         text = "<answer>B</answer>"
        ...         return [[Rollout(obs, text, source=source)] * num for obs in observations]
    """

    async def sample(
        self, observations: Sequence[Observation], *, num: int, source: str = "policy"
    ) -> list[list[Rollout]]:
        """`num` rollouts of each observation, in the observations' order.

        Each rollout carries the very observation it was sampled in and `source`.
        """
        ...
