"""Repairs one rollout at a time: a rollout is diagnosed as soon as it has failed, and tried again at once.

For samplers that take single requests (a server). The teacher's time then hides behind the generation of
other rollouts; results, budget, journal and counters are those of `RepairFlow.repair_batch`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from ffr.fix.ask import CANCEL_GRACE_S
from ffr.fix.repair import Proposal, RepairFlow
from ffr.types import Observation, Repair, Rollout, Sample

T = TypeVar("T")
Again = Callable[[Observation], Awaitable[Rollout]]
"""Asks the student once more, under x + c."""


@dataclass(eq=False)
class _Round:
    over: asyncio.Future[None]
    """Done when nothing is waited for any more."""
    proposals: list[asyncio.Task[Proposal]] = field(default_factory=list[asyncio.Task[Proposal]])
    waiting: list[asyncio.Task[Proposal]] = field(default_factory=list[asyncio.Task[Proposal]])
    leaders: dict[tuple[str, str], asyncio.Task[Proposal]] = field(
        default_factory=dict[tuple[str, str], asyncio.Task[Proposal]]
    )
    timers: list[asyncio.TimerHandle] = field(default_factory=list[asyncio.TimerHandle])


class OverlapFlow(RepairFlow):
    """`RepairFlow` whose repairs of a step need not begin together.

    A round is `begin_round`, any number of `start` and `finish`, `all_started` after the last `start`, and
    `end_round` whatever happened; all on one event loop.

    The step's deadline runs from `all_started`, which is when a batch would begin: no rollout gets less time
    than in a batch. Which rollouts get the calls of a budget that does not suffice follows from who failed
    first. Under `fix.one_patch_per_answer` the first `start` of an answer leads: start a question's
    rollouts in their order.

    Example:
        >>> flow.begin_round()  # doctest: +SKIP
        >>> proposal = flow.start(sample, failed)  # doctest: +SKIP
        >>> flow.all_started()  # doctest: +SKIP
        >>> repair = await flow.finish(sample, failed, proposal, again)  # doctest: +SKIP
        >>> await flow.end_round()  # doctest: +SKIP
    """

    _round: _Round | None = None

    @property
    def shares_patches(self) -> bool:
        """True if the order of `start` within a question decides whose patch is shared."""
        return self._fix.one_patch_per_answer

    def begin_round(self) -> None:
        """Starts the step's budget."""
        self._desk.begin_step()
        self._round = _Round(asyncio.get_running_loop().create_future())

    def start(self, sample: Sample, rollout: Rollout) -> asyncio.Task[Proposal]:
        """Asks the teacher about one failed rollout.

        Returns:
            The proposal to come; `finish` takes it.
        """
        this = self._current()
        key = None
        if self._fix.one_patch_per_answer:
            key = (sample.uid, self._verify(sample, rollout).extracted or rollout.text)
            if (leader := this.leaders.get(key)) is not None:
                return self._watched(this, self._follow(leader))
        proposal = asyncio.create_task(self.propose(sample, rollout))
        this.proposals.append(proposal)
        waiting = self._watched(this, self._bounded(this, proposal))
        if key is not None:
            this.leaders[key] = waiting
        return waiting

    def all_started(self) -> None:
        """Every rollout of the step has been judged: the step's deadline runs from here."""
        this = self._current()
        loop = asyncio.get_running_loop()
        limit_s = self._fix.teacher.step_deadline_s
        this.timers.append(loop.call_later(limit_s, _cancel_all, this.proposals))
        this.timers.append(loop.call_later(limit_s + CANCEL_GRACE_S, _finish, this.over))

    async def finish(
        self, sample: Sample, rollout: Rollout, proposal: asyncio.Task[Proposal], again: Again
    ) -> Repair:
        """The student's second try, if there is something to show, and the verdict.

        Args:
            sample: The question.
            rollout: The failed rollout.
            proposal: From `start`.
            again: Samples one rollout.

        Returns:
            The repair, counted.
        """
        item, ready = (sample, rollout), await proposal
        observations = self.patched_observations([item], [ready])
        rollouts = [[await again(obs)] for _, obs in observations]
        return self.complete([item], [ready], observations, rollouts)[0]

    async def end_round(self, *, failed: bool = False) -> None:
        """Lets go of all that the round still holds.

        Args:
            failed: The round ends with another error, which is not to be hidden by one of ours.

        Raises:
            NoTeacherError: As `RepairFlow.propose_batch`, unless `failed`.
        """
        this, self._round = self._current(), None
        for timer in this.timers:
            timer.cancel()
        _finish(this.over)
        late = [task for task in (*this.proposals, *this.waiting) if not task.done()]
        _cancel_all(late)
        if late:
            await asyncio.wait(late, timeout=CANCEL_GRACE_S)
        for task in (*this.proposals, *this.waiting):
            if task.done() and not task.cancelled():
                task.exception()  # seen: whoever awaited it has raised it
        if not failed:
            self._end_step()

    def _current(self) -> _Round:
        if self._round is None:
            raise RuntimeError("no round is open; call begin_round first")
        return self._round

    def _watched(self, this: _Round, coro: Coroutine[Any, Any, Proposal]) -> asyncio.Task[Proposal]:
        task = asyncio.create_task(coro)
        this.waiting.append(task)
        return task

    async def _bounded(self, this: _Round, proposal: asyncio.Task[Proposal]) -> Proposal:
        await asyncio.wait({proposal, this.over}, return_when=asyncio.FIRST_COMPLETED)
        return self._result(proposal)

    async def _follow(self, leader: asyncio.Task[Proposal]) -> Proposal:
        return self._shared(await asyncio.shield(leader))


async def gather_or_cancel(coroutines: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """Results of all coroutines; the first error ends the others, waits for them, and is raised as it is."""
    tasks = [asyncio.create_task(coro) for coro in coroutines]
    try:
        return list(await asyncio.gather(*tasks))
    except BaseException:
        _cancel_all(tasks)
        await asyncio.gather(*tasks, return_exceptions=True)
        raise


def _cancel_all(tasks: Sequence[asyncio.Task[Any]]) -> None:
    for task in tasks:
        task.cancel()


def _finish(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
