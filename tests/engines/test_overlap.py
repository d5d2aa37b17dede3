"""Every rollout on its own: what it saves, on a clock that only waiting moves, and what stays the same."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import pytest
import tiny

from ffr.config import BudgetConfig, Config, FindConfig, FixConfig, LeakConfig, TeacherConfig
from ffr.engines.trl.overlap import Overlap
from ffr.find import SamplerError
from ffr.fix import Journal, NoTeacherError, RepairFlow
from ffr.fix.overlap import OverlapFlow
from ffr.types import Diagnosis, ErrorType, EvidencePatch, Observation, RepairStatus, Rollout, Verdict

PATCH = EvidencePatch((ErrorType.TEMPORAL,), ((1, 3),), guidance="Watch again.")
FIND = FindConfig(group_size=4)


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop whose clock jumps to the next timer instead of waiting for it."""

    def __init__(self) -> None:
        self.now = 0.0
        loop = self

        class Jump(selectors.DefaultSelector):
            def select(self, timeout: float | None = None):
                ready = super().select(0)
                assert ready or timeout is not None, "the loop waits for something that no timer brings"
                if not ready and timeout:
                    loop.now += timeout
                return ready

        super().__init__(Jump())

    def time(self) -> float:
        return self.now


@pytest.fixture(autouse=True)
def no_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    async def inline(work, /, *args, **kwargs):
        return work(*args, **kwargs)

    monkeypatch.setattr(asyncio, "to_thread", inline)


def timed(work) -> tuple[object, float]:
    """Result of a coroutine function, and the seconds that it would have taken."""
    loop = VirtualLoop()
    try:
        asyncio.set_event_loop(loop)
        return loop.run_until_complete(work()), loop.now
    finally:
        asyncio.set_event_loop(None)
        loop.close()


class Server:
    """A student behind a server: rollout g takes `first_s[g]` seconds, a second try `again_s`."""

    def __init__(self, first_s: Sequence[float], again_s: float = 1.0, log: list[str] | None = None) -> None:
        self.first_s, self.again_s = first_s, again_s
        self.log = [] if log is None else log
        self.busy = self.peak = 0
        self.calls: list[tuple[str, int]] = []

    async def sample_one(self, obs: Observation, *, source: str, stream: int) -> Rollout:
        self.calls.append((source, stream))
        self.busy += 1
        self.peak = max(self.peak, self.busy)
        try:
            await asyncio.sleep(self.first_s[stream] if source == "policy" else self.again_s)
        finally:
            self.busy -= 1
        self.log.append(f"{source} {obs.sample_uid} {stream}")
        answer = "B" if source == "repaired" else "AB"[stream % 2]
        words = f"<think>{source} {stream}</think><answer>{answer}</answer>"
        return Rollout(obs, words, (stream,), source=source)

    async def sample(self, observations, *, num: int, source: str = "policy") -> list[list[Rollout]]:
        """In step: the call ends with its slowest rollout."""
        streams = {obs.view_id: iter(range(99)) for obs in observations}
        rows = await asyncio.gather(
            *[
                self.sample_one(obs, source=source, stream=next(streams[obs.view_id]))
                for obs in observations
                for _ in range(num)
            ]
        )
        return [list(rows[at : at + num]) for at in range(0, len(rows), num)]


class SlowTeacher:
    """Answers after `seconds`; nothing for the uids in `dead_for`."""

    name = "slow"

    def __init__(self, seconds: float, *, log: list[str] | None = None, dead: bool = False) -> None:
        self.seconds, self.dead = seconds, dead
        self.log = [] if log is None else log
        self.calls = self.busy = self.peak = 0

    async def diagnose(self, request) -> Diagnosis:
        self.calls += 1
        self.busy += 1
        self.peak = max(self.peak, self.busy)
        try:
            await asyncio.sleep(self.seconds)
        finally:
            self.busy -= 1
        self.log.append(f"teacher {request.sample.uid} {request.rollout.token_ids[0]}")
        return Diagnosis(None, failure="transport") if self.dead else Diagnosis(PATCH)

    async def aclose(self) -> None:
        return None


