"""Decoding in a process of its own that is killed when it hangs or grows, for files nobody vouches for.

`DecodeLimits(isolate=True)` turns it on; the default decodes in this process, where the same limits
hold but a decoder that never returns can't be stopped. The child gets JSON and answers with an `.npz`
entry of the frame cache: no pickle crosses the border. With `--serve` it stays for many reads of single
frames, as `ffr.observe.pool` asks for them.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, BinaryIO

from ffr.config import ObserveConfig
from ffr.observe import cache
from ffr.observe.cache import CachedClip
from ffr.observe.errors import MEDIA_STATUSES, MediaError
from ffr.observe.video import DecodeLimits
from ffr.types import ProblemType, Sample

MAX_MEMORY_BYTES = 2 * 1024**3
"""Address space of the child; FFmpeg fails cleanly above it."""


def decode_isolated(sample: Sample, cfg: ObserveConfig, limits: DecodeLimits) -> CachedClip:
    """`decode_clip` in a child process that lives at most `limits.timeout_s` seconds.

    Raises:
        MediaError: What the child found, `timeout` when it was killed for its time, `undecodable` when
            it died (a crash of the decoder, its memory limit).
    """
    with tempfile.TemporaryDirectory(prefix="ffr-decode-") as folder:
        out = Path(folder) / "clip.npz"
        job = {
            "video": str(sample.video.absolute()),
            "media_type": sample.media_type,
            "clip_s": sample.clip_s,
            "meta": {"folder_fps": sample.meta["folder_fps"]} if "folder_fps" in sample.meta else {},
            "cfg": cfg.model_dump(mode="json"),
            "limits": asdict(replace(limits, isolate=False)),
            "out": str(out),
        }
        try:
            done = subprocess.run(
                [sys.executable, "-m", "ffr.observe.worker"],
                input=json.dumps(job),
                capture_output=True,
                text=True,
                errors="replace",
                timeout=limits.timeout_s,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            words = f"the decode process was killed after {limits.timeout_s:g} s; skip the clip"
            raise MediaError("timeout", sample.video, words) from error
        if done.returncode == 0:
            try:
                clip = cache.load(out)
            except ValueError as error:
                raise MediaError("undecodable", sample.video, str(error)) from error
            if clip is not None:
                return clip
        status, _, detail = done.stdout.strip().partition("\n")
        if status in MEDIA_STATUSES:
            raise MediaError(status, sample.video, detail)
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise MediaError(
            "undecodable", sample.video, f"the decode process ended with {done.returncode}: {last}"
        )


def main() -> int:
    """The child: a job on standard input, an entry on disk or a status on standard output."""
    from ffr.observe.clip import decode_clip

    _limit_memory()
    job = json.loads(sys.stdin.read())
    bounds = job["clip_s"]
    sample = Sample(
        uid="worker",
        question="",
        answer="",
        problem_type=ProblemType.FREE_FORM,
        video=Path(job["video"]),
        media_type=job["media_type"],
        clip_s=(bounds[0], bounds[1]) if bounds else None,
        meta=job["meta"],
    )
    try:
        clip = decode_clip(sample, ObserveConfig.model_validate(job["cfg"]), DecodeLimits(**job["limits"]))
    except MediaError as error:
        print(f"{error.status}\n{error.detail}")
        return 1
    cache.store(Path(job["out"]), clip)
    return 0


ALARM_GRACE_S = 5.0
"""How long after a job's time a process ends itself whose parent is gone or did not."""


def serve(jobs: BinaryIO, out: BinaryIO) -> int:
    """Read jobs, one line of JSON each; answer with a line of JSON and, if it is `ok`, raw RGB pixels.

    Args:
        jobs: Where jobs come from; the end of it ends this process.
        out: Where replies go, and `ready` first.
    """
    from ffr.observe.clip import read_frames_at

    _limit_memory()
    out.write(b"ready\n")
    out.flush()
    for line in jobs:
        job: dict[str, Any] = json.loads(line)
        limits = DecodeLimits(**job["limits"])
        _set_alarm(limits.timeout_s + ALARM_GRACE_S)
        try:
            frames = read_frames_at(
                Path(job["path"]),
                job["times_s"],
                max_px=job["max_px"],
                size_factor_px=job["size_factor_px"],
                clip_s=tuple(job["clip_s"]) if job["clip_s"] else None,
                folder_fps=job["folder_fps"],
                limits=limits,
            )
        except MediaError as error:
            out.write(json.dumps({"status": error.status, "detail": error.detail}).encode() + b"\n")
        else:
            head = [
                {
                    "height": frame.height_px,
                    "width": frame.width_px,
                    "source_index": frame.source_index,
                    "timestamp_s": frame.timestamp_s,
                }
                for frame in frames
            ]
            out.write(json.dumps({"status": "ok", "frames": head}).encode() + b"\n")
            for frame in frames:
                assert frame.pixels is not None  # just decoded
                out.write(frame.pixels.tobytes())
        out.flush()
        _set_alarm(0.0)
    return 0


def _set_alarm(seconds: float) -> None:
    """The kernel ends this process after some time, also within FFmpeg's code; 0 takes the alarm back."""
    if hasattr(signal, "setitimer"):
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_REAL, seconds)


def _serve_pipes() -> int:
    # What a library prints must not get between the replies.
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    return serve(sys.stdin.buffer, out)


def _limit_memory() -> None:
    try:
        import resource
    except ImportError:  # Windows has no such limit; the time limit holds there too
        return
    resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY_BYTES, MAX_MEMORY_BYTES))


if __name__ == "__main__":
    raise SystemExit(_serve_pipes() if "--serve" in sys.argv[1:] else main())
