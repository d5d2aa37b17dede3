"""Reads of single frames in processes that can be killed, and are kept when they behave."""

import os
import signal
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ffr.observe import DecodeLimits, MediaError, pool, read_frames_at
from ffr.observe.pool import DecodePool
from tests.observe.clips import write_clip

LIMITS = DecodeLimits(isolate=True, timeout_s=60.0)


def read(workers, path, times_s, *, limits=LIMITS, max_px=64 * 48, folder_fps=None, clip_s=None):
    return workers.read(
        path, times_s, max_px=max_px, size_factor_px=None, clip_s=clip_s, folder_fps=folder_fps, limits=limits
    )


@pytest.fixture
def workers():
    made = DecodePool(size=1)
    yield made
    made.close()


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return write_clip(tmp_path_factory.mktemp("clips") / "a.mp4", 30)


def test_the_frames_are_those_of_this_process_and_one_child_reads_them_all(workers, clip):
    times_s = [0.9, 0.0, 0.9, 99.0]
    for _ in range(2):
        assert read(workers, clip, times_s) == read_frames_at(clip, times_s, max_px=64 * 48)
    assert read(workers, clip, [0.3], max_px=600)[0].pixels.size <= 600 * 3
    bounded = read(workers, clip, [0.0, 9.0], clip_s=(0.2, 0.5))
    assert bounded == read_frames_at(clip, [0.0, 9.0], max_px=64 * 48, clip_s=(0.2, 0.5))
    with pytest.raises(MediaError) as caught:
        read(workers, clip.with_name("none.mp4"), [0.0])
    assert (caught.value.status, caught.value.path.name) == ("missing", "none.mp4")
    assert read(workers, clip, [0.9]) == read_frames_at(clip, [0.9], max_px=64 * 48)
    assert (workers.num_started, workers.num_killed) == (1, 0)


def test_the_door_goes_through_the_pool(clip):
    before = pool.POOL.num_started
    isolated = read_frames_at(clip, [0.4], max_px=64 * 48, limits=LIMITS)
    assert isolated == read_frames_at(clip, [0.4], max_px=64 * 48)
    assert pool.POOL.num_started in (before, before + 1) and pool.POOL.num_started > 0


def test_a_child_that_hangs_is_killed_in_time_and_replaced(workers, clip):
    read(workers, clip, [0.0])
    pid = workers._idle[0]._process.pid
    os.kill(pid, signal.SIGSTOP)  # as a decoder that never returns
    with pytest.raises(MediaError, match="killed for its time") as caught:
        read(workers, clip, [0.0], limits=DecodeLimits(timeout_s=0.3))
    assert caught.value.status == "timeout"
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert len(read(workers, clip, [0.0])) == 1
    assert (workers.num_started, workers.num_killed) == (2, 1)


def test_a_child_that_dies_is_a_status(workers, clip):
    read(workers, clip, [0.0])
    child = workers._idle[0]._process
    os.kill(child.pid, signal.SIGSTOP)
    threading.Timer(0.3, os.kill, (child.pid, signal.SIGKILL)).start()
    with pytest.raises(MediaError, match="the decode process ended with -9") as caught:
        read(workers, clip, [0.0])
    assert caught.value.status == "undecodable"
    assert len(read(workers, clip, [0.0])) == 1


@pytest.mark.parametrize(
    "reply",
    [
        b"nonsense\n",
        b'{"status": "ok", "frames": [{"height": 999, "width": 999, "source_index": 0, "timestamp_s": 0}]}\n',
        b'{"status": "ok", "frames": [{"height": -4, "width": 9, "source_index": 0, "timestamp_s": 0}]}\n',
        b'{"status": "ok", "frames": [{"height": 2, "width": 2, "source_index": 0, "timestamp_s": 0}]}\nab',
        b"x" * 3_000_000,
        b"",
    ],
    ids=["no JSON", "too many pixels", "negative", "cut off", "no end of line", "nothing"],
)
def test_a_child_that_was_taken_over_can_send_nothing_else(workers, clip, tmp_path, monkeypatch, reply):
    script = tmp_path / "child.py"
    script.write_text(
        "import sys\nout = sys.stdout.buffer\nout.write(b'ready\\n')\nout.flush()\n"
        f"sys.stdin.readline()\nout.write({reply!r})\nout.flush()\n"
    )
    program = tmp_path / "python"
    program.write_text(f"#!/bin/sh\nexec {sys.executable} {script}\n")
    program.chmod(0o755)
    monkeypatch.setattr(pool.sys, "executable", str(program))
    with pytest.raises(MediaError, match="the decode process ended with") as caught:
        read(workers, clip, [0.0])
    assert caught.value.status == "undecodable" and workers.num_killed == 1


def test_a_process_without_a_parent_ends_by_itself(clip):
    workers = DecodePool(size=1)
    read(workers, clip, [0.0])
    child = workers._idle[0]._process
    child.stdin.close()  # what the kernel does for a parent that was killed
    assert child.wait(timeout=60) == 0


def test_a_folder_of_pictures_is_read_by_time(workers, tmp_path):
    for at in range(6):
        pixels = np.full((48, 64, 3), 40 * at, np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"frame{at + 7}.png")
    for limits in (DecodeLimits(), LIMITS):
        frames = read_frames_at(tmp_path, [0.0, 1.5, 99.0], max_px=9_999, folder_fps=2.0, limits=limits)
        assert [frame.source_index for frame in frames] == [0, 3, 5]
        assert [int(frame.pixels.mean()) for frame in frames] == [0, 120, 200]
    thirds = read(workers, tmp_path, [1.0])  # TVQA's rate of 3 per second
    assert thirds[0].source_index == 3
    bounded = read(workers, tmp_path, [0.0, 99.0], folder_fps=1.0, clip_s=(1.0, 3.0))
    assert [frame.source_index for frame in bounded] == [1, 3]
    with pytest.raises(MediaError) as caught:
        read(workers, tmp_path / "none", [0.0])
    assert caught.value.status == "missing" and isinstance(caught.value.path, Path)