def judge(sample, rollout) -> Verdict:
    answer = rollout.text[-len("A</answer>")]
    return Verdict(float(answer == "B"), answer == "B", answer, "letter")


def questions(num: int):
    samples = [tiny.sample(k) for k in range(num)]
    return [(s, tiny.view(k, uid=s.uid, prompt=s.question)) for k, s in enumerate(samples)]


def fix(**changes) -> FixConfig:
    teacher = {"concurrency": 64, **changes.pop("teacher", {})}
    return FixConfig(teacher=TeacherConfig(**teacher), leak=LeakConfig(enabled=False), **changes)


async def in_step(asked, server: Server, flow: RepairFlow, size: int):
    """The same work with borders: all first passes, all diagnoses, all second tries."""
    groups = await server.sample([obs for _, obs in asked], num=size)
    failed = [
        (k, g)
        for k, (sample, _) in enumerate(asked)
        for g, rollout in enumerate(groups[k])
        if not judge(sample, rollout).correct
    ]
    repairs = await flow.repair_batch([(asked[k][0], groups[k][g]) for k, g in failed])
    return groups, dict(zip(failed, repairs, strict=True))


def overlapped(asked, server, flow, size: int = 4):
    return Overlap(server, judge, flow, group_size=size).run(asked)


def test_teacher_hides_behind_other_rollouts() -> None:
    """Rollout 0 fails after 1 s and 2 after 2 s; 1 is right after 3 s and 3 after 10 s.

    In step: 10 s of generation, 6 s of teacher, 1 s of second tries: 17 s. Overlapped: the repairs end at
    1 + 6 + 1 = 8 s and 2 + 6 + 1 = 9 s, inside the 10 s of the slowest first pass.
    """
    first_s = (1.0, 3.0, 2.0, 10.0)
    asked = questions(2)

    def flow(kind, server):
        return kind(teacher=SlowTeacher(6.0), sampler=server, fix=fix(), find=FIND)

    stepped = Server(first_s)
    (rows, repairs), in_step_s = timed(lambda: in_step(asked, stepped, flow(RepairFlow, stepped), 4))
    alone = Server(first_s)
    groups, overlapped_s = timed(lambda: overlapped(asked, alone, flow(OverlapFlow, alone)))
    assert (in_step_s, overlapped_s) == (17.0, 10.0)
    for k, group in enumerate(groups):
        assert [r.text for r in group.first_G] == [r.text for r in rows[k]]
        for g, ours in enumerate(group.repairs_G):
            theirs = repairs.get((k, g))
            assert (ours is None) == (theirs is None)
            if ours is not None and theirs is not None:
                assert (ours.status, ours.diagnosis, ours.leak) == (
                    theirs.status,
                    theirs.diagnosis,
                    theirs.leak,
                )
                assert ours.rollout.text[-10:] == theirs.rollout.text[-10:]
                assert ours.rollout.observation.view_id == theirs.rollout.observation.view_id


def test_order_and_concurrency() -> None:
    log: list[str] = []
    server, teacher = Server((1.0, 2.0, 3.0, 20.0), log=log), SlowTeacher(4.0, log=log)
    flow = OverlapFlow(teacher=teacher, sampler=server, fix=fix(), find=FIND)
    told: list[int] = []
    timed(lambda: Overlap(server, judge, flow, group_size=4).run(questions(3), lambda: told.append(len(log))))
    assert (
        server.peak == 12 and teacher.peak == 6
    )  # all first passes at once; rollouts 0 and 2 of 3 questions
    at = {line: place for place, line in enumerate(log)}
    for uid in ("t/0", "t/1", "t/2"):
        repaired, slowest = at[f"repaired {uid} 0"], at[f"policy {uid} 3"]
        assert at[f"policy {uid} 0"] < at[f"teacher {uid} 0"] < repaired < slowest
    assert told == [len(log)]  # the last thing that happened was the last first pass
    assert sorted(stream for source, stream in server.calls if source == "repaired") == [0, 0, 0, 2, 2, 2]


