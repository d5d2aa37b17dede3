"""Decode processes that are kept for many reads, and killed when one read hangs, grows or crashes.

A process for each read costs half a second of start; these are started once and asked again. The parent
sends one line of JSON and gets one line of JSON and raw pixels back: no pickle crosses the border, and a
process that a file has taken over can send nothing but pixels, as many as were asked for.
"""

from __future__ import annotations

import atexit
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Final, cast

import numpy as np

from ffr.observe.errors import MEDIA_STATUSES, MediaError
from ffr.observe.frames import make_frame
from ffr.observe.video import DecodeLimits
from ffr.types import Frame

MAX_WORKERS: Final = 4
START_S: Final = 60.0
"""For the first reply of a process: it imports its libraries first, on a machine that may be busy."""
MAX_HEAD_BYTES: Final = 1024 * 1024


class DecodePool:
    """Up to `size` decode processes, started when needed; safe with threads.

    Args:
        size: Processes at a time.

    Example:
        >>> pool = DecodePool(size=1)
        >>> pool.num_started
        0
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self.renew()

    def renew(self) -> None:
        """Forget all processes: after a fork they are the parent's, and so are their pipes."""
        self._lock = threading.Lock()
        self._places = threading.BoundedSemaphore(self._size)
        self._idle: list[_Worker] = []
        self.num_started = 0
        """Processes started so far."""
        self.num_killed = 0
        """Of these, how many a file has cost."""

    def read(
        self,
        path: Path,
        times_s: Sequence[float],
        *,
        max_px: int,
        size_factor_px: int | None,
        clip_s: tuple[float, float] | None,
        folder_fps: float | None,
        limits: DecodeLimits,
    ) -> tuple[Frame, ...]:
        """`read_frames_at` in another process, within `limits.timeout_s` seconds, waiting included.

        Raises:
            MediaError: What the process found; `timeout` when it was killed for its time, `undecodable` when
                it died or replied nonsense.
        """
        end = time.monotonic() + limits.timeout_s
        places = self._places
        if not places.acquire(timeout=limits.timeout_s):
            raise MediaError("timeout", path, f"no decode process was free for {limits.timeout_s:g} s")
        try:
            worker = self._take()
            job = {
                "path": str(path.absolute()),
                "times_s": list(times_s),
                "max_px": max_px,
                "size_factor_px": size_factor_px,
                "clip_s": clip_s,
                "folder_fps": folder_fps,
                "limits": asdict(replace(limits, isolate=False)),
            }
            try:
                return worker.ask(path, job, end, max_px)
            finally:
                self._put_back(worker)
        finally:
            places.release()

    def close(self) -> None:
        """End the processes that wait for work."""
        with self._lock:
            idle, self._idle = self._idle, []
        for worker in idle:
            worker.kill()

    def _take(self) -> _Worker:
        with self._lock:
            while self._idle:
                worker = self._idle.pop()
                if worker.alive:
                    return worker
            self.num_started += 1
        return _Worker()

    def _put_back(self, worker: _Worker) -> None:
        if worker.broken:
            worker.kill()
        with self._lock:
            self.num_killed += worker.broken
            if not worker.broken:
                self._idle.append(worker)


class _Worker:
    """One child process and the pipes to it."""

    def __init__(self) -> None:
        self.broken = False
        self._process = subprocess.Popen(
            [sys.executable, "-m", "ffr.observe.worker", "--serve"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        self._started = False

    @property
    def alive(self) -> bool:
        """True while the process runs."""
        return self._process.poll() is None

    def ask(self, path: Path, job: dict[str, Any], end: float, max_px: int) -> tuple[Frame, ...]:
        """Send a job and read its frames.

        Raises:
            MediaError: See `DecodePool.read`; `broken` tells whether the process may be asked again.
        """
        self.broken = True  # until a whole reply was read
        self._wait_started(path)
        left_s = max(0.01, end - time.monotonic())
        alarm = _Alarm(left_s, self._process)
        try:
            with alarm:
                reply = self._exchange(job, max_px * len(job["times_s"]))
        except (OSError, ValueError, KeyError, TypeError, EOFError) as error:
            if alarm.rang:
                words = "the decode process was killed for its time; ask for another part of the clip"
                raise MediaError("timeout", path, words) from error
            self.kill()
            code = self._process.returncode
            words = f"the decode process ended with {code} ({type(error).__name__})"
            raise MediaError("undecodable", path, words) from error
        self.broken = alarm.rang  # it may have come with the last byte
        if isinstance(reply, tuple):
            return reply
        status, detail = reply["status"], reply["detail"]
        raise MediaError(status if status in MEDIA_STATUSES else "undecodable", path, str(detail)[:500])

    def kill(self) -> None:
        """End the process and close its pipes."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with suppress(OSError):  # what was still to be flushed has nobody to read it
                    pipe.close()

    def _wait_started(self, path: Path) -> None:
        """The process says when it is ready, so that no clip's time pays for its imports."""
        if self._started:
            return
        with _Alarm(START_S, self._process):
            if self._out.readline(16) != b"ready\n":
                raise MediaError("timeout", path, "the decode process did not start")
        self._started = True

    @property
    def _out(self) -> Any:
        return self._process.stdout

    def _exchange(self, job: dict[str, Any], max_total_px: int) -> tuple[Frame, ...] | dict[str, Any]:
        into: Any = self._process.stdin
        into.write(json.dumps(job).encode() + b"\n")
        into.flush()
        line = self._out.readline(MAX_HEAD_BYTES)
        if not line.endswith(b"\n"):
            raise EOFError("the reply has no end")
        head = json.loads(line)
        if head["status"] != "ok":
            return cast("dict[str, Any]", head)
        shapes = [(int(frame["height"]), int(frame["width"])) for frame in head["frames"]]
        if min((min(shape) for shape in shapes), default=1) < 1:
            raise ValueError("a frame without pixels")
        if sum(height * width for height, width in shapes) > max_total_px:
            raise ValueError("more pixels than were asked for")
        frames: list[Frame] = []
        for number, (meta, shape) in enumerate(zip(head["frames"], shapes, strict=True), start=1):
            data = self._out.read(shape[0] * shape[1] * 3)
            if len(data) != shape[0] * shape[1] * 3:
                raise EOFError("the pixels have no end")
            frames.append(
                make_frame(
                    np.frombuffer(data, np.uint8).reshape(*shape, 3),
                    number=number,
                    source_index=int(meta["source_index"]),
                    timestamp_s=float(meta["timestamp_s"]),
                )
            )
        return tuple(frames)


class _Alarm:
    """Kills a process after some time, unless the block ends before; `rang` tells."""

    def __init__(self, seconds: float, process: subprocess.Popen[bytes]) -> None:
        self.rang = False
        self._process = process
        self._timer = threading.Timer(seconds, self._ring)
        self._timer.daemon = True

    def _ring(self) -> None:
        self.rang = True
        self._process.kill()

    def __enter__(self) -> None:
        self._timer.start()

    def __exit__(self, *exc: object) -> None:
        self._timer.cancel()
        self._timer.join()


POOL: Final = DecodePool(max(1, min(MAX_WORKERS, os.cpu_count() or 1)))
"""The process's own; its children end with it."""
atexit.register(POOL.close)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=POOL.renew)
