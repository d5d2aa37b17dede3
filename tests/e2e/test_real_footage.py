"""The whole job on a camera's clips: questions from tracks, the oracle, two optimiser steps."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

from tests.assets import require_asset

torch = pytest.importorskip("torch")

REPO = Path(__file__).parents[2]
TRACKS = REPO.parent / "shared" / "data" / "pets09" / "tracks.txt"


def load(path: Path):
    """A file that is no module of a package, by its path."""
    name = path.stem
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None and spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


@pytest.mark.skipif(not TRACKS.is_file(), reason="the PETS tracks are not beside the repository")
def test_two_steps_on_real_footage(tmp_path):
    torch.set_num_threads(1)
    video = require_asset("vtest.avi")
    pets = load(REPO / "scripts" / "make_pets_questions.py")
    tiny = load(REPO / "tests" / "engines" / "tiny.py")
    arguments = ["--video", str(video), "--tracks", str(TRACKS), "--out", str(tmp_path / "pets")]
    assert pets.main([*arguments, "--max-clips", "2", "--height", "144"]) == 0

    from ffr.config import DataConfig, SourceConfig
    from ffr.data import load_data
    from ffr.engines.trl import train
    from ffr.fix import OracleTeacher
    from ffr.types import ErrorType

    source = SourceConfig(path=tmp_path / "pets" / "pets.json", root=tmp_path / "pets", name="pets")
    samples = load_data(DataConfig(sources=(source,), num_samples=None)).samples
    assert len(samples) >= 2 and all(sample.evidence for sample in samples)
    sink = tiny.Notes()
    cfg = tiny.config(
        tiny.build(tmp_path / "student"),
        tmp_path / "run",
        find={"group_size": 2},
        fix={"teacher": {"type": "oracle"}},
        train={"algorithm": "ffr", "max_steps": 2, "questions_per_step": 1, "micro_batch_size": 2},
    )
    result = train(cfg, samples, teacher=OracleTeacher(cfg.fix), sinks=[sink])

    assert result.steps == 2 and sink.steps == [1, 2]
    assert all(row["train/loss"] == row["train/loss"] for row in sink.rows)
    repairs = [repair for trace in sink.kept for repair in trace.group.repairs_G if repair is not None]
    assert repairs, "a random student fails, so the oracle was asked"
    by_uid = {sample.uid: sample for sample in samples}
    shown = [repair for repair in repairs if repair.rollout is not None]
    assert shown and all(repair.diagnosis is not None and repair.diagnosis.ok for repair in repairs)
    for repair in shown:
        obs = repair.rollout.observation
        sample = by_uid[obs.sample_uid]
        assert len(obs.frames) == 4 and obs.patched
        assert repair.diagnosis.error_types == (ErrorType(sample.scenario),)
        first, last = repair.diagnosis.patch.key_frames[0]
        middle = sum(sample.evidence.spans_s[0]) / 2
        step = obs.frames[1].timestamp_s - obs.frames[0].timestamp_s
        assert obs.frames[first - 1].timestamp_s - step <= middle <= obs.frames[last - 1].timestamp_s + step
        assert f"Look again at frames {first}-{last}." in obs.patch_text
        assert sample.answer_text not in obs.patch_text
