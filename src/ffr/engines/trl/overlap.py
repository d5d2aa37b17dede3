"""One batch of questions with every rollout on its own: generate, verify, teacher, generate again.

For samplers that take single requests. A rollout that failed early is with the teacher while others are
still being generated, and its second try runs beside other rollouts' diagnoses.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from ffr.find import SamplerError
from ffr.fix.overlap import OverlapFlow, gather_or_cancel
from ffr.types import Observation, Repair, Rollout, Sample, Verdict


class SingleSampler(Protocol):
    """A sampler that takes one rollout at a time, any number of them at once.

    Example:
        >>> rollout = await sampler.sample_one(obs, source="policy", stream=3)  # doctest: +SKIP
    """

    async def sample_one(self, obs: Observation, *, source: str, stream: int) -> Rollout:
        """One rollout; the view, `source` and `stream` name its randomness."""
        ...


@dataclass(eq=False)
class Group:
    """What became of one question's rollouts.

    Example:
        >>> Group.empty(2).repairs_G
        [None, None]
    """

    first_G: list[Rollout]
    verdicts_G: list[Verdict]
    repairs_G: list[Repair | None]
    started_G: list[asyncio.Event]
    """Set once a rollout has been judged and, if it failed, been handed to the teacher."""

    @classmethod
    def empty(cls, size: int) -> Group:
        """A group whose rollouts are to come."""
        nothing: list[None] = [None] * size
        events = [asyncio.Event() for _ in nothing]
        return cls(list(nothing), list(nothing), list(nothing), events)  # type: ignore[arg-type]


class Overlap:
    """Find and fix for a batch of questions, without a border between them.

    Repairs draw from the stream of the rollout they repair, so what is sampled does not depend on who was
    faster.

    Args:
        sampler: the policy.
        judge: the verifier.
        repairs: who repairs; None to repair nothing.
        group_size: G.

    Example:
        >>> groups = await Overlap(sampler, judge, flow, group_size=8).run([(sample, obs)])  # doctest: +SKIP
    """

    def __init__(
        self,
        sampler: SingleSampler,
        judge: Callable[[Sample, Rollout], Verdict],
        repairs: OverlapFlow | None,
        *,
        group_size: int,
    ) -> None:
        self._sampler = sampler
        self._judge = judge
        self._repairs = repairs
        self._size = group_size
        self._left = 0
        self._sampled: Callable[[], None] = lambda: None

    async def run(
        self, questions: Sequence[tuple[Sample, Observation]], sampled: Callable[[], None] = lambda: None
    ) -> list[Group]:
        """All rollouts of a batch and their repairs.

        Args:
            questions: each sample with its un-patched observation.
            sampled: called when the last first pass has been judged.

        Returns:
            One group per question, in order.

        Raises:
            SamplerError: the sampler broke its protocol, or gave up.
            NoTeacherError: the teacher never succeeded and that was not allowed.
        """
        groups = [Group.empty(self._size) for _ in questions]
        self._left, self._sampled = len(questions) * self._size, sampled
        shown: Counter[str] = Counter()
        rollouts = []
        for (sample, obs), group in zip(questions, groups, strict=True):
            first = shown[obs.view_id]  # a question that comes up twice goes on with the next streams
            shown[obs.view_id] += self._size
            rollouts += [self._rollout(sample, obs, group, g, first + g) for g in range(self._size)]
        if self._repairs is None:
            await gather_or_cancel(rollouts)
            return groups
        self._repairs.begin_round()
        try:
            if not rollouts:
                self._repairs.all_started()
            await gather_or_cancel(rollouts)
        except BaseException:
            await self._repairs.end_round(failed=True)
            raise
        await self._repairs.end_round()
        return groups

    async def _rollout(self, sample: Sample, obs: Observation, group: Group, g: int, stream: int) -> None:
        first = await self._sampler.sample_one(obs, source="policy", stream=stream)
        if first.observation.view_id != obs.view_id:
            raise SamplerError(
                f"rollout {g} of {obs.sample_uid} was sampled in view "
                f"{first.observation.view_id[:12]}, not in {obs.view_id[:12]}"
            )
        verdict = self._judge(sample, first)
        group.first_G[g], group.verdicts_G[g] = first, verdict
        repairs, proposal = self._repairs, None
        if repairs is not None and repairs.shares_patches and g:
            await group.started_G[g - 1].wait()
        if repairs is not None and not verdict.correct:
            proposal = repairs.start(sample, first)
        group.started_G[g].set()
        self._left -= 1
        if not self._left:
            self._sampled()
            if repairs is not None:
                repairs.all_started()
        if repairs is None or proposal is None:
            return

        async def again(view: Observation) -> Rollout:
            return await self._sampler.sample_one(view, source="repaired", stream=stream)

        group.repairs_G[g] = await repairs.finish(sample, first, proposal, again)
