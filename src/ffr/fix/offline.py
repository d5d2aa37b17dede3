"""Repairing failures that are already on disk: questions and rollouts in, patches out, no student, no torch.

The first half of a repair (FFR section 3.2, arXiv 2604.16243): diagnosis, leak gate, budget. Every failed
rollout ends as one row with one status; a stopped run goes on where it was and pays for nothing twice.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from ffr.config import Config
from ffr.data.base import RowReader, load_rows
from ffr.find import thresholds_from, verify
from ffr.fix.ask import NoTeacherError
from ffr.fix.cache import Journal
from ffr.fix.patch_file import (
    Key,
    patch_fields,
    question_fields,
    rollout_hash,
    work_fields,
)
from ffr.fix.repair import RepairFlow
from ffr.fix.teacher import CACHEABLE, FailureKind, Teacher, short_hash
from ffr.observe import MediaError, observe, render_patch
from ffr.types import Diagnosis, Observation, Repair, RepairStatus, Rollout, Sample, TeacherCost

DECODE_AHEAD: Final = 4
"""Rollouts whose clip is read while all of the teacher's places are taken."""
PATCHED: Final = "patched"
"""The patch passed the gate; whether it helps is the student's to show."""
MEDIA_ERROR: Final = "media_error"
_NOT_OF_THE_SERVER: Final = frozenset(
    {*CACHEABLE, FailureKind.TRUNCATED, FailureKind.DECODE_ERROR, FailureKind.NO_EVIDENCE}
)

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class FailedRollout:
    """A completion that `verify` finds wrong.

    Example:
        >>> FailedRollout(sample=sample, text="<answer>A</answer>", said="A").key  # doctest: +SKIP
        ('micro/7', '0c2f6a9d31be')
    """

    sample: Sample
    text: str
    said: str
    """The answer as found in the text."""

    @property
    def key(self) -> Key:
        """What its row is known by."""
        return self.sample.uid, rollout_hash(self.text)


@dataclass(frozen=True, slots=True)
class Selection:
    """What there is to repair among the rollouts of a file.

    Example:
        >>> Selection(failed=(), num_correct=3).num_correct
        3
    """

    failed: tuple[FailedRollout, ...]
    """Rollouts of one question lie together, so that its clip is read once."""
    num_correct: int = 0
    num_duplicates: int = 0
    """Same question, same text."""
    unknown: tuple[str, ...] = ()
    """uid of each rollout whose question is not there."""


def read_rollouts(path: Path) -> Iterator[tuple[str, str]]:
    """(uid, text) of each row `{"uid": ..., "text": ...}`; other fields are ignored.

    Raises:
        DataError: The file or a row is malformed.
    """
    for number, row in load_rows(path):
        reader = RowReader(path, number, row)
        yield reader.text("uid"), reader.text("text", default=None if "text" not in row else "")


def select_failed(samples: Sequence[Sample], rollouts: Iterator[tuple[str, str]], cfg: Config) -> Selection:
    """Keep the rollouts that the rule-based verifier finds wrong.

    Args:
        samples: The questions.
        rollouts: (uid, text) pairs, several per question allowed.
        cfg: Verifier profile and thresholds.
    """
    by_uid = {sample.uid: sample for sample in samples}
    thresholds = thresholds_from(cfg.find)
    failed: dict[str, dict[str, FailedRollout]] = {}
    seen: set[Key] = set()
    unknown: list[str] = []
    num_correct = num_duplicates = 0
    for uid, text in rollouts:
        sample = by_uid.get(uid)
        if sample is None:
            unknown.append(uid)
            continue
        item = FailedRollout(sample, text, "")
        if item.key in seen:
            num_duplicates += 1
            continue
        seen.add(item.key)
        verdict = verify(sample, text, profile=cfg.find.profile, thresholds=thresholds)
        if verdict.correct:
            num_correct += 1
        else:
            failed.setdefault(uid, {})[text] = replace(item, said=verdict.extracted)
    together = tuple(item for group in failed.values() for item in group.values())
    return Selection(together, num_correct, num_duplicates, tuple(unknown))


