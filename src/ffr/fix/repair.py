"""From failed rollouts to repairs: diagnosis, leak gate, budget, the student's second try, the verdict.

Every failed rollout leaves with exactly one `Repair` and one status (FFR section 3.2, arXiv 2604.16243); a
teacher that is slow, wrong or dead costs that rollout its repair and nothing else.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING

from ffr.config import FindConfig, FixConfig
from ffr.find import Sampler, thresholds_from, verify
from ffr.fix.ask import CANCEL_GRACE_S, TeacherDesk
from ffr.fix.background import run_blocking
from ffr.fix.budget import Budget
from ffr.fix.cache import Journal, JournalError
from ffr.fix.leak import check_leak
from ffr.fix.teacher import FailureKind, Teacher
from ffr.observe import apply_patch
from ffr.types import (
    Diagnosis,
    EvidencePatch,
    LeakFinding,
    LeakReport,
    Observation,
    Repair,
    RepairStatus,
    Rollout,
    Sample,
    TeacherCost,
    Verdict,
)

if TYPE_CHECKING:
    from ffr.fix.blind_gate import BlindGate

log = logging.getLogger(__name__)

Item = tuple[Sample, Rollout]


@dataclass(frozen=True, slots=True)
class Proposal:
    """A patch that passed the gate, or the repair that already ended without one.

    Example:
        >>> Proposal(patch=None, repair=Repair(status=RepairStatus.OVER_BUDGET)).ready
        False
    """

    patch: EvidencePatch | None
    """What the student is to be shown; None if there is nothing to show."""
    repair: Repair
    """The final repair, or, with a patch, its first half (status `skipped` until the student has tried)."""

    @property
    def ready(self) -> bool:
        """True if the student can be asked again."""
        return self.patch is not None


class RepairFlow:
    """Repairs failed rollouts, many at a time, and counts all that happened.

    Args:
        teacher: Who diagnoses.
        sampler: The student. A sampler with a true `lock_step` attribute is called once per batch also when
            there is nothing to sample (`[]`), so that all ranks enter its collectives together.
        fix: Teacher, gate and budget settings.
        find: Verifier profile and thresholds.
        journal: Replays outcomes and keeps new ones; none when absent.
        budget: Limits; made from `fix.budget` when absent, with the journal as ledger.

    Example:
        >>> flow = RepairFlow(teacher=teacher, sampler=sampler, fix=cfg.fix, find=cfg.find)  # doctest: +SKIP
        >>> repairs = await flow.repair_batch([(sample, failed)])  # doctest: +SKIP
        >>> flow.counters["status/repaired"]  # doctest: +SKIP
    """

    def __init__(
        self,
        *,
        teacher: Teacher,
        sampler: Sampler,
        fix: FixConfig,
        find: FindConfig,
        journal: Journal | None = None,
        budget: Budget | None = None,
    ) -> None:
        self._sampler = sampler
        self._fix = fix
        self._find = find
        self._thresholds = thresholds_from(find)
        self.counters: Counter[str] = Counter()
        """`status/*`, `failure/*`, `leak/*` (layers), `over_budget/*` (limits), `teacher_calls`,
        `teacher_ok`, `leaks`, `reasks`, `cached`, `shared_patches`, `tool_calls`, `images`,
        `prompt_tokens`, `completion_tokens`, `estimated_tokens`, `journal_invalid`, those of the blind test
        (`blind_*`) and the teacher's gauges (`concurrency*`)."""
        budget = budget or Budget(fix.budget, ledger=journal)
        self._desk = TeacherDesk(teacher, fix, journal=journal, budget=budget, counters=self.counters)
        self._blind = _blind_gate(teacher, fix, journal, budget, self.counters)

    async def repair_batch(self, items: Sequence[Item]) -> list[Repair]:
        """Repair the failed rollouts of one step.

        All proposals run concurrently under `step_deadline_s`, then the sampler is called once on all patched
        observations, then the new rollouts are verified.

        Args:
            items: (sample, failed rollout) pairs.

        Returns:
            One repair per item, in order.

        Raises:
            NoTeacherError: See `propose_batch`.
        """
        proposals = await self.propose_batch(items)
        observations = self.patched_observations(items, proposals)
        return self.complete(items, proposals, observations, await self._sample(observations))

    def repair_batch_blocking(self, items: Sequence[Item]) -> list[Repair]:
        """`repair_batch` for a trainer that is not async.

        The teacher's part runs on the private event-loop thread; the sampler runs in the caller's thread,
        because torch's gradient mode, autocast and current device belong to a thread. Same results, errors.
        """
        limit_s = self._fix.teacher.step_deadline_s + CANCEL_GRACE_S + 5.0
        try:
            proposals = run_blocking(self.propose_batch(items), limit_s)
        except TimeoutError:
            log.error("the teacher's event loop did not answer within %.0f s", limit_s)
            proposals = [self._failed(FailureKind.STEP_DEADLINE, "event loop did not answer") for _ in items]
        observations = self.patched_observations(items, proposals)
        return self.complete(items, proposals, observations, asyncio.run(self._sample(observations)))

    async def propose_batch(self, items: Sequence[Item]) -> list[Proposal]:
        """Diagnose and gate all items of one step concurrently, under the step deadline.

        Raises:
            NoTeacherError: `fix.no_teacher_after` calls without one success, and not `fix.allow_no_teacher`.
        """
        self._desk.begin_step()
        leaders = self._leaders(items)
        tasks = {at: asyncio.create_task(self.propose(*items[at])) for at in sorted(set(leaders))}
        if tasks:
            await asyncio.wait(tasks.values(), timeout=self._fix.teacher.step_deadline_s)
        late = [task for task in tasks.values() if not task.done()]
        for task in late:
            task.cancel()
        if late:
            await asyncio.wait(late, timeout=CANCEL_GRACE_S)
        results = {at: self._result(task) for at, task in tasks.items()}
        proposals = [
            results[leader] if at == leader else self._shared(results[leader])
            for at, leader in enumerate(leaders)
        ]
        self._end_step()
        return proposals

    def _end_step(self) -> None:
        """Stops a run that goes on without the help it was promised."""
        self._desk.check_teacher()
        if self._blind is not None:
            self._blind.check_judge()

    async def propose(self, sample: Sample, rollout: Rollout) -> Proposal:
        """Diagnosis, leak gate and, for a leaking patch, one re-ask that names only the layers.

        Returns:
            A proposal with a patch that may be shown, or with the final repair (`leaked`, `teacher_failed`,
            `over_budget`). Never raises from a teacher's reply.
        """
        cost, reask, leak, last = TeacherCost(), "", None, None
        attempts = 1 + self._fix.leak.max_reasks
        for attempt in range(attempts):
            diagnosis, limit = await self._desk.ask(sample, rollout, reask, attempt)
            if limit:
                status = RepairStatus.LEAKED if attempt else RepairStatus.OVER_BUDGET
                detail = f"{limit} budget spent"
                return Proposal(None, Repair(status, last, leak, num_leaks=attempt, detail=detail))
            cost = _add(cost, diagnosis.cost)
            diagnosis = last = replace(diagnosis, cost=cost)
            if diagnosis.patch is None:
                repair = Repair(
                    RepairStatus.TEACHER_FAILED, diagnosis, leak, num_leaks=attempt, detail=diagnosis.failure
                )
                return Proposal(None, repair)
            leak = self._gate(diagnosis.patch, sample)
            if self._blind is not None and not leak.leaked:
                diagnosis, leak, ended = await self._blind_test(self._blind, sample, diagnosis, leak)
                cost, last = diagnosis.cost, diagnosis
                if ended is not None:
                    return Proposal(None, replace(ended, num_leaks=attempt))
            if not leak.leaked:
                repair = Repair(RepairStatus.SKIPPED, diagnosis, leak, num_leaks=attempt)
                return Proposal(diagnosis.patch, repair)
            self.counters["leaks"] += 1
            layers = sorted({finding.layer for finding in leak.findings if finding.leaked})
            self.counters.update(f"leak/{layer}" for layer in layers)
            reask = ", ".join(layers)
            if attempt + 1 == attempts:
                repair = Repair(RepairStatus.LEAKED, diagnosis, leak, num_leaks=attempts, detail=reask)
                return Proposal(None, repair)
            self.counters["reasks"] += 1
        raise AssertionError("unreachable: there is at least one attempt")

    async def _blind_test(
        self, gate: BlindGate, sample: Sample, diagnosis: Diagnosis, leak: LeakReport
    ) -> tuple[Diagnosis, LeakReport, Repair | None]:
        """Diagnosis and report with the test's cost and finding; a repair if there is nothing to show."""
        assert diagnosis.patch is not None  # the caller has just put it through the other layers
        try:
            outcome = await gate.check(diagnosis.patch, sample)
        except JournalError:
            raise
        except Exception as error:
            log.exception("blind test raised on %s", sample.uid)
            finding = LeakFinding("gate_error", leaked=True, reason=f"{type(error).__name__}: {error}"[:200])
            return diagnosis, LeakReport((*leak.findings, finding)), None
        diagnosis = replace(diagnosis, cost=_add(outcome.cost, diagnosis.cost))
        if outcome.limit:
            detail = f"{outcome.limit} budget spent"
            return diagnosis, leak, Repair(RepairStatus.OVER_BUDGET, diagnosis, leak, detail=detail)
        if outcome.finding is None:
            kind = FailureKind.BLIND_FAULT
            self.counters[f"failure/{kind}"] += 1
            failed = replace(diagnosis, patch=None, failure=kind, detail=outcome.fault)
            return failed, leak, Repair(RepairStatus.TEACHER_FAILED, failed, leak, detail=kind)
        return diagnosis, LeakReport((*leak.findings, outcome.finding)), None

    async def aclose(self) -> None:
        """Close the connections of the blind test's model; the teacher's are the caller's to close."""
        if self._blind is not None:
            await self._blind.aclose()

    def patched_observations(
        self, items: Sequence[Item], proposals: Sequence[Proposal]
    ) -> list[tuple[int, Observation]]:
        """The x + c of every ready proposal, with the item's position."""
        return [
            (at, apply_patch(rollout.observation, proposal.patch, visual=self._fix.visual))
            for at, ((_, rollout), proposal) in enumerate(zip(items, proposals, strict=True))
            if proposal.patch is not None
        ]

    def complete(
        self,
        items: Sequence[Item],
        proposals: Sequence[Proposal],
        observations: Sequence[tuple[int, Observation]],
        rollouts: Sequence[Sequence[Rollout]],
    ) -> list[Repair]:
        """Verify the second rollouts, close every repair and count its status.

        Args:
            items: What was to be repaired.
            proposals: One per item.
            observations: From `patched_observations`.
            rollouts: One rollout for each of `observations`, in order.

        Raises:
            ValueError: The sampler gave another number of rollouts than it was asked for.
        """
        if len(rollouts) != len(observations) or any(len(group) != 1 for group in rollouts):
            given = [len(group) for group in rollouts]
            raise ValueError(f"sampler gave {given} rollouts, asked for 1 of each of {len(observations)}")
        repairs = [proposal.repair for proposal in proposals]
        for (at, _), group in zip(observations, rollouts, strict=True):
            sample = items[at][0]
            verdict = self._verify(sample, group[0])
            status = RepairStatus.REPAIRED if verdict.correct else RepairStatus.STILL_WRONG
            repairs[at] = replace(repairs[at], status=status, rollout=group[0], verdict=verdict)
        for repair in repairs:
            self.counters[f"status/{repair.status}"] += 1
        return repairs

    async def _sample(self, observations: Sequence[tuple[int, Observation]]) -> list[list[Rollout]]:
        if not observations and not getattr(self._sampler, "lock_step", False):
            return []
        return await self._sampler.sample([obs for _, obs in observations], num=1, source="repaired")

    def _verify(self, sample: Sample, rollout: Rollout) -> Verdict:
        return verify(sample, rollout.text, profile=self._find.profile, thresholds=self._thresholds)

    def _gate(self, patch: EvidencePatch, sample: Sample) -> LeakReport:
        if not self._fix.leak.enabled:
            return LeakReport(findings=())
        try:
            return check_leak(patch, sample, self._fix.leak)
        except Exception as error:
            # Fail closed: what could not be checked is not shown.
            log.exception("leak gate raised on %s", sample.uid)
            finding = LeakFinding("gate_error", leaked=True, reason=f"{type(error).__name__}: {error}"[:200])
            return LeakReport(findings=(finding,))

    def _leaders(self, items: Sequence[Item]) -> list[int]:
        """For each item the position of the item whose patch it gets: itself unless patches are shared."""
        if not self._fix.one_patch_per_answer:
            return list(range(len(items)))
        first: dict[tuple[str, str], int] = {}
        leaders: list[int] = []
        for at, (sample, rollout) in enumerate(items):
            said = self._verify(sample, rollout).extracted
            leaders.append(first.setdefault((sample.uid, said or rollout.text), at))
        return leaders

    def _shared(self, proposal: Proposal) -> Proposal:
        self.counters["shared_patches"] += 1
        diagnosis = proposal.repair.diagnosis
        if diagnosis is None:
            return proposal
        free = replace(diagnosis, cost=TeacherCost(cached=True))
        return replace(proposal, repair=replace(proposal.repair, diagnosis=free))

    def _result(self, task: asyncio.Task[Proposal]) -> Proposal:
        if not task.done() or task.cancelled():
            return self._failed(FailureKind.STEP_DEADLINE, "the step's deadline passed")
        error = task.exception()
        if error is not None:
            raise error
        return task.result()

    def _failed(self, kind: FailureKind, detail: str) -> Proposal:
        self._desk.note_failure(kind, detail)
        diagnosis = Diagnosis(patch=None, failure=kind, detail=detail)
        return Proposal(None, Repair(RepairStatus.TEACHER_FAILED, diagnosis, detail=kind))


