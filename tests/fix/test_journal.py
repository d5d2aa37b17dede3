"""The journal: nothing is paid twice, nothing acknowledged is lost, transport faults are never kept."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sqlite3
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ffr.config import FindConfig, FixConfig
from ffr.fix import FailureKind, Journal, JournalError, RepairFlow, TeacherRequest
from ffr.fix.cache import diagnosis_from_json, diagnosis_key, diagnosis_to_json
from ffr.fix.loop import ChatTeacher
from ffr.types import (
    Diagnosis,
    ErrorType,
    EvidencePatch,
    Option,
    RepairStatus,
    SpatialRegion,
    TeacherCost,
    ToolCall,
)
from tests.fix.common import GOOD_PATCH, ScriptedTeacher, Student, failed_rollout, make_sample
from tests.fix.fake_server import FakeServer, Reply, say
from tests.fix.test_faults import PATCH, config

GOOD = Diagnosis(patch=GOOD_PATCH, cost=TeacherCost(num_calls=1))


def flow_of(who: object, path: Path, **fix: object) -> RepairFlow:
    return RepairFlow(
        teacher=who,  # type: ignore[arg-type]
        sampler=Student(),
        fix=FixConfig.model_validate(fix),
        find=FindConfig(),
        journal=Journal(path),
    )


def test_resumed_run_replays_and_pays_nothing(tmp_path: Path) -> None:
    sample = make_sample()
    items = [(sample, failed_rollout(sample, f"{i} <answer>A</answer>")) for i in range(6)]
    with FakeServer(lambda request, number: say(PATCH)) as server:
        cfg = config(server.base_url, max_tool_calls=0)
        runs = []
        for _ in range(2):  # a new flow, a new teacher, the same file: a resumed run
            journal = Journal(tmp_path / "run" / "journal.sqlite")
            flow = RepairFlow(
                teacher=ChatTeacher(cfg), sampler=Student(), fix=cfg, find=FindConfig(), journal=journal
            )
            runs.append(flow.repair_batch_blocking(items))
            journal.close()
        assert len(server.requests) == 6
    assert flow.counters["cached"] == 6 and flow.counters["teacher_calls"] == 0
    assert [r.status for r in runs[1]] == [RepairStatus.REPAIRED] * 6
    for first, second in zip(*runs, strict=True):
        assert first.diagnosis is not None and second.diagnosis is not None
        assert first.diagnosis.patch == second.diagnosis.patch
        assert second.diagnosis.cost.cached and not first.diagnosis.cost.cached


def test_equal_questions_at_the_same_time_pay_once(tmp_path: Path) -> None:
    teacher = ScriptedTeacher(GOOD)
    sample = make_sample()
    flow = flow_of(teacher, tmp_path / "j.sqlite")
    repairs = flow.repair_batch_blocking([(sample, failed_rollout(sample))] * 8)
    assert len(teacher.requests) == 1 and flow.counters["cached"] == 7
    assert len({id(r) for r in repairs}) == 8


def test_transport_faults_are_asked_again_and_bad_output_is_not(tmp_path: Path) -> None:
    sample = make_sample()
    items = [(sample, failed_rollout(sample))]
    for kind, calls in ((FailureKind.TIMEOUT, 2), (FailureKind.INVALID_OUTPUT, 1)):
        teacher = ScriptedTeacher(Diagnosis(patch=None, failure=kind))
        flow = flow_of(teacher, tmp_path / f"{kind}.sqlite")
        for _ in range(2):
            assert flow.repair_batch_blocking(items)[0].status == RepairStatus.TEACHER_FAILED
        assert len(teacher.requests) == calls
    with pytest.raises(ValueError, match="transport fault"):
        diagnosis_to_json(Diagnosis(patch=None, failure=FailureKind.CONNECTION))


def test_damaged_row_is_asked_again(tmp_path: Path) -> None:
    teacher, sample = ScriptedTeacher(GOOD), make_sample()
    flow = flow_of(teacher, tmp_path / "j.sqlite")
    flow.repair_batch_blocking([(sample, failed_rollout(sample))])
    with sqlite3.connect(tmp_path / "j.sqlite") as db:
        db.execute("UPDATE outcomes SET value = '{\"patch\": 3}'")
    assert flow.repair_batch_blocking([(sample, failed_rollout(sample))])[0].status == RepairStatus.REPAIRED
    assert flow.counters["journal_invalid"] == 1 and len(teacher.requests) == 2


def test_run_budget_outlives_the_process(tmp_path: Path) -> None:
    sample = make_sample()
    for start, want in (
        (0, [RepairStatus.REPAIRED] * 2),
        (2, [RepairStatus.REPAIRED, RepairStatus.OVER_BUDGET]),
    ):
        flow = flow_of(
            ScriptedTeacher(GOOD),
            tmp_path / "j.sqlite",
            budget={"max_calls_per_run": 3},
            teacher={"concurrency": 1},
        )
        items = [(sample, failed_rollout(sample, f"{start + i}")) for i in range(2)]
        assert sorted(r.status for r in flow.repair_batch_blocking(items)) == sorted(want)
    assert Journal(tmp_path / "j.sqlite").paid_calls == 3


def test_key_follows_content_and_not_the_path() -> None:
    sample = make_sample(Path("a.mp4"))
    rollout = failed_rollout(sample)
    base = TeacherRequest(sample, rollout, "B. blue")

    def key(request: TeacherRequest, *, name: str = "openai:m", attempt: int = 0, settings: str = "") -> str:
        return diagnosis_key(request, teacher_name=name, settings=settings, attempt=attempt)

    assert key(base) == key(replace(base, sample=replace(sample, video=Path("b.mp4"), uid="other/1")))
    dark = replace(rollout.observation.frames[0], sha256="00")
    changed = replace(rollout.observation, frames=(dark, *rollout.observation.frames[1:]))
    variants = {
        key(base),
        key(replace(base, reference_answer=None)),
        key(replace(base, reask="lexical")),
        key(base, attempt=1),
        key(base, name="openai:n"),
        key(base, settings="x"),
        key(replace(base, rollout=replace(rollout, text="other"))),
        key(replace(base, rollout=replace(rollout, observation=changed))),
        key(replace(base, sample=replace(sample, question="Why?"))),
        key(replace(base, sample=replace(sample, options=(Option("A", "red"),)))),
    }
    assert len(variants) == 10


numbers = st.integers(1, 99)
patches = st.builds(
    EvidencePatch,
    error_types=st.lists(st.sampled_from(list(ErrorType)), min_size=1, max_size=2).map(tuple),
    key_frames=st.lists(st.tuples(numbers, numbers), max_size=3).map(tuple),
    temporal_markers=st.lists(st.text(max_size=20), max_size=2).map(tuple),
    spatial_regions=st.lists(
        st.builds(SpatialRegion, st.tuples(numbers, numbers), st.tuples(*[st.floats(0, 1)] * 4)), max_size=2
    ).map(tuple),
    guidance=st.text(max_size=40),
)


@given(st.builds(Diagnosis, patch=st.none() | patches, detail=st.text(max_size=20)))
def test_diagnosis_round_trip_through_json(diagnosis: Diagnosis) -> None:
    call = ToolCall("get_frames", {"start": 1, "end": 2}, "2 images", True, 2)
    full = replace(diagnosis, tool_calls=(call,), cost=TeacherCost(num_calls=2, wall_s=0.5))
    back = diagnosis_from_json(json.loads(json.dumps(diagnosis_to_json(full))))
    assert back == replace(full, cost=replace(full.cost, cached=True))


WRITER = """
import sys
from pathlib import Path
from ffr.fix.cache import Journal
journal = Journal(Path(sys.argv[1]))
for i in range(100000):
    key = f"{sys.argv[2]}-{i}"
    journal.put(key, {"i": i, "pad": "x" * 500})
    journal.try_spend(None)
    print(key, flush=True)