def setup_of(cfg: Config, teacher_name: str) -> str:
    """Hash of everything that shapes a row: rows of one file must agree in it."""
    view = cfg.observe.model_dump_json(exclude={"cache_dir"})
    fix = f"{cfg.fix.visual}/{cfg.fix.reference_answer}/{cfg.fix.prompt_config}"
    return short_hash(teacher_name, view, fix, cfg.fix.leak.model_dump_json())


class _NoStudent:
    """Offline there is nobody to ask again: only proposals are made."""

    async def sample(
        self, observations: Sequence[Observation], *, num: int, source: str = "policy"
    ) -> list[list[Rollout]]:
        """Never called by `RepairFlow.propose`."""
        raise RuntimeError("an offline run has no student")


class OfflineRun:
    """Asks the teacher about many failed rollouts, `fix.teacher.concurrency` at a time.

    The whole run counts as one step for `fix.budget`.

    Args:
        cfg: Observation, gate, budget and concurrency.
        teacher: Who is asked.
        journal: Replays outcomes, keeps new ones and the run's count of calls.
        on_row: Gets each finished row, in the order in which they finish.

    Example:
        >>> run = OfflineRun(cfg, teacher, journal=journal, on_row=rows.write)  # doctest: +SKIP
        >>> asyncio.run(run(selection.failed))  # doctest: +SKIP
        >>> run.counters["teacher_calls"]  # doctest: +SKIP
    """

    def __init__(
        self, cfg: Config, teacher: Teacher, *, journal: Journal | None, on_row: Callable[[Row], None]
    ) -> None:
        self._cfg = cfg
        self._teacher = teacher
        self._on_row = on_row
        self._flow = RepairFlow(
            teacher=teacher, sampler=_NoStudent(), fix=cfg.fix, find=cfg.find, journal=journal
        )
        self._views: dict[str, asyncio.Task[Observation]] = {}
        self._worked = False
        self._lost: Counter[str] = Counter()

    @property
    def counters(self) -> Counter[str]:
        """Those of the flow: `teacher_calls`, `cached`, `prompt_tokens`, `failure/*`, `leak/*` ..."""
        return self._flow.counters

    async def aclose(self) -> None:
        """Close what the flow itself has opened; the teacher is the caller's to close."""
        await self._flow.aclose()

    async def __call__(self, failed: Sequence[FailedRollout]) -> None:
        """One row for each failed rollout.

        Raises:
            NoTeacherError: `fix.no_teacher_after` rollouts in a row without a working teacher, and not
                `fix.allow_no_teacher`. Rows that were given to `on_row` stand.
        """
        units = self._units(failed)
        waiting = Counter(unit[0].sample.uid for unit in units)
        queue = iter(units)

        async def work() -> None:
            """Take the next unit until there is none."""
            for unit in queue:
                await self._unit(unit)
                uid = unit[0].sample.uid
                waiting[uid] -= 1
                if not waiting[uid]:
                    self._views.pop(uid, None)

        number = min(len(units), self._cfg.fix.teacher.concurrency + DECODE_AHEAD)
        tasks = [asyncio.create_task(work()) for _ in range(number)]
        try:
            await asyncio.gather(*tasks)
        finally:
            left: list[asyncio.Task[Any]] = [*tasks, *self._views.values()]
            for task in left:
                task.cancel()
            await asyncio.gather(*left, return_exceptions=True)

    def _units(self, failed: Sequence[FailedRollout]) -> list[list[FailedRollout]]:
        """Rollouts that share one patch: each alone unless `fix.one_patch_per_answer`."""
        groups: dict[Key, list[FailedRollout]] = {}
        for item in failed:
            share = self._cfg.fix.one_patch_per_answer and item.said
            key = (item.sample.uid, f"said {item.said}") if share else item.key
            groups.setdefault(key, []).append(item)
        return list(groups.values())

    async def _unit(self, unit: list[FailedRollout]) -> None:
        first, sample = unit[0], unit[0].sample
        if self.counters["over_budget/run"]:  # spent for good: no clip needs to be read any more
            repair = Repair(RepairStatus.OVER_BUDGET, detail="run budget spent")
            self._finish(unit, repair, None)
            return
        try:
            view = await self._view(sample)
        except MediaError as error:
            for item in unit:
                row = self._row(item, MEDIA_ERROR, Repair(RepairStatus.SKIPPED, detail=error.detail), None)
                self._on_row({**row, "failure": error.status, "final": False})
            return
        proposal = await self._flow.propose(sample, Rollout(observation=view, text=first.text))
        self._finish(unit, proposal.repair, view)
        self._check_teacher(proposal.repair)

    def _view(self, sample: Sample) -> asyncio.Future[Observation]:
        """The student's view, read once for all of a question's rollouts."""
        task = self._views.get(sample.uid)
        if task is None:
            task = asyncio.create_task(asyncio.to_thread(observe, sample, self._cfg.observe))
            self._views[sample.uid] = task
        return asyncio.shield(task)

    def _finish(self, unit: list[FailedRollout], repair: Repair, view: Observation | None) -> None:
        ready = repair.status is RepairStatus.SKIPPED
        failure = repair.diagnosis.failure if repair.diagnosis else ""
        final = repair.status is not RepairStatus.OVER_BUDGET and failure in CACHEABLE
        # A leaking patch whose re-ask was not paid for gets it when there is a budget again.
        final = final and not repair.detail.endswith("budget spent")
        for at, item in enumerate(unit):
            row = self._row(item, PATCHED if ready else str(repair.status), repair, view)
            if at:
                row["cost"] = work_fields((), None, TeacherCost(cached=True), self._cfg.fix)["cost"]
                self.counters["shared_patches"] += 1
            self._on_row({**row, "final": final})

    def _row(self, item: FailedRollout, status: str, repair: Repair, view: Observation | None) -> Row:
        fix = self._cfg.fix
        diagnosis = repair.diagnosis or Diagnosis(patch=None)
        shown = diagnosis.patch if status == PATCHED else None
        uid, name = item.key
        return {
            "uid": uid,
            "rollout_hash": name,
            "status": status,
            "said": item.said,
            **question_fields(item.sample),
            **patch_fields(diagnosis.patch),
            "patch_text": render_patch(shown, view, visual=fix.visual) if shown and view else "",
            "num_leaks": repair.num_leaks,
            "failure": diagnosis.failure,
            "detail": diagnosis.detail or repair.detail,
            **work_fields(diagnosis.tool_calls, repair.leak, diagnosis.cost, fix),
            "prompt_config": fix.prompt_config,
            "reference_answer": fix.reference_answer,
            "visual": fix.visual,
            "teacher": self._teacher.name,
        }

    def _check_teacher(self, repair: Repair) -> None:
        """Stop before thousands of rollouts are put to a server that is not there."""
        failure = repair.diagnosis.failure if repair.diagnosis else ""
        if not failure:
            self._worked = self._worked or repair.diagnosis is not None
            self._lost.clear()
            return
        if self._worked and failure in _NOT_OF_THE_SERVER:
            self._lost.clear()
            return
        self._lost[str(failure)] += 1
        spent = self._lost.total()
        if spent >= self._cfg.fix.no_teacher_after and not self._cfg.fix.allow_no_teacher:
            raise NoTeacherError(
                f"teacher {self._teacher.name} gave no patch for {spent} rollouts in a row "
                f"({dict(self._lost)}); check fix.teacher.base_url, fix.teacher.model and the key "
                f"(fix.leak.blind_* for {FailureKind.BLIND_FAULT}), then run "
                "the same command again: finished rows are kept"
            )