async def repair(
    sample: Sample,
    rollout: Rollout,
    *,
    sampler: Sampler,
    teacher: Teacher,
    fix: FixConfig | None = None,
    find: FindConfig | None = None,
) -> Repair:
    """Repair one failed rollout.

    Returns:
        The repair: `repaired`, `still_wrong`, `leaked`, `teacher_failed` or `over_budget`.
    """
    flow = RepairFlow(teacher=teacher, sampler=sampler, fix=fix or FixConfig(), find=find or FindConfig())
    return (await flow.repair_batch([(sample, rollout)]))[0]


def _add(a: TeacherCost, b: TeacherCost) -> TeacherCost:
    """Sums; `cached` is that of `b`."""
    sums = {
        f.name: getattr(a, f.name) + getattr(b, f.name) for f in fields(TeacherCost) if f.name != "cached"
    }
    return TeacherCost(**sums, cached=b.cached)


def _blind_gate(
    teacher: Teacher, fix: FixConfig, journal: Journal | None, budget: Budget, counters: Counter[str]
) -> BlindGate | None:
    if fix.leak.blind == "off" or not fix.leak.enabled:
        return None
    # Only a run that asks for it pays for the import of the client.
    from ffr.fix.blind_gate import make_blind_gate

    return make_blind_gate(teacher, fix, journal=journal, budget=budget, counters=counters)