def test_places_at_the_teacher_are_kept() -> None:
    server, teacher = Server((1.0,) * 8), SlowTeacher(1.0)
    flow = OverlapFlow(teacher=teacher, sampler=server, fix=fix(teacher={"concurrency": 2}), find=FIND)
    _, seconds = timed(lambda: overlapped(questions(1), server, flow, 8))
    assert teacher.peak == 2 and teacher.calls == 4
    assert seconds == 1.0 + 2 * 1.0 + 1.0  # four diagnoses two at a time, then the last second tries


@pytest.mark.parametrize(
    "budget", [{}, {"max_calls_per_run": 3}, {"max_calls_per_step": 2}, {"max_calls_per_group": 1}]
)
def test_counters_budget_and_journal_are_those_of_a_batch(tmp_path, budget: dict) -> None:
    seen = []
    for kind in (RepairFlow, OverlapFlow):
        server, teacher = Server((1.0, 1.0, 1.0, 1.0)), SlowTeacher(1.0)
        journal = Journal(tmp_path / f"{kind.__name__}.sqlite")
        settings = fix(budget=BudgetConfig(**budget))
        flow = kind(teacher=teacher, sampler=server, fix=settings, find=FIND, journal=journal)
        work = in_step if kind is RepairFlow else overlapped
        for _ in range(2):  # the second round is answered by the journal
            timed(partial(work, questions(3), server, flow, 4))
        seen.append((flow.counters, teacher.calls, len(journal)))
    assert seen[0] == seen[1] and seen[0][0]["cached"] > 0
    if budget:
        assert seen[0][0]["status/over_budget"] > 0


def test_shared_patches_follow_the_order_of_rollouts_not_of_arrival() -> None:
    counted = []
    for first_s in ((1.0, 1.0, 1.0, 1.0), (9.0, 1.0, 2.0, 1.0)):
        log: list[str] = []
        server, teacher = Server(first_s), SlowTeacher(1.0, log=log)
        flow = OverlapFlow(teacher=teacher, sampler=server, fix=fix(one_patch_per_answer=True), find=FIND)
        [group], _ = timed(partial(overlapped, questions(1), server, flow))
        assert log == ["teacher t/0 0"] and flow.counters["shared_patches"] == 1
        counted.append([repair and repair.status for repair in group.repairs_G])
    assert counted[0] == counted[1] == [RepairStatus.REPAIRED, None, RepairStatus.REPAIRED, None]


def test_deadline_of_the_step_runs_from_the_last_first_pass() -> None:
    """10 s of deadline: rollout 0 fails at 1 s and has until 22 + 10, rollout 2 fails last, at 22 s."""
    server, teacher = Server((1.0, 1.0, 22.0, 1.0)), SlowTeacher(15.0)
    limits = {"step_deadline_s": 10.0, "rollout_deadline_s": 100.0}
    flow = OverlapFlow(teacher=teacher, sampler=server, fix=fix(teacher=limits), find=FIND)
    [group], seconds = timed(lambda: overlapped(questions(1), server, flow))
    assert group.repairs_G[0].status is RepairStatus.REPAIRED  # 1 + 15 + 1 = 17 s
    late = group.repairs_G[2]
    assert (late.status, late.diagnosis.failure) == (RepairStatus.TEACHER_FAILED, "step_deadline")
    assert seconds == 32.0 and flow.counters["failure/step_deadline"] == 1 and teacher.busy == 0


class Deaf(SlowTeacher):
    """Does not let go when it is told to."""

    async def diagnose(self, request) -> Diagnosis:
        self.calls += 1
        until = asyncio.get_running_loop().time() + self.seconds
        while (left := until - asyncio.get_running_loop().time()) > 0:
            try:
                await asyncio.sleep(left)
            except asyncio.CancelledError:
                continue
        return Diagnosis(PATCH)


