"""Fifty training steps against a teacher of which a third of the replies are faults: nothing is lost."""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from ffr.config import Config
from ffr.data import read_video_r1
from ffr.data.microworld import write_microworld
from ffr.fix import OracleTeacher, PatchReply, TeacherRequest
from ffr.fix.loop import ChatTeacher
from ffr.fix.teacher import reference_text
from ffr.observe import observe
from ffr.types import RepairStatus, Rollout, Sample, Trace
from tests.fix.fake_server import FakeServer, Reply, Script, say
from tests.fix.test_conversation import payload

torch = pytest.importorskip("torch")

STEPS, GROUP = 50, 4
FAULT_SHARE = 0.3
FAULTS = {
    "500": Reply(b"{}", 500),
    "reset": Reply(act="reset"),
    "slow": Reply(act="slow_headers"),
    "truncated": Reply(b'{"choices": [{"mess', 200),
}


class Notes:
    """A sink that keeps everything."""

    def __init__(self) -> None:
        self.rows: list[Mapping[str, float]] = []
        self.kept: list[Trace] = []

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        self.rows.append(dict(values))

    def traces(self, step: int, traces: Sequence[Trace]) -> None:
        self.kept += traces

    def finish(self, summary: Mapping[str, float]) -> None:
        assert summary["steps"] == STEPS


def key_of(question: str, options: Sequence[str], gold: str) -> str:
    return json.dumps([question, list(options), gold])


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Sample], dict[str, str]]:
    """Samples whose question and options are unique, and the oracle's patch for each of them."""
    made = write_microworld(tmp_path_factory.mktemp("world"), num_train=24, num_test=0)
    samples = read_video_r1(made.train, made.root, name="microworld").samples
    keys = [
        key_of(s.question, [f"{o.label}. {o.text}" for o in s.options], reference_text(s)) for s in samples
    ]
    times = Counter(keys)
    oracle, cfg = OracleTeacher(), settings("http://127.0.0.1:1/v1", Path("unused"))
    patches: dict[str, str] = {}
    unique = [(s, k) for s, k in zip(samples, keys, strict=True) if times[k] == 1]
    for sample, key in unique:
        rollout = Rollout(observe(sample, cfg.observe), "")
        diagnosis = asyncio.run(oracle.diagnose(TeacherRequest(sample, rollout, None)))
        assert diagnosis.patch is not None
        patches[key] = PatchReply.from_patch(diagnosis.patch).model_dump_json()
    assert len(unique) >= 15
    return [sample for sample, _ in unique], patches


def settings(base_url: str, output: Path, *, attempt_timeout_s: float = 20.0) -> Config:
    """One question of four rollouts a step, the demo's student, a teacher over HTTP without tools."""
    teacher = {
        "base_url": base_url, "model": "fake-vl", "profile": "vllm", "max_tool_calls": 0, "max_retries": 1,
        "attempt_timeout_s": attempt_timeout_s, "breaker_failures": 1_000,
    }  # fmt: skip
    return Config.model_validate(
        {
            "model": {"path": "micro-student", "dtype": "float32", "gradient_checkpointing": False},
            "observe": {"max_frame_px": 4704, "min_frame_px": 784, "prompt": "brief"},
            "find": {"group_size": GROUP, "max_completion_tokens": 48, "max_prompt_tokens": 512},
            "fix": {"teacher": teacher},
            "reason": {"kl_beta": 0.0},
            "train": {
                "cpu": True, "learning_rate": 1e-6, "max_steps": STEPS, "num_epochs": 8, "save_every": 1_000,
                "questions_per_step": 1, "micro_batch_size": GROUP,
            },
            "report": {"output_dir": str(output), "display": "none"},
        }
    )  # fmt: skip


def train_against(script: Script, samples: list[Sample], output: Path, **changes: Any) -> Notes:
    """One run of `STEPS` steps with the teacher that `script` plays."""
    from ffr.engines.trl import train

    torch.set_num_threads(1)
    notes = Notes()
    with FakeServer(script) as server:
        cfg = settings(server.base_url, output, **changes)
        result = train(cfg, samples, teacher=ChatTeacher(cfg.fix), sinks=[notes])
    assert result.steps == STEPS
    return notes


@pytest.mark.timeout(900)  # two whole runs; a busy machine may take its time
def test_thirty_percent_faults_cost_repairs_and_nothing_else(
    world: tuple[list[Sample], dict[str, str]], tmp_path: Path
) -> None:
    samples, patches = world
    draw, played = random.Random(7), Counter[str]()

    def honest(request: dict[str, Any], number: int) -> Reply:
        data = payload(request)
        return say(patches[key_of(data["question"], data["options"], data["reference_answer"])])

    def faulty(request: dict[str, Any], number: int) -> Reply:
        name = draw.choice(list(FAULTS)) if draw.random() < FAULT_SHARE else "honest"
        played[name] += 1
        return FAULTS[name] if name != "honest" else honest(request, number)

    calm = train_against(honest, samples, tmp_path / "calm")
    rough = train_against(faulty, samples, tmp_path / "rough", attempt_timeout_s=1.0)

    assert set(FAULTS) <= set(played), played
    assert 0.15 <= 1 - played["honest"] / played.total() <= 0.45
    for notes in (calm, rough):
        assert len(notes.rows) == STEPS
        assert all(row["train/loss"] == row["train/loss"] for row in notes.rows)
        trained = [rollout for trace in notes.kept for rollout in trace.group.chosen_G]
        assert len(trained) == STEPS * GROUP
        assert all(rollout.num_tokens > 0 for rollout in trained)
    statuses = {name: status_counts(notes) for name, notes in (("calm", calm), ("rough", rough))}
    assert statuses["calm"][RepairStatus.TEACHER_FAILED] == 0, statuses
    assert statuses["rough"][RepairStatus.TEACHER_FAILED] > 0, statuses
    assert statuses["rough"][RepairStatus.REPAIRED] > 0, statuses
    kinds = {
        repair.detail
        for trace in rough.kept
        for repair in trace.group.repairs_G
        if repair is not None and repair.status is RepairStatus.TEACHER_FAILED
    }
    assert kinds <= {"server_error", "connection", "timeout", "invalid_response"}
    assert "invalid_response" in kinds  # never tried again, so it always shows
    reported = sum(row["fix/teacher_failed"] for row in rough.rows)
    assert reported == statuses["rough"][RepairStatus.TEACHER_FAILED]


def status_counts(notes: Notes) -> Counter[RepairStatus]:
    """How the failed rollouts of a run ended; every failed first pass has exactly one status."""
    counts: Counter[RepairStatus] = Counter()
    for trace in notes.kept:
        for verdict, repair in zip(trace.group.first_verdicts_G, trace.group.repairs_G, strict=True):
            assert (repair is None) == verdict.correct
            if repair is not None:
                counts[repair.status] += 1
    return counts
