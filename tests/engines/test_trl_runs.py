"""Whole runs: what a user gets, kill -9 and resume, two processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
import tiny
import torch
from safetensors.torch import load_file

from ffr.engines.trl import EngineConfigError, train
from ffr.engines.trl import flow as flow_module
from ffr.engines.trl.checkpoint import CheckpointError
from ffr.fix import NoTeacherError

SCRIPT = Path(__file__).with_name("run_tiny.py")
STEPS = 4
repair_module = import_module("ffr.fix.repair")  # the package exports a function of this name
RUN = {
    "train": {
        "algorithm": "ffr", "num_epochs": 2, "max_steps": STEPS, "save_every": 1, "micro_batch_size": 4,
    }
}  # fmt: skip


@pytest.fixture(autouse=True)
def coin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flow_module, "verify", tiny.coin)
    monkeypatch.setattr(repair_module, "verify", tiny.coin)


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("clips")
    return folder, tiny.samples(folder, 6)


@pytest.fixture(scope="module")
def finished(checkpoint: Path, clips, tmp_path_factory: pytest.TempPathFactory):
    """One uninterrupted run, shared by the tests that look at its outcome."""
    out = tmp_path_factory.mktemp("run")
    sink = tiny.Notes()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(flow_module, "verify", tiny.coin)
        patch.setattr(repair_module, "verify", tiny.coin)
        cfg = tiny.config(checkpoint, out, **RUN)
        result = train(cfg, clips[1], teacher=tiny.FakeTeacher(), sinks=[sink])
    return result, sink


def test_run_reports_every_step_and_exports_the_student(finished) -> None:
    from transformers import AutoModelForImageTextToText, AutoProcessor

    result, sink = finished
    assert result.steps == STEPS and sink.steps == [1, 2, 3, 4]
    assert sink.summary["steps"] == STEPS and dict(result.metrics) == sink.rows[-1]
    for row in sink.rows:
        assert row["find/first_pass_accuracy"] + row["fix/intervention_rate"] == pytest.approx(1.0)
        statuses = ("repaired", "still_wrong", "leaked", "teacher_failed", "over_budget", "skipped")
        assert sum(row[f"fix/{name}"] for name in statuses) == row["fix/intervention_rate"] * 8
        assert row["reason/final_accuracy"] == pytest.approx(
            row["find/first_pass_accuracy"] + row["fix/repaired"] / 8
        )
        assert 0 < row["tokens/completion"] <= 64 and row["train/grad_norm"] > 0
        assert set(row) >= {
            "find/format_rate", "fix/leak_rate", "fix/repair_rate", "reason/reward_mean",
            "reason/advantage_mean_repaired", "reason/zero_advantage_groups",
            "reason/repaired_negative_share", "train/loss", "train/kl", "train/learning_rate",
            "time/observe_s", "time/generate_s", "time/verify_s", "time/fix_s", "time/score_s",
            "time/update_s",
        }  # fmt: skip
    assert sink.rows[0]["train/kl"] == pytest.approx(0.0, abs=1e-6) and sink.rows[1]["train/kl"] > 0
    assert [trace.step for trace in sink.kept] == [1, 1, 2, 2, 3, 3, 4, 4]
    student = AutoModelForImageTextToText.from_pretrained(result.student_dir)
    AutoProcessor.from_pretrained(result.student_dir)
    assert sum(p.numel() for p in student.parameters()) > 1e5
    assert [p.name for p in sorted((result.output_dir / "checkpoints").iterdir())] == [
        "checkpoint-3",
        "checkpoint-4",
    ]


@pytest.mark.timeout(600)
def test_kill_9_and_resume_give_the_same_weights(finished, checkpoint: Path, clips, tmp_path: Path) -> None:
    command = [
        sys.executable,
        str(SCRIPT),
        str(checkpoint),
        str(clips[0]),
        str(tmp_path),
        json.dumps({"cfg": RUN}),
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("step 3"):  # its checkpoint is being written, or about to be
                os.kill(process.pid, signal.SIGKILL)
                break
    assert process.returncode == -signal.SIGKILL
    cfg = tiny.config(checkpoint, tmp_path, **RUN)
    newest = max((tmp_path / "checkpoints").glob("checkpoint-*/ffr_manifest.json")).parent
    if newest.name == "checkpoint-3":
        weights = newest / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-1])  # a truncated one must be passed over
    with pytest.raises(CheckpointError, match="go on with --resume"):
        train(cfg, clips[1], teacher=tiny.FakeTeacher())
    result = train(cfg, clips[1], teacher=tiny.FakeTeacher(), resume=True)
    assert result.resumed_from is not None and result.resumed_from.name == "checkpoint-2"
    assert result.steps == STEPS
    expected = load_file(finished[0].student_dir / "model.safetensors")
    actual = load_file(result.student_dir / "model.safetensors")
    assert expected.keys() == actual.keys()
    for name, value in expected.items():
        assert torch.equal(value, actual[name]), name


def test_undecodable_clips_are_left_out_and_listed(checkpoint: Path, clips, tmp_path: Path, caplog) -> None:
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no video at all")
    samples = [*clips[1][:2], tiny.sample(77, broken), tiny.sample(78, tmp_path / "absent.mp4")]
    sink = tiny.Notes()
    cfg = tiny.config(checkpoint, tmp_path / "run", train={"algorithm": "grpo", "max_steps": 1})
    result = train(cfg, samples, teacher=None, sinks=[sink])
    assert len(result.skipped) == 2 and result.skipped[0].startswith("t/77: ")
    assert "2 of 4 samples are left out" in caplog.text and "t/78: missing" in caplog.text
    assert sink.rows[0]["find/skipped_groups"] == 0
    with pytest.raises(EngineConfigError, match="no sample's media can be decoded"):
        train(
            tiny.config(checkpoint, tmp_path / "r2", train={"algorithm": "grpo"}), samples[2:], teacher=None
        )


def test_no_teacher_stops_the_run_unless_allowed(checkpoint: Path, clips, tmp_path: Path) -> None:
    cfg = tiny.config(checkpoint, tmp_path, train={"algorithm": "ffr", "max_steps": 1})
    with pytest.raises(NoTeacherError, match=r"allow_no_teacher"):
        train(cfg, clips[1], teacher=None)


def test_teacher_that_never_succeeds_stops_the_run(checkpoint: Path, clips, tmp_path: Path) -> None:
    cfg = tiny.config(
        checkpoint, tmp_path, train={"algorithm": "ffr", "max_steps": 3}, fix={"no_teacher_after": 2}
    )
    with pytest.raises(NoTeacherError):
        train(cfg, clips[1], teacher=tiny.FakeTeacher(dead=True))


def test_no_samples_is_an_error(checkpoint: Path, tmp_path: Path) -> None:
    cfg = tiny.config(checkpoint, tmp_path, train={"algorithm": "grpo"})
    with pytest.raises(EngineConfigError, match=r"data.sources"):
        train(cfg, [], teacher=None)