"""


def test_kill_nine_loses_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    path = tmp_path / "j.sqlite"
    acknowledged: list[str] = []
    command = [sys.executable, "-c", WRITER, str(path)]
    writers = [subprocess.Popen([*command, f"w{w}"], stdout=subprocess.PIPE, text=True) for w in range(2)]
    for at, writer in enumerate(writers):
        assert writer.stdout is not None
        acknowledged += [writer.stdout.readline().strip() for _ in range(10 + 13 * at)]
    for writer in writers:
        os.kill(writer.pid, signal.SIGKILL)
        assert writer.stdout is not None
        lines = writer.stdout.read().split("\n")
        acknowledged += [line for line in lines[:-1] if line]
        writer.wait()
    journal = Journal(path)
    assert len(acknowledged) >= 33 and "" not in acknowledged
    assert [key for key in acknowledged if journal.get(key) is None] == []
    assert journal.paid_calls >= len(acknowledged)
    with sqlite3.connect(path) as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert db.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_first_writer_wins_and_limits_hold_over_connections(tmp_path: Path) -> None:
    one, two = Journal(tmp_path / "j.sqlite"), Journal(tmp_path / "j.sqlite")
    assert one.put("k", {"by": 1}) == {"by": 1}
    assert two.put("k", {"by": 2}) == {"by": 1} and two.get("k") == {"by": 1}
    assert [j.try_spend(3) for j in (one, two, one, two, one)] == [True, True, True, False, False]
    assert len(one) == 1 and one.paid_calls == 3
    one.close()
    assert one.get("k") == {"by": 1}


def test_foreign_files_are_refused_with_a_remedy(tmp_path: Path) -> None:
    garbage = tmp_path / "garbage.sqlite"
    garbage.write_bytes(b"not a database, by far" * 100)
    with pytest.raises(JournalError, match=r"garbage\.sqlite.*check that it is a journal"):
        Journal(garbage)
    newer = tmp_path / "newer.sqlite"
    with sqlite3.connect(newer) as db:
        db.execute("PRAGMA user_version = 99")
    with pytest.raises(JournalError, match="journal version 99"):
        Journal(newer)


def test_step_cut_by_the_deadline_is_not_journaled(tmp_path: Path) -> None:
    with FakeServer(lambda request, number: Reply(act="slow_headers")) as server:
        cfg = config(server.base_url, attempt_timeout_s=20.0, rollout_deadline_s=20.0, step_deadline_s=0.3)
        journal = Journal(tmp_path / "j.sqlite")
        flow = RepairFlow(
            teacher=ChatTeacher(cfg), sampler=Student(), fix=cfg, find=FindConfig(), journal=journal
        )
        sample = make_sample()
        result = asyncio.run(flow.repair_batch([(sample, failed_rollout(sample))]))[0]
    assert result.status == RepairStatus.TEACHER_FAILED and result.detail == "step_deadline"
    assert len(journal) == 0 and journal.paid_calls == 1
