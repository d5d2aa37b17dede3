"""The flow: one repair and one status per failed rollout, whatever the teacher does."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from dataclasses import replace

import pytest

from ffr.config import BudgetConfig, FindConfig, FixConfig, LeakConfig, TeacherConfig
from ffr.fix import Budget, FailureKind, RepairFlow, TeacherRequest, repair, run_blocking
from ffr.types import Diagnosis, Observation, Repair, RepairStatus, Rollout, TeacherCost
from tests.fix.common import (
    GOOD_PATCH,
    LEAKING_PATCH,
    ScriptedTeacher,
    Student,
    failed_rollout,
    make_sample,
)

GOOD = Diagnosis(patch=GOOD_PATCH, cost=TeacherCost(num_calls=1, prompt_tokens=7))
LEAK = Diagnosis(patch=LEAKING_PATCH, cost=TeacherCost(num_calls=1, prompt_tokens=5))
DOWN = Diagnosis(patch=None, failure=FailureKind.CONNECTION, detail="refused")


def make_flow(who: object, student: object | None = None, **fix: object) -> RepairFlow:
    return RepairFlow(
        teacher=who,  # type: ignore[arg-type]
        sampler=student or Student(),  # type: ignore[arg-type]
        fix=FixConfig.model_validate(fix),
        find=FindConfig(),
    )


def run(flow: RepairFlow, count: int = 1, texts: Sequence[str] = ()) -> list[Repair]:
    sample = make_sample()
    said = list(texts) or [f"try {i} <answer>A</answer>" for i in range(count)]
    return flow.repair_batch_blocking([(sample, failed_rollout(sample, text)) for text in said])


def test_repaired_and_still_wrong_carry_the_second_rollout() -> None:
    for answer, status in (("B", RepairStatus.REPAIRED), ("C", RepairStatus.STILL_WRONG)):
        student = Student(answer)
        flow = make_flow(ScriptedTeacher(GOOD), student)
        result = run(flow)[0]
        assert result.status == status
        assert result.rollout is not None and result.rollout.observation.patched
        assert result.rollout.source == "repaired"
        assert result.verdict is not None and result.verdict.correct == (answer == "B")
        assert flow.counters[f"status/{status}"] == 1
        assert result.rollout.observation.view_id != failed_rollout(make_sample()).observation.view_id


def test_one_sampler_call_for_the_whole_batch_in_order() -> None:
    student = Student()
    teacher = ScriptedTeacher(GOOD, DOWN, GOOD, DOWN, GOOD)
    flow = make_flow(teacher, student, teacher={"concurrency": 1})
    statuses = [r.status for r in run(flow, 5)]
    assert student.calls == [(3, "repaired")]
    failed = [RepairStatus.TEACHER_FAILED if i in (1, 3) else RepairStatus.REPAIRED for i in range(5)]
    assert statuses == failed
    assert flow.counters["failure/connection"] == 2


def test_nothing_ready_asks_only_a_lock_step_sampler() -> None:
    plain = Student()
    run(make_flow(ScriptedTeacher(DOWN), plain), 2)
    assert plain.calls == []
    lock_step = Student()
    lock_step.lock_step = True  # type: ignore[attr-defined]
    run(make_flow(ScriptedTeacher(DOWN), lock_step), 2)
    assert lock_step.calls == [(0, "repaired")]


def test_leaking_twice_is_dropped_and_counted() -> None:
    teacher, student = ScriptedTeacher(LEAK), Student()
    flow = make_flow(teacher, student)
    result = run(flow)[0]
    assert result.status == RepairStatus.LEAKED and result.num_leaks == 2
    assert result.leak is not None and result.leak.leaked
    assert student.seen == []
    assert flow.counters["leaks"] == 2 and flow.counters["reasks"] == 1
    assert [bool(request.reask) for request in teacher.requests] == [False, True]
    layers = {finding.layer for finding in result.leak.findings if finding.leaked}
    assert set(teacher.requests[1].reask.split(", ")) == layers
    assert result.diagnosis is not None and result.diagnosis.cost.prompt_tokens == 10


def test_second_patch_may_be_clean_and_a_failed_second_ask_is_a_teacher_failure() -> None:
    result = run(make_flow(ScriptedTeacher(LEAK, GOOD)))[0]
    assert result.status == RepairStatus.REPAIRED and result.num_leaks == 1
    result = run(make_flow(ScriptedTeacher(LEAK, DOWN)))[0]
    assert result.status == RepairStatus.TEACHER_FAILED and result.num_leaks == 1


def test_gate_off_shows_everything_and_a_broken_gate_shows_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    off = make_flow(ScriptedTeacher(LEAK), leak=LeakConfig(enabled=False).model_dump())
    assert run(off)[0].status == RepairStatus.REPAIRED

    def broken(*args: object) -> None:
        raise ZeroDivisionError

    # `ffr.fix.repair` as an attribute is the door of that name, so the module is taken by its full name.
    monkeypatch.setattr(sys.modules["ffr.fix.repair"], "check_leak", broken)
    flow = make_flow(ScriptedTeacher(GOOD))
    assert run(flow)[0].status == RepairStatus.LEAKED
    assert flow.counters["leak/gate_error"] == 2


def test_teacher_that_raises_costs_its_rollout_only() -> None:
    flow = make_flow(ScriptedTeacher(RuntimeError("boom"), GOOD), teacher={"concurrency": 1})
    statuses = [r.status for r in run(flow, 2)]
    assert statuses == [RepairStatus.TEACHER_FAILED, RepairStatus.REPAIRED]
    assert flow.counters["failure/internal"] == 1


class Sleeper(ScriptedTeacher):
    """Never answers, and does not even let go when cancelled."""

    async def diagnose(self, request: TeacherRequest) -> Diagnosis:
        self.requests.append(request)
        for _ in range(100):
            try:
                await asyncio.sleep(0.5)
            except asyncio.CancelledError:
                self.cancelled = True
        return GOOD


def test_teacher_that_never_lets_go_does_not_hang_the_step() -> None:
    limits = TeacherConfig(step_deadline_s=0.3).model_dump()
    flow = make_flow(Sleeper(), teacher=limits)
    assert [r.status for r in run(flow, 2)] == [RepairStatus.TEACHER_FAILED] * 2
    assert flow.counters["failure/step_deadline"] == 2


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        ({"max_calls_per_run": 3}, [3, 0]),
        ({"max_calls_per_step": 2}, [2, 2]),
        ({"max_calls_per_group": 1}, [1, 1]),
    ],
)
def test_budgets(limits: dict[str, int], expected: list[int]) -> None:
    flow = make_flow(ScriptedTeacher(GOOD), budget=BudgetConfig.model_validate(limits).model_dump())
    for want in expected:
        statuses = [r.status for r in run(flow, 4)]
        assert statuses.count(RepairStatus.REPAIRED) == want
        assert statuses.count(RepairStatus.OVER_BUDGET) == 4 - want
    name = next(iter(limits)).removeprefix("max_calls_per_")
    assert flow.counters[f"over_budget/{name}"] == 8 - sum(expected)


def test_budget_spent_between_leak_and_reask_leaves_leaked() -> None:
    flow = make_flow(ScriptedTeacher(LEAK), budget={"max_calls_per_run": 1})
    result = run(flow)[0]
    assert result.status == RepairStatus.LEAKED and result.num_leaks == 1
    assert result.detail == "run budget spent" and result.diagnosis is not None


def test_budget_names_the_limit() -> None:
    budget = Budget(BudgetConfig(max_calls_per_run=3, max_calls_per_step=2, max_calls_per_group=1))
    assert [budget.take(uid) for uid in ("a", "a", "b", "c")] == ["", "group", "", "step"]
    budget.begin_step()
    assert [budget.take(uid) for uid in ("a", "b")] == ["", "run"]


def test_one_patch_per_answer_shares_the_call() -> None:
    teacher, student = ScriptedTeacher(GOOD), Student()
    flow = make_flow(teacher, student, one_patch_per_answer=True)
    said = ["x <answer>A</answer>", "y <answer>A</answer>", "z <answer>C</answer>", "nothing"]
    repairs = run(flow, texts=said)
    assert len(teacher.requests) == 3 and flow.counters["shared_patches"] == 1
    assert [r.status for r in repairs] == [RepairStatus.REPAIRED] * 4
    assert repairs[1].diagnosis is not None and repairs[1].diagnosis.cost == TeacherCost(cached=True)
    assert student.calls == [(4, "repaired")]


def test_wrong_number_of_rollouts_is_the_samplers_error() -> None:
    class Lazy(Student):
        async def sample(
            self, observations: Sequence[Observation], *, num: int, source: str = "policy"
        ) -> list[list[Rollout]]:
            return []

    with pytest.raises(ValueError, match="asked for 1 of each of 1"):
        run(make_flow(ScriptedTeacher(GOOD), Lazy()))


def test_repair_door_and_gold_switch() -> None:
    teacher = ScriptedTeacher(GOOD)
    sample = make_sample()
    for allowed, gold in ((True, "B. blue"), (False, None)):
        fix = FixConfig(reference_answer=allowed)
        result = asyncio.run(
            repair(sample, failed_rollout(sample), sampler=Student(), teacher=teacher, fix=fix)
        )
        assert result.status == RepairStatus.REPAIRED
        assert teacher.requests[-1].reference_answer == gold


def test_every_status_is_counted_once() -> None:
    script = [GOOD, DOWN, LEAK, LEAK, replace(GOOD)]
    flow = make_flow(ScriptedTeacher(*script), teacher={"concurrency": 1}, budget={"max_calls_per_run": 6})
    repairs = run(flow, 8)
    counted = {k.removeprefix("status/"): v for k, v in flow.counters.items() if k.startswith("status/")}
    assert sum(counted.values()) == len(repairs) == 8
    for status, count in counted.items():
        assert [str(r.status) for r in repairs].count(status) == count


def test_run_blocking_returns_raises_and_times_out() -> None:
    async def value() -> int:
        return 7

    async def fails() -> None:
        raise KeyError("x")

    assert run_blocking(value()) == 7
    with pytest.raises(KeyError):
        run_blocking(fails())
    with pytest.raises(TimeoutError, match=r"within 0\.05 s"):
        run_blocking(asyncio.sleep(30), 0.05)

    async def nested() -> None:
        run_blocking(value(), 1.0)

    with pytest.raises(RuntimeError, match="use await"):
        run_blocking(nested(), 20.0)
