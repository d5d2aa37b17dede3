"""`train.algorithm = "sft"` on a data set of written traces."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import tiny

from ffr.engines.traces import sft_on_samples, trace_of
from ffr.engines.trl import EngineConfigError


def taught(folder: Path, num: int):
    return [
        replace(sample, meta={"process": f"<think>clip {k}</think>"})
        for k, sample in enumerate(tiny.samples(folder, num))
    ]


def config(checkpoint: Path, out: Path, **train):
    return tiny.config(
        checkpoint, out, train={"algorithm": "sft", "questions_per_step": 2, "micro_batch_size": 2, **train}
    )


def test_the_trace_is_the_thought_and_the_answer(tmp_path: Path) -> None:
    sample = taught(tmp_path, 1)[0]
    assert trace_of(sample) == f"<think>clip 0</think>\n<answer>{sample.answer}</answer>"
    assert trace_of(replace(sample, meta={})) is None
    assert trace_of(replace(sample, meta={"process": " "})) is None


def test_rows_without_trace_and_broken_clips_are_named(checkpoint: Path, tmp_path: Path) -> None:
    samples = taught(tmp_path, 4)
    samples[1] = replace(samples[1], meta={})
    samples[2].video.write_bytes(b"no video")
    sink = tiny.Notes()
    result = sft_on_samples(config(checkpoint, tmp_path / "run", num_epochs=2), samples, sinks=[sink])
    assert result.steps == 3
    assert sink.steps == [1, 2, 3]
    assert {line.split(":")[0] for line in result.skipped} == {samples[1].uid, samples[2].uid}
    assert (result.student_dir / "config.json").exists()


def test_a_data_set_without_traces_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(EngineConfigError, match="none of 2 has one"):
        sft_on_samples(config(checkpoint, tmp_path / "run"), tiny.samples(tmp_path, 2))
