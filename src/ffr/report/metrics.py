"""What a run writes while it trains: metrics, traces, configuration, environment, summary.

Everything is append-only JSON lines with flush and fsync per step, so that a killed run loses at most the
line it was writing; a resumed run first drops the rows that it will write again.
"""

from __future__ import annotations

import json
import math
import os
import platform
import re
import subprocess
import sys
import warnings
from collections.abc import Iterable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from ffr.report.trace import (
    TraceWarning,
    append_lines,
    clean,
    jsonable,
    replace_text,
    step_files,
    store_frames,
    trace_frames,
    trace_row,
    write_traces,
)
from ffr.types import Trace

METRICS_FILE = "metrics.jsonl"
PACKAGES = (
    "find-fix-reason",
    "numpy",
    "pillow",
    "av",
    "pydantic",
    "openai",
    "matplotlib",
    "scipy",
    "torch",
    "torchvision",
    "transformers",
    "trl",
    "accelerate",
    "peft",
    "vllm",
    "verl",
)
"""Versions that env.json states; a package that is not installed is stated as null."""
_SECRET = re.compile(r"(^|_)(key|token|secret|password|passwd|authorization|cookie)$", re.IGNORECASE)

METRIC_NAMES: Mapping[str, tuple[str, ...]] = {
    "first_pass_accuracy": ("find/first_pass_accuracy", "ffr/first_pass_accuracy", "first_pass_accuracy"),
    "intervention_rate": ("fix/intervention_rate", "ffr/intervention_rate", "intervention_rate"),
    "repair_rate": ("fix/repair_rate", "ffr/repair_success_rate", "ffr/repair_rate", "repair_rate"),
    "leaked": ("fix/leaked", "ffr/leaked", "ffr/leaked_rate", "ffr/leak_blocked", "ffr/leak_rate"),
    "teacher_failed": (
        "fix/teacher_failed",
        "ffr/teacher_failed",
        "ffr/teacher_failed_rate",
        "ffr/teacher_failures",
    ),
    "final_accuracy": (
        "reason/final_accuracy",
        "ffr/final_accuracy",
        "ffr/chosen_accuracy",
        "final_accuracy",
    ),
    "reward": ("reason/reward_mean", "reward/rir", "reward/mean", "reward"),
    "kl": ("train/kl", "policy/kl_ref", "policy/kl", "kl"),
    "zero_advantage": ("reason/zero_advantage_groups", "group/zero_std", "group/zero_advantage"),
    "repaired_negative": (
        "reason/repaired_negative_share",
        "ffr/repaired_negative_advantage",
        "ffr/repaired_negative_share",
    ),
}
"""The quantities of every table and figure here, and the metric names they are read from, best first."""


