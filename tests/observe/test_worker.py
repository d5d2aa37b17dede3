"""Decoding in a process that can be killed."""

import sys

import pytest

from ffr.config import ObserveConfig
from ffr.observe import DecodeLimits, MediaError, observe, worker
from tests.observe.clips import make_sample, write_clip

CFG = ObserveConfig(num_frames=4, max_frame_px=48 * 64, min_frame_px=1, size_factor_px=8)
ISOLATED = DecodeLimits(isolate=True)


def test_the_observation_is_the_same(tmp_path):
    sample = make_sample(write_clip(tmp_path / "a.mp4", 30), clip_s=(0.5, 2.0))
    assert observe(sample, CFG, limits=ISOLATED) == observe(sample, CFG)


def test_statuses_come_through(tmp_path):
    path = tmp_path / "a.mp4"
    with pytest.raises(MediaError) as caught:
        observe(make_sample(path), CFG, limits=ISOLATED)
    assert (caught.value.status, caught.value.path) == ("missing", path)
    path.write_text("no video")
    with pytest.raises(MediaError, match="FFmpeg can't open it") as caught:
        observe(make_sample(path), CFG, limits=ISOLATED)
    assert caught.value.status == "undecodable"


def test_a_hanging_decoder_is_killed(tmp_path):
    path = write_clip(tmp_path / "a.mp4", 5)
    with pytest.raises(MediaError, match=r"killed after 0\.01 s") as caught:
        observe(make_sample(path), CFG, limits=DecodeLimits(isolate=True, timeout_s=0.01))
    assert caught.value.status == "timeout"


@pytest.mark.parametrize(
    "code", ["import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "raise MemoryError"]
)
def test_a_crash_is_a_status(tmp_path, monkeypatch, code):
    path = write_clip(tmp_path / "a.mp4", 5)
    script = tmp_path / "python"
    script.write_text(f"#!/bin/sh\nexec {sys.executable} -c '{code}'\n")
    script.chmod(0o755)
    monkeypatch.setattr(worker.sys, "executable", str(script))
    with pytest.raises(MediaError, match="the decode process ended with") as caught:
        observe(make_sample(path), CFG, limits=ISOLATED)
    assert caught.value.status == "undecodable"
