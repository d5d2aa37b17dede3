"""Putting one question to the teacher: journal first, then budget, then a call under a deadline."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from typing import Final
from weakref import WeakKeyDictionary, WeakValueDictionary

from ffr.config import FixConfig
from ffr.fix.budget import Budget
from ffr.fix.cache import Journal, diagnosis_from_json, diagnosis_key, diagnosis_to_json
from ffr.fix.teacher import (
    CACHEABLE,
    FailureKind,
    Gauged,
    Teacher,
    TeacherRequest,
    diagnose,
    reference_text,
)
from ffr.types import Diagnosis, Rollout, Sample

log = logging.getLogger(__name__)

CANCEL_GRACE_S: Final = 2.0
"""How long a cancelled teacher call may take to let go before it is left behind."""


class NoTeacherError(RuntimeError):
    """The teacher has never worked: the run would silently be plain GRPO."""


class TeacherDesk:
    """Where the flow's questions to the teacher pass: replayed, paid for, bounded, counted.

    Args:
        teacher: Who is asked.
        fix: Deadlines, concurrency and what the teacher may see.
        journal: Replays outcomes and keeps new ones.
        budget: Grants calls.
        counters: The flow's counters, updated in place.
    """

    def __init__(
        self,
        teacher: Teacher,
        fix: FixConfig,
        *,
        journal: Journal | None,
        budget: Budget,
        counters: Counter[str],
    ) -> None:
        self._teacher = teacher
        self._fix = fix
        self._journal = journal
        self._budget = budget
        self._counters = counters
        self._settings = f"reference={fix.reference_answer};prompt={fix.prompt_config}"
        self._slots: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Semaphore] = WeakKeyDictionary()
        self._key_locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._ever_worked = False
        self._calls_without_success = 0

    def begin_step(self) -> None:
        """Start the step's budget."""
        self._budget.begin_step()

    async def ask(self, sample: Sample, rollout: Rollout, reask: str, attempt: int) -> tuple[Diagnosis, str]:
        """One question, answered by the journal if it can.

        Args:
            sample: The question.
            rollout: The failed rollout.
            reask: Names of the leak layers that stopped the patch before; empty at first.
            attempt: 0, or 1 for the re-ask: part of the journal's key.

        Returns:
            The diagnosis and, when a budget is spent, which one (then the diagnosis is empty).
        """
        gold = reference_text(sample) if self._fix.reference_answer else None
        request = TeacherRequest(sample=sample, rollout=rollout, reference_answer=gold, reask=reask)
        if self._journal is None:
            return await self._pay(request)
        name = self._teacher.name
        key = diagnosis_key(request, teacher_name=name, settings=self._settings, attempt=attempt)
        # Equal questions that run at the same time wait for the first one instead of paying again.
        lock = self._key_locks.setdefault(key, asyncio.Lock())
        async with lock:
            stored = await self._replay(self._journal, key)
            if stored is not None:
                return stored, ""
            diagnosis, limit = await self._pay(request)
            if not limit and diagnosis.failure in CACHEABLE:
                await asyncio.to_thread(self._journal.put, key, diagnosis_to_json(diagnosis))
            return diagnosis, limit

    async def _replay(self, journal: Journal, key: str) -> Diagnosis | None:
        value = await asyncio.to_thread(journal.get, key)
        if value is None:
            return None
        try:
            diagnosis = diagnosis_from_json(value)
        except (KeyError, TypeError, ValueError) as error:
            self._counters["journal_invalid"] += 1
            log.warning("journal row %s is not a diagnosis (%s); asking again", key[:12], error)
            return None
        self._counters["cached"] += 1
        self._note(worked=diagnosis.ok)
        return diagnosis

    async def _pay(self, request: TeacherRequest) -> tuple[Diagnosis, str]:
        async with self._slot():
            limit = await asyncio.to_thread(self._budget.take, request.sample.uid)
            if limit:
                self._counters[f"over_budget/{limit}"] += 1
                return Diagnosis(patch=None), limit
            self._counters["teacher_calls"] += 1
            diagnosis = await self._call(request)
        self._counters["tool_calls"] += len(diagnosis.tool_calls)
        for name in ("prompt_tokens", "completion_tokens", "estimated_tokens"):
            self._counters[name] += getattr(diagnosis.cost, name)
        if isinstance(self._teacher, Gauged):
            self._counters.update({n: v - self._counters[n] for n, v in self._teacher.gauges.items()})
        self._counters["images"] += diagnosis.cost.num_images
        self._note(worked=diagnosis.ok)
        if diagnosis.ok:
            self._counters["teacher_ok"] += 1
        else:
            self._count_failure(diagnosis.failure, diagnosis.detail)
        return diagnosis, ""

    async def _call(self, request: TeacherRequest) -> Diagnosis:
        # The teacher keeps its own deadline; this one is for a teacher that does not.
        limit_s = self._fix.teacher.rollout_deadline_s + CANCEL_GRACE_S
        try:
            async with asyncio.timeout(limit_s):
                return await diagnose(
                    request.sample,
                    request.rollout,
                    self._teacher,
                    reference_answer=request.reference_answer is not None,
                    reask=request.reask,
                )
        except TimeoutError:
            detail = f"no reply within {limit_s:.1f} s"
            return Diagnosis(patch=None, failure=FailureKind.TIMEOUT, detail=detail)

    def _slot(self) -> asyncio.Semaphore:
        loop = asyncio.get_running_loop()
        return self._slots.setdefault(loop, asyncio.Semaphore(self._fix.teacher.concurrency))

    def _note(self, *, worked: bool) -> None:
        self._ever_worked = self._ever_worked or worked
        self._calls_without_success = 0 if worked else self._calls_without_success + 1

    def note_failure(self, kind: FailureKind, detail: str = "") -> None:
        """Count a call that was given up from outside."""
        self._count_failure(kind, detail)
        self._note(worked=False)

    def _count_failure(self, kind: str, detail: str) -> None:
        self._counters[f"failure/{kind}"] += 1
        if self._counters[f"failure/{kind}"] == 1:  # one line each: the counter tells of the others
            log.warning("teacher %s: first failure of kind %s: %s", self._teacher.name, kind, detail or "-")

    def check_teacher(self) -> None:
        """Stop a run whose teacher has never worked.

        Raises:
            NoTeacherError: `fix.no_teacher_after` calls without one success, and not `fix.allow_no_teacher`.
        """
        spent = self._calls_without_success
        if self._ever_worked or self._fix.allow_no_teacher or spent < self._fix.no_teacher_after:
            return
        kinds = {name: n for name, n in sorted(self._counters.items()) if name.startswith("failure/")}
        raise NoTeacherError(
            f"teacher {self._teacher.name} gave no patch in its first {spent} calls ({kinds}): this run "
            "would be plain GRPO. Check fix.teacher.base_url, fix.teacher.model and the key, or set "
            "fix.allow_no_teacher = true to go on without it."
        )
