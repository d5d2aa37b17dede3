"""Budgeted repair: where the votes disagree a teacher shows the student where to look, within a budget.

FFR's repair (arXiv 2604.16243, eq. 5 and 6) at test time, where nobody knows the answer: disagreement among
the student's own votes takes the place of the verifier, the teacher is not given the reference answer, and
the leak gate stays on. Its numbers are no plain accuracy: part of them is the teacher's.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, Final

from ffr.config import FindConfig, FixConfig
from ffr.eval.models.base import Answerer, Generation
from ffr.eval.options.vote import Ballot, ask_votes, decided
from ffr.eval.runner import Answer, Asked, ModelGoneError
from ffr.eval.settings import OptionConfig
from ffr.fix import Journal, JournalError, NoTeacherError, Proposal, RepairFlow, Teacher
from ffr.types import Observation, Rollout

AGREED: Final = "agreed"
"""Status of a question whose first votes agree: nobody was asked."""
NOT_ASKED: Final = "not_asked"
"""Status of a question on which the student itself failed."""
REPAIRED: Final = "patched"
"""Status of a question that was answered again with a patch in view; else it is the repair's own
(`leaked`, `teacher_failed`, `over_budget`) and the first votes decide."""


class BudgetedRepair:
    """A `Respond` that asks the teacher where the student's votes disagree.

    Args:
        answerer: The student.
        cfg: Votes, what of a patch is shown, how many calls the run may make.
        teacher: Who gives patches.
        fix: Gate, deadlines; the reference answer is never given and the gate never off.
        journal: Replays the teacher's outcomes and counts its calls over restarts.

    Example:
        >>> respond = BudgetedRepair(student, cfg, teacher, FixConfig(), journal)  # doctest: +SKIP
        >>> respond.counters["repair/patched"]  # doctest: +SKIP
    """

    def __init__(
        self,
        answerer: Answerer,
        cfg: OptionConfig,
        teacher: Teacher,
        fix: FixConfig,
        journal: Journal | None = None,
    ) -> None:
        self._answerer = answerer
        self._cfg = cfg
        limits = fix.budget.model_copy(update={"max_calls_per_run": cfg.max_teacher_calls})
        blind = {
            "reference_answer": False,
            "leak": fix.leak.model_copy(update={"enabled": True}),
            "budget": limits,
            "visual": cfg.visual,
        }
        self._flow = RepairFlow(
            teacher=teacher,
            sampler=_NoSampler(),
            fix=fix.model_copy(update=blind),
            find=FindConfig(),
            journal=journal,
        )
        self.statuses: Counter[str] = Counter()
        """Questions of this call by status."""

    @property
    def counters(self) -> Counter[str]:
        """The teacher's: calls, tokens, failures, leaks."""
        return self._flow.counters

    async def __call__(self, asked: Sequence[Asked], generation: Generation) -> list[Answer]:
        """Votes, patches where they disagree, votes on the patched views.

        Raises:
            ModelGoneError: The teacher has never worked (the run would be a plain vote), or its journal
                can't be written.
        """
        first = await ask_votes(
            self._answerer, [(one.item, one.observation) for one in asked], generation, self._cfg
        )
        split = [k for k, ballot in enumerate(first) if not ballot.unanimous and not ballot.error]
        items = [
            (asked[k].item.sample, Rollout(asked[k].observation, first[k].winner.reply.text)) for k in split
        ]
        try:
            proposals = await self._flow.propose_batch(items)
        except (NoTeacherError, JournalError) as error:
            raise ModelGoneError(str(error)) from error
        patched = {split[at]: view for at, view in self._flow.patched_observations(items, proposals)}
        second = await ask_votes(
            self._answerer, [(asked[k].item, view) for k, view in patched.items()], generation, self._cfg
        )
        asked_for = dict(zip(split, proposals, strict=True))
        again = dict(zip(patched, second, strict=True))
        return [
            self._answer(ballot, asked_for.get(k), again.get(k), patched.get(k))
            for k, ballot in enumerate(first)
        ]

    def _answer(
        self,
        first: Ballot,
        proposal: Proposal | None,
        second: Ballot | None,
        view: Observation | None,
    ) -> Answer:
        repair = {"status": NOT_ASKED} if first.error else _repair_row(proposal, second, view)
        self.statuses[repair["status"]] += 1
        extra = {**first.row, "first_answer": first.winner.answer, "repair": repair}
        if second is None:
            return decided([first], extra)
        return decided([first, second], extra, view)


def _repair_row(proposal: Proposal | None, second: Ballot | None, view: Observation | None) -> dict[str, Any]:
    """What became of one question: status, patch, cost, the votes with the patch in view."""
    if proposal is None:
        return {"status": AGREED}
    repair, diagnosis = proposal.repair, proposal.repair.diagnosis
    cost = asdict(diagnosis.cost) if diagnosis is not None else {}
    for name in ("wall_s", "cached"):  # a row that is made again is the same row
        cost.pop(name, None)
    row: dict[str, Any] = {
        "status": REPAIRED if proposal.patch is not None else str(repair.status),
        "detail": repair.detail,
        "num_leaks": repair.num_leaks,
        "teacher": cost,
    }
    if proposal.patch is not None and second is not None and view is not None:
        row |= {"patch": asdict(proposal.patch), "patch_text": view.patch_text, **second.row}
    return row


class _NoSampler:
    """The flow's student: it is asked through its answerer, by vote."""

    async def sample(
        self, observations: Sequence[Observation], *, num: int, source: str = "policy"
    ) -> list[list[Rollout]]:
        raise RuntimeError(f"the flow has no sampler ({len(observations)} x {num} {source} rollouts)")