def metric(row: Mapping[str, Any], name: str) -> float:
    """The value of one quantity of `METRIC_NAMES` in a metrics row; NaN where the row has none."""
    for key in METRIC_NAMES.get(name, (name,)):
        value = row.get(key)
        if isinstance(value, int | float):
            return float(value)
    return math.nan


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSONL file; a missing file has none, a truncated last line is left out with a warning.

    Raises:
        ValueError: A line that is broken elsewhere; the message names file, row and remedy.
    """
    if not path.exists():
        return []
    lines = path.read_bytes().split(b"\n")
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            if not isinstance(row, dict):
                raise ValueError("not a JSON object")
        except ValueError as error:
            if number < len(lines):
                remedy = "delete the row or restore the file"
                raise ValueError(f"{path}: row {number}: {error}; {remedy}") from error
            message = f"{path}: row {number} is cut off ({len(line)} bytes, no line end) and was left out"
            warnings.warn(message, TraceWarning, stacklevel=2)
        else:
            rows.append(row)
    return rows


def read_metrics(run_dir: Path | str) -> list[dict[str, Any]]:
    """The rows of `metrics.jsonl` in step order, each a flat dict with `step`; null becomes NaN."""
    path = Path(run_dir) / METRICS_FILE
    rows = read_jsonl(path)
    for number, row in enumerate(rows, start=1):
        if not isinstance(row.get("step"), int):
            remedy = f"{row.get('step')!r} is not an integer; delete the row"
            raise ValueError(f"{path}: row {number}: field step: {remedy}")
    clean_rows = [{key: math.nan if value is None else value for key, value in row.items()} for row in rows]
    return sorted(clean_rows, key=lambda row: int(row["step"]))


def redact(value: Any, key: str = "") -> Any:
    """The value without secrets: fields named like one are masked, URLs lose user and password."""
    if isinstance(value, Mapping):
        return {str(k): redact(v, str(k)) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [redact(item, key) for item in value]
    if value and _SECRET.search(key) and isinstance(value, str):
        return "(hidden)"
    if isinstance(value, str) and "://" in value and "@" in value:
        parts = urlsplit(value)
        return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
    return value


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _git(*arguments: str) -> str:
    # Asked in the source tree, not in the working directory: the run may start anywhere.
    command = ["git", "-C", str(Path(__file__).parent), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"unknown ({type(error).__name__})"
    return done.stdout.strip() if done.returncode == 0 else ""


def environment() -> dict[str, Any]:
    """Versions and hardware in words: no path, no host name, no environment variable."""
    top = _git("rev-parse", "--show-toplevel")
    # An installed package may lie inside a stranger's repository; its commit would say nothing of ours.
    ours = bool(top) and (Path(top) / "src" / "ffr").is_dir()
    return {
        "python": sys.version.split()[0],
        "system": platform.system(),
        "machine": platform.machine(),
        "num_cpus": os.cpu_count(),
        "packages": {name: _version(name) for name in PACKAGES},
        "git_sha": _git("rev-parse", "HEAD") if ours else None,
        "git_dirty": bool(_git("status", "--porcelain", "--untracked-files=no")) if ours else None,
    }


def _finite(value: float) -> float | None:
    number = float(value)
    return number if math.isfinite(number) else None


class RunWriter:
    """The sink that writes a run directory.

    Files: `config.json`, `env.json`, `metrics.jsonl`, `traces/step_000010.jsonl`, `frames/<sha>.webp`,
    `summary.json`. On a resumed run call `truncate_after(step)`; a first step that the directory already
    holds does the same by itself, with a warning, so that no step is ever counted twice.

    Args:
        output_dir: The run directory; made when missing.
        config: The resolved configuration (`Config.model_dump(mode="json")`); secrets are masked.
    """

    def __init__(self, output_dir: Path | str, config: Mapping[str, Any] | None = None) -> None:
        """Make the directory, write `config.json` and `env.json`, and find out what is already there."""
        self.run_dir = Path(output_dir)
        self.run_dir.mkdir(parents=True, exist_ok=True)
        if config is not None:
            self._write_json("config.json", redact(jsonable(config)))
        self._write_json("env.json", environment())
        self._drop_partial_line()
        self._old_step: int | None = self._last_step()

    @property
    def metrics_path(self) -> Path:
        """Where the metrics lie."""
        return self.run_dir / METRICS_FILE

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """One row `{"step": step, **values}`; non-finite values are written as null."""
        self._enter(step)
        finite = {key: _finite(value) for key, value in values.items() if key != "step"}
        append_lines(self.metrics_path, [json.dumps({"step": int(step), **finite})])

    def traces(self, step: int, traces: Sequence[Trace]) -> None:
        """The groups of a step: frames first, so that no row points at a frame that is not there."""
        self._enter(step)
        for trace in traces:
            store_frames(self.run_dir, trace_frames(trace))
        write_traces(self.run_dir, step, (trace_row(trace) for trace in traces))

    def finish(self, summary: Mapping[str, float]) -> None:
        """`summary.json`: the values as given."""
        self._write_json("summary.json", {clean(str(key)): jsonable(value) for key, value in summary.items()})

    def truncate_after(self, step: int) -> int:
        """How many metric rows and trace files of `step` and later were dropped.

        Call it with the step that a resumed run does next: everything before it stays, byte for byte.
        """
        self._old_step = None
        kept: list[bytes] = []
        dropped = 0
        if self.metrics_path.exists():
            for line in self.metrics_path.read_bytes().split(b"\n"):
                if line.strip() and json.loads(line)["step"] >= step:
                    dropped += 1
                elif line.strip():
                    kept.append(line)
            if dropped:
                replace_text(self.metrics_path, "".join(f"{line.decode()}\n" for line in kept))
        for trace_step, path in step_files(self.run_dir):
            if trace_step >= step:
                path.unlink()
                dropped += 1
        return dropped

    def _enter(self, step: int) -> None:
        # Once per process: afterwards the steps come from this run alone.
        old, self._old_step = self._old_step, None
        if old is not None and step <= old:
            dropped = self.truncate_after(step)
            message = (
                f"{self.run_dir} holds steps up to {old} and the run goes on at {step}: "
                f"{dropped} rows and trace files of steps >= {step} were dropped"
            )
            warnings.warn(message, TraceWarning, stacklevel=3)

    def _last_step(self) -> int | None:
        steps = [int(row["step"]) for row in read_metrics(self.run_dir)]
        steps += [step for step, _ in step_files(self.run_dir)]
        return max(steps, default=None)

    def _drop_partial_line(self) -> None:
        # Appending behind half a line would corrupt two rows instead of losing one.
        for path in (self.metrics_path, *(path for _, path in step_files(self.run_dir))):
            data = path.read_bytes() if path.exists() else b""
            if data and not data.endswith(b"\n"):
                whole = data[: data.rfind(b"\n") + 1]
                warnings.warn(f"{path}: a cut-off last row was dropped", TraceWarning, stacklevel=3)
                replace_text(path, whole.decode())

    def _write_json(self, name: str, value: Any) -> None:
        replace_text(self.run_dir / name, json.dumps(value, indent=2, allow_nan=False) + "\n")


def nanmean(values: Iterable[float], weights: Iterable[float] | None = None) -> float:
    """The (weighted) mean of the finite values; NaN when there are none."""
    pairs = [
        (v, w)
        for v, w in zip(values, weights or _ones(), strict=False)
        if math.isfinite(v) and math.isfinite(w)
    ]
    total = sum(w for _, w in pairs)
    return sum(v * w for v, w in pairs) / total if total > 0 else math.nan


def _ones() -> Iterable[float]:
    while True:
        yield 1.0
