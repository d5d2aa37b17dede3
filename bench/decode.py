"""16 frames from clips of 10 s, 60 s and 600 s at 1280x720: seeking, from the start, and torchcodec.

    python bench/decode.py --torchcodec-python /path/to/python
    python bench/decode.py --quick

H.264, a key frame every 250 frames, 25 frames a second; encoded by the bench at its first run and kept in a
folder of the system's temporary directory. Variants take turns within a round:

    ours                 the index of the packets and the seeking decoder of `ffr.observe.video`
    sequential           PyAV from the first frame to the last one that is wanted
    torchcodec_exact     torchcodec's VideoDecoder(seek_mode="exact"), in the interpreter that is named
    torchcodec_approximate

All give RGB pixels of full size with the same number of decoder threads; opening the file counts. Exactness
is equality of pixels with `sequential`. Exit code 1 if ours is not exact or takes more than twice as long for
600 s as for 60 s.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import av  # noqa: E402
import numpy as np  # noqa: E402

from bench.decode_clips import CRF, GOP, PRESET, RATE, ready  # noqa: E402
from bench.machine import environment  # noqa: E402
from ffr.observe.frames import uniform_indices  # noqa: E402
from ffr.observe.video import DEFAULT_LIMITS, decode_frames, index_video  # noqa: E402

PACKAGES = ("find-fix-reason", "av", "numpy")
MARK = "@decode "
VARIANTS = ("ours", "sequential", "torchcodec_exact", "torchcodec_approximate")
THREADS = DEFAULT_LIMITS.threads
TARGETS = {"growth_60s_to_600s": 2.0}
"""Largest ratio of our times."""

Decoded = dict[int, np.ndarray]


def ours(path: Path, num: int) -> Decoded:
    index = index_video(path)
    got, notes = decode_frames(path, index, uniform_indices(len(index.pts), num))
    assert not notes, f"{path}: {notes}"
    return got


def sequential(path: Path, num: int) -> Decoded:
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        stream.codec_context.thread_count = THREADS
        wanted = set(uniform_indices(stream.frames, num))
        return {
            k: frame.to_ndarray(format="rgb24")
            for k, frame in enumerate(container.decode(stream))
            if k in wanted
        }


class TorchCodec:
    """torchcodec in its own interpreter."""

    def __init__(self, python: str, log: Path) -> None:
        self._log = log.open("w+", encoding="utf-8")
        self._process = subprocess.Popen(
            [python, str(ROOT / "bench" / "decode_torchcodec.py")],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, text=True,
        )  # fmt: skip
        self.versions: dict[str, str] = self._read()["versions"]

    def decode(self, path: Path, indices: Sequence[int], mode: str, save: str = "") -> dict[str, Any]:
        job = {"path": str(path), "indices": list(indices), "mode": mode, "threads": THREADS, "save": save}
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()
        return self._read()

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(timeout=60)
        self._log.close()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith(MARK):
                return json.loads(line[len(MARK) :])
        self._log.seek(0)
        raise RuntimeError(f"torchcodec ended:\n{self._log.read()[-4000:]}")


def timed(body: Callable[[Path, int], Decoded], path: Path, num: int) -> dict[str, Any]:
    started, used = time.perf_counter(), time.process_time()
    got = body(path, num)
    seconds, used = time.perf_counter() - started, time.process_time() - used
    shas = [hashlib.sha256(np.ascontiguousarray(got[k]).data).hexdigest() for k in sorted(got)]
    return {"seconds": seconds, "cpu_s": used, "sha256": shas}


def one(variant: str, path: Path, num: int, codec: TorchCodec | None) -> dict[str, Any]:
    """One run of a variant."""
    if variant.startswith("torchcodec"):
        assert codec is not None
        mode = variant.removeprefix("torchcodec_")
        return codec.decode(path, uniform_indices(len(index_video(path).pts), num), mode)
    return timed(ours if variant == "ours" else sequential, path, num)


def measure(
    clips: dict[int, Path], num: int, repeats: int, codec: TorchCodec | None
) -> tuple[list[dict[str, Any]], dict[str, dict[str, int]]]:
    """Rounds of figures, and how many frames of each variant are exact."""
    variants = [v for v in VARIANTS if codec or not v.startswith("torchcodec")]
    todo = [(variant, length) for length in clips for variant in variants]
    rounds: list[dict[str, Any]] = []
    exact: dict[str, dict[str, int]] = {variant: {} for variant in variants}
    for k in range(repeats + 1):  # the first one warms file caches up and is not kept
        at = k * len(todo) // (repeats + 1)
        runs = {
            f"{variant}/{length}s": one(variant, clips[length], num, codec)
            for variant, length in todo[at:] + todo[:at]
        }
        for variant, length in todo:
            truth, found = (runs[f"{name}/{length}s"]["sha256"] for name in ("sequential", variant))
            same = sum(a == b for a, b in zip(truth, found, strict=True))
            exact[variant][f"{length}s"] = min(same, exact[variant].get(f"{length}s", num))
        for run in runs.values():
            del run["sha256"]
        if k:
            rounds.append(runs)
            line = ", ".join(f"{name} {run['seconds']:.2f}" for name, run in sorted(runs.items()))
            print(f"  round {k} (s): {line}", flush=True)
    return rounds, exact


def differences(codec: TorchCodec, path: Path, num: int, folder: Path) -> dict[str, float]:
    """How far torchcodec's pixels are from `sequential`'s: RGB is computed by other code there."""
    truth = sequential(path, num)
    saved = folder / "frames.npy"
    codec.decode(path, sorted(truth), "exact", str(saved))
    gaps = np.abs(np.load(saved).astype(np.int16) - np.stack([truth[k] for k in sorted(truth)]))
    return {"largest": int(gaps.max()), "mean": float(gaps.mean())}


def summary(rounds: list[dict[str, Any]], lengths: Sequence[int]) -> dict[str, Any]:
    """Medians, growth with length, and ours against the others."""
    variants = [v for v in VARIANTS if f"{v}/{lengths[0]}s" in rounds[0]]
    out: dict[str, Any] = {"median_s": {}, "median_cpu_s": {}}
    for name in [f"{variant}/{length}s" for variant in variants for length in lengths]:
        out["median_s"][name] = statistics.median(r[name]["seconds"] for r in rounds)
        out["median_cpu_s"][name] = statistics.median(r[name]["cpu_s"] for r in rounds)

    def ratio(over: str, under: str, key: str) -> list[float]:
        return [r[over][key] / r[under][key] for r in rounds]

    for a, b in itertools.pairwise(lengths):
        for variant in variants:
            key = f"growth_{a}s_to_{b}s" + ("" if variant == "ours" else f"_{variant}")
            runs = ratio(f"{variant}/{b}s", f"{variant}/{a}s", "seconds")
            out |= {key: statistics.median(runs), f"{key}_runs": runs}
            cpu = ratio(f"{variant}/{b}s", f"{variant}/{a}s", "cpu_s")
            out[f"{key}_by_cpu_time"] = statistics.median(cpu)
    for variant in variants[1:]:
        for length in lengths:
            key = f"ours_vs_{variant}_at_{length}s"
            runs = ratio(f"{variant}/{length}s", f"ours/{length}s", "seconds")
            out |= {key: statistics.median(runs), f"{key}_runs": runs}
            cpu = ratio(f"{variant}/{length}s", f"ours/{length}s", "cpu_s")
            out[f"{key}_by_cpu_time"] = statistics.median(cpu)
    return out


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--torchcodec-python", default="", help="an interpreter that has torchcodec")
    parser.add_argument(
        "--clips",
        type=Path,
        default=Path(tempfile.gettempdir()) / "ffr-bench-clips",
        help="kept between runs",
    )
    parser.add_argument("--quick", action="store_true", help="a smoke test: short small clips, one round")
    parser.add_argument("--output", type=Path, default=ROOT / "bench" / "results" / "decode.json")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    words = parse(argv)
    lengths, size, num, repeats = (10, 60, 600), (1280, 720), 16, words.repeats
    if words.quick:
        lengths, size, num, repeats = (1, 6, 12), (64, 48), 4, 1
    clips = {length: ready(words.clips, length, size) for length in lengths}
    before = environment(PACKAGES)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        codec = TorchCodec(words.torchcodec_python, folder / "log") if words.torchcodec_python else None
        rounds, exact = measure(clips, num, repeats, codec)
        gaps = differences(codec, clips[lengths[0]], num, folder) if codec else None
        if codec:
            codec.close()
    found = summary(rounds, lengths)
    missed = [f"ours is not exact: {exact['ours']} of {num}"] if set(exact["ours"].values()) != {num} else []
    for key, bound in TARGETS.items():
        if not words.quick and found[key] > bound:
            missed.append(f"{key} = {found[key]:.2f} (target {bound:g})")
    report = {
        "bench": "decode",
        "frames": num,
        "size_px": list(size),
        "codec": f"h264 (libx264 {PRESET}, crf {CRF}), {RATE} frames/s, key frame every {GOP} frames",
        "bytes": {f"{length}s": path.stat().st_size for length, path in clips.items()},
        "decoder_threads": THREADS,
        "targets": TARGETS,
        "missed_targets": missed,
        "environment": {**before, "load_1min_after": round(os.getloadavg()[0], 2)},
        "ffmpeg": {name: ".".join(map(str, version)) for name, version in av.library_versions.items()},
        "torchcodec": codec.versions if codec else "was not run: --torchcodec-python was not given",
        "torchcodec_pixel_difference": gaps,
        "exact_frames": exact,
        **found,
        "rounds": rounds,
    }
    for key in [key for key in found if f"{key}_runs" in found]:
        print(f"  {key}: {found[key]:.2f}x, by CPU time {found[f'{key}_by_cpu_time']:.2f}x")
    words.output.parent.mkdir(parents=True, exist_ok=True)
    words.output.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print("missed: " + "; ".join(missed) if missed else "all targets held")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
