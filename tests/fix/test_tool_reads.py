"""The tools look at the clip in a process of its own: what hangs or bombs it is an answer for the teacher."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from ffr.fix import diagnose
from ffr.fix.loop import ChatTeacher
from ffr.fix.tools import ToolBox, ToolResult
from ffr.observe import clip as observe_clip
from ffr.observe import pool
from ffr.observe.pool import DecodePool
from ffr.types import Diagnosis, Sample
from tests.fix.common import failed_rollout, make_observation, make_sample, write_clip
from tests.fix.fake_server import FakeServer, Reply, call_tool, say
from tests.fix.test_faults import PATCH, config

GET_FRAMES = ("get_frames", {"start": 3, "end": 4})


def look(sample: Sample, name: str, arguments: dict[str, Any]) -> ToolResult:
    box = ToolBox(sample, make_observation(sample), max_px=9_999, max_images=20, timeout_s=60.0)
    return asyncio.run(box.call(name, arguments))


def ask(sample: Sample, **teacher: object) -> tuple[Diagnosis, list[dict[str, Any]]]:
    """One look, then the patch."""

    def script(request: dict[str, Any], number: int) -> Reply:
        return call_tool(*GET_FRAMES) if number == 0 else say("Enough.") if number == 1 else say(PATCH)

    async def run(base_url: str) -> Diagnosis:
        who = ChatTeacher(config(base_url, **teacher))
        try:
            return await diagnose(sample, failed_rollout(sample), who)
        finally:
            await who.aclose()

    with FakeServer(script) as server:
        return asyncio.run(run(server.base_url)), server.requests


def child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str) -> DecodePool:
    """A pool whose processes run `code` once they have a job."""
    script, program = tmp_path / "child.py", tmp_path / "python"
    script.write_text(
        "import os, sys, time\nsys.stdout.write('ready\\n')\nsys.stdout.flush()\nsys.stdin.readline()\n"
        + code
    )
    program.write_text(f"#!/bin/sh\nexec {sys.executable} {script}\n")
    program.chmod(0o755)
    monkeypatch.setattr(pool.sys, "executable", str(program))
    made = DecodePool(size=1)
    monkeypatch.setattr(observe_clip, "POOL", made)
    return made


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("time.sleep(600)", "timeout"),
        ("os.kill(os.getpid(), 11)", "the decode process ended with -11"),
        ("sys.exit(3)", "the decode process ended with 3"),
    ],
    ids=["hangs", "crashes", "gives up"],
)
def test_a_decoder_that_fails_is_an_error_that_the_teacher_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, words: str
) -> None:
    made = child(tmp_path, monkeypatch, code)
    video = tmp_path / "the_answer_is_blue.mp4"
    video.write_bytes(b"x")
    diagnosis, requests = ask(make_sample(video), tool_timeout_s=0.5 if "sleep" in code else 60.0)
    made.close()
    assert diagnosis.ok, diagnosis.detail
    (call,) = diagnosis.tool_calls
    assert not call.ok and call.num_images == 0 and call.result.startswith("error: ") and words in call.result
    (told,) = [m["content"] for m in requests[-1]["messages"] if m["role"] == "tool"]
    assert told == call.result
    assert "the_answer_is_blue" not in json.dumps(requests)
    assert (made.num_started, made.num_killed) == (1, 1)


def test_a_bomb_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "big.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=8, options={"preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = 4096, 2176, "yuv420p"
        frame = av.VideoFrame.from_ndarray(np.zeros((2176, 4096, 3), np.uint8), format="rgb24")
        for packet in (*stream.encode(frame), *stream.encode(None)):
            container.mux(packet)
    result = look(make_sample(tmp_path / "big.mp4"), *GET_FRAMES)
    assert not result.call.ok and "too_big" in result.call.result and "4096x2176" in result.call.result
    assert str(tmp_path) not in result.call.result


def test_a_good_clip_is_read_outside_this_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sample = make_sample(write_clip(tmp_path / "glow.mp4"))
    made = DecodePool(size=1)
    monkeypatch.setattr(observe_clip, "POOL", made)
    monkeypatch.setattr(observe_clip, "index_video", None)  # this process has no way to read it
    try:
        result = look(sample, *GET_FRAMES)
        again = look(sample, "zoom_region", {"frame": 8, "box": [0.5, 0.0, 1.0, 1.0]})
    finally:
        made.close()
    assert result.call.ok and result.call.num_images == 2
    # Source frame i has 20 + 5 i on the left (common.write_clip); frames 3 and 4 are at 1.0 and 1.5 s.
    for image, index in zip(result.images, (8, 12), strict=True):
        assert abs(float(image.pixels[:, :40].mean()) - (20 + 5 * index)) < 4
    assert again.call.ok and made.num_started == 1


def test_a_clip_of_pictures_is_readable_by_every_tool(tmp_path: Path) -> None:
    folder = tmp_path / "clip"
    folder.mkdir()
    for at in range(9):  # two a second: picture k at k / 2 s, as the student's frames
        Image.fromarray(np.full((64, 96, 3), 20 * at, np.uint8)).save(folder / f"{at:05}.png")
    sample = make_sample(folder, meta={"folder_fps": 2})
    frames = look(sample, *GET_FRAMES)
    segment = look(sample, "get_segment", {"t0": 0.0, "t1": 2.0, "fps": 2})
    zoom = look(sample, "zoom_region", {"frame": 8, "box": [0.0, 0.0, 0.5, 0.5]})
    assert [call.call.ok for call in (frames, segment, zoom)] == [True] * 3, (frames, segment, zoom)
    assert [int(image.pixels.mean()) for image in frames.images] == [40, 60]
    assert [int(image.pixels.mean()) for image in segment.images] == [0, 20, 40, 60, 80]
    assert [int(image.pixels.mean()) for image in zoom.images] == [140]
    bounded = make_sample(folder, meta={"folder_fps": 2}, clip_s=(1.0, 2.0))
    outside = look(bounded, "get_segment", {"t0": 0.0, "t1": 2.0, "fps": 2})
    assert not outside.call.ok and "1.0 <= t0" in outside.call.result
    (folder / "00003.png").write_bytes(b"no picture")
    broken = look(sample, *GET_FRAMES)
    assert not broken.call.ok and "ask for other times" in broken.call.result