def test_teacher_that_cannot_be_cancelled_is_left_behind() -> None:
    server, teacher = Server((1.0,) * 4), Deaf(1000.0)
    limits = {"step_deadline_s": 10.0, "rollout_deadline_s": 5000.0}
    flow = OverlapFlow(teacher=teacher, sampler=server, fix=fix(teacher=limits), find=FIND)

    async def once():
        groups = await overlapped(questions(1), server, flow)
        return groups, asyncio.get_running_loop().time()

    (([group], seconds), _) = timed(once)
    assert seconds <= 1.0 + 10.0 + 2 * 2.0  # the grace for those that were asked, and once more at the end
    assert [r and r.status for r in group.repairs_G] == [RepairStatus.TEACHER_FAILED, None] * 2


class Breaks(Server):
    async def sample_one(self, obs: Observation, *, source: str, stream: int) -> Rollout:
        rollout = await super().sample_one(obs, source=source, stream=stream)
        if source == "repaired":
            raise SamplerError("the server went away")
        return rollout


def test_sampler_that_breaks_ends_the_round_and_nothing_runs_on() -> None:
    server, teacher = Breaks((1.0, 1.0, 2.0, 500.0)), SlowTeacher(3.0)
    flow = OverlapFlow(teacher=teacher, sampler=server, fix=fix(), find=FIND)

    async def work():
        with pytest.raises(SamplerError, match="the server went away"):
            await overlapped(questions(2), server, flow)
        left = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        assert not left and server.busy == 0 and teacher.busy == 0

    _, seconds = timed(work)
    assert seconds == 5.0  # 1 + 3 + 1: not the 500 s of the slowest rollout
    good = Server((1.0,) * 4)
    [group], _ = timed(lambda: overlapped(questions(1), good, flow))  # the flow can go on
    assert group.repairs_G[0].status is RepairStatus.REPAIRED


def test_cancellation_from_outside_lets_go_of_everything() -> None:
    server, teacher = Server((1.0, 1.0, 2.0, 50.0)), SlowTeacher(30.0)
    flow = OverlapFlow(teacher=teacher, sampler=server, fix=fix(), find=FIND)

    async def work():
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(5.0):
                await overlapped(questions(2), server, flow)
        assert len(asyncio.all_tasks()) == 1 and server.busy == teacher.busy == 0

    assert timed(work)[1] == 5.0


def test_teacher_that_never_worked_stops_the_run_as_in_a_batch() -> None:
    server = Server((1.0,) * 4)
    settings = replace_no_teacher_after(fix(), 2)
    flow = OverlapFlow(teacher=SlowTeacher(1.0, dead=True), sampler=server, fix=settings, find=FIND)
    with pytest.raises(NoTeacherError, match="gave no patch in its first 2 calls"):
        timed(lambda: overlapped(questions(1), server, flow))


def replace_no_teacher_after(settings: FixConfig, num: int) -> FixConfig:
    return settings.model_copy(update={"no_teacher_after": num})


def test_nothing_is_repaired_without_a_flow_and_views_are_checked() -> None:
    server = Server((1.0,) * 4)
    [group], seconds = timed(lambda: overlapped(questions(1), server, None))
    assert group.repairs_G == [None] * 4 and seconds == 1.0
    assert timed(lambda: overlapped([], server, None))[0] == []

    class Other(Server):
        async def sample_one(self, obs: Observation, *, source: str, stream: int) -> Rollout:
            return await super().sample_one(replace(obs, view_id="another"), source=source, stream=stream)

    with pytest.raises(SamplerError, match="was sampled in view another"):
        timed(lambda: overlapped(questions(1), Other((1.0,) * 4), None))


def test_question_that_comes_up_twice_has_streams_of_its_own() -> None:
    server = Server((1.0,) * 8)
    [one] = questions(1)
    timed(lambda: overlapped([one, one], server, None))
    assert sorted(server.calls) == [("policy", k) for k in range(8)]


def test_flow_refuses_a_batch_flow_for_overlap(tmp_path) -> None:
    from ffr.engines.trl.flow import GroupFlow

    server = Server((1.0,))
    flow = RepairFlow(teacher=SlowTeacher(1.0), sampler=server, fix=fix(), find=FIND)
    with pytest.raises(TypeError, match="OverlapFlow"):
        GroupFlow([], Config(), sampler=server, algorithm=None, repairs=flow, overlap=True)  # type: ignore[arg-type]
