"""Where the time of a run goes: phases, slow steps and what made them slow, and what could be changed.

Read from `metrics.jsonl` alone (and the settings in `config.json`), so a run can be profiled while it
trains, and on another machine. What each phase means is in `ffr.engines.clock.PHASES`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from ffr.config import TrainConfig
from ffr.engines.clock import PHASES
from ffr.report.metrics import read_metrics

Row = Mapping[str, Any]
NUMBERS: tuple[tuple[str, str, str], ...] = (
    ("speed/generate_tok_s", "tokens sampled a second", "{:.0f}"),
    ("speed/score_tok_s", "tokens scored a second", "{:.0f}"),
    ("speed/update_tok_s", "tokens trained on a second", "{:.0f}"),
    ("speed/step_tok_s", "completion tokens of the loss a second, over the whole step", "{:.1f}"),
    ("mfu/step", "model FLOPs utilisation, whole step", "{:.1%}"),
    ("mfu/update", "model FLOPs utilisation, update", "{:.1%}"),
    ("memory/peak_gib", "peak memory, GiB", "{:.2f}"),
    ("memory/device_gib", "memory of the device, GiB", "{:.2f}"),
    ("reason/zero_advantage_groups", "dead groups (all advantages 0)", "{:.0%}"),
    ("reason/zero_advantage_share", "rollouts with advantage 0", "{:.0%}"),
    ("sampler/logprob_mismatch", "sampler against trainer, mean |difference of log-probs|", "{:.2g}"),
    ("sampler/logprob_mismatch_max", "the same, largest of a step", "{:.2g}"),
    ("policy/ratio_std", "importance ratio, standard deviation", "{:.2g}"),
    ("policy/ratio_max", "importance ratio, largest of a step", "{:.3g}"),
)
"""Metric, its words, and how it is written; medians over steps."""
TEACHER_LIMIT, VISION_LIMIT, OBSERVE_LIMIT, OTHER_LIMIT, SAVE_LIMIT = 0.3, 0.25, 0.15, 0.2, 0.1
GENERATE_LIMIT, TRUNCATED_LIMIT, DEAD_LIMIT, FULL_LIMIT = 0.6, 0.2, 0.5, 0.92
MISMATCH_LIMIT = 0.05
"""Shares of the time (or of what the name says) from which a profile warns."""


@dataclass(frozen=True, slots=True)
class PhaseTime:
    """One phase over a run.

    Example:
        >>> PhaseTime("fix", median_s=6.8, longest_s=41.0, share=0.61).share
        0.61
    """

    name: str
    median_s: float
    longest_s: float
    share: float
    """Of the time of all steps together."""


@dataclass(frozen=True, slots=True)
class SlowStep:
    """A step that took long, and the phase that made it so.

    Example:
        >>> SlowStep(step=7, seconds=60.0, phase="fix", phase_s=41.0, usual_s=6.8).extra_s
        34.2
    """

    step: int
    seconds: float
    phase: str
    """The phase that exceeds its median by most."""
    phase_s: float
    usual_s: float

    @property
    def extra_s(self) -> float:
        """Seconds over the phase's median."""
        return self.phase_s - self.usual_s


@dataclass(frozen=True, slots=True)
class Profile:
    """Where the time went.

    Example:
        >>> Profile(num_steps=2, step_s=1.0, phases=(), slowest=(), numbers={}, warnings=()).num_steps
        2
    """

    num_steps: int
    step_s: float
    """Median of a step's seconds."""
    phases: tuple[PhaseTime, ...]
    """In the order of a step; those that took no time are left out."""
    slowest: tuple[SlowStep, ...]
    numbers: Mapping[str, float]
    """Medians of `NUMBERS`, those that the run has."""
    warnings: tuple[str, ...]
    """What stands out, each with what to change."""

    def share(self, phase: str) -> float:
        """Share of one phase; 0 for one that took no time."""
        return next((found.share for found in self.phases if found.name == phase), 0.0)


def profile_run(run_dir: Path | str, *, num_slowest: int = 5) -> Profile:
    """The profile of a run directory.

    Args:
        run_dir: With `metrics.jsonl`.
        num_slowest: Steps that are looked at one by one; only those that are slower than the median.

    Raises:
        ValueError: No step with times, or a broken file.
    """
    rows = [row for row in read_metrics(run_dir) if any(_finite(row, f"time/{name}_s") for name in PHASES)]
    if not rows:
        raise ValueError(
            f"{run_dir}: metrics.jsonl has no step with time/*_s; only runs of `ffr train` write them"
        )
    totals = [_step_s(row) for row in rows]
    everything = sum(totals) or 1.0
    phases: list[PhaseTime] = []
    for name in PHASES:
        seconds = [_phase_s(row, name) for row in rows]
        if any(seconds):
            phases.append(PhaseTime(name, median(seconds), max(seconds), sum(seconds) / everything))
    numbers = {name: _median(rows, name) for name, _, _ in NUMBERS}
    found = Profile(
        num_steps=len(rows),
        step_s=median(totals),
        phases=tuple(phases),
        slowest=tuple(_slowest(rows, totals, phases, num_slowest)),
        numbers={name: value for name, value in numbers.items() if math.isfinite(value)},
        warnings=(),
    )
    extra = {"find/truncated_rate": _median(rows, "find/truncated_rate")}
    notes = tuple(_warnings(found, {**found.numbers, **extra}, _settings(Path(run_dir))))
    return Profile(found.num_steps, found.step_s, found.phases, found.slowest, found.numbers, notes)


def _slowest(
    rows: Sequence[Row], totals: Sequence[float], phases: Sequence[PhaseTime], number: int
) -> list[SlowStep]:
    usual = median(totals)
    order = sorted(range(len(rows)), key=lambda at: -totals[at])[:number]
    steps: list[SlowStep] = []
    for at in order:
        if totals[at] > usual:
            worst = max(phases, key=lambda phase: _phase_s(rows[at], phase.name) - phase.median_s)
            spent = _phase_s(rows[at], worst.name)
            steps.append(SlowStep(int(rows[at]["step"]), totals[at], worst.name, spent, worst.median_s))
    return steps


def _warnings(profile: Profile, numbers: Mapping[str, float], settings: Mapping[str, Any]) -> list[str]:
    notes: list[str] = []

    def over(name: str, limit: float) -> float:
        value = numbers.get(name, math.nan)
        return value if value > limit else 0.0

    for phase, limit, words, remedy in _PHASE_RULES:
        share = profile.share(phase)
        if share > limit:
            notes.append(f"{words} {share:.0%} of the time: {remedy(settings)}")
    if share := over("find/truncated_rate", TRUNCATED_LIMIT):
        most = _setting(settings, "find.max_completion_tokens", 1024)
        notes.append(
            f"{share:.0%} of the rollouts are cut off at find.max_completion_tokens = {most}: a larger limit "
            "lets them end, a shorter prompt template makes them shorter"
        )
    if share := over("reason/zero_advantage_groups", DEAD_LIMIT):
        notes.append(
            f"{share:.0%} of the groups are dead (every rollout has the same reward) and teach nothing: "
            "choose harder or easier questions, or a larger find.group_size"
        )
    if value := over("sampler/logprob_mismatch", MISMATCH_LIMIT):
        notes.append(
            f"sampler and trainer differ by {value:.2g} in log-probability on average: the weights or the "
            "precision of the sampler are not the trainer's"
        )
    device, peak = numbers.get("memory/device_gib", 0.0), numbers.get("memory/peak_gib", 0.0)
    if device and peak > FULL_LIMIT * device:
        notes.append(
            f"{peak:.1f} of {device:.1f} GiB are used: a longer group may not fit; `ffr doctor train` says "
            "which setting to change"
        )
    return notes


def _teacher_remedy(settings: Mapping[str, Any]) -> str:
    now = _setting(settings, "fix.teacher.concurrency", 16)
    words = f"raise fix.teacher.concurrency (now {now})"
    overlap = "overlap" in TrainConfig.model_fields and not _setting(settings, "train.overlap", False)
    words += ", set train.overlap = true" if overlap else ""
    return f"{words}, give the teacher more GPUs, or lower fix.teacher.max_tool_calls"


def _observe_remedy(settings: Mapping[str, Any]) -> str:
    if _setting(settings, "observe.cache_dir", None):
        return "the clips are cached already: is observe.cache_dir on a slow disk?"
    return "set observe.cache_dir, so that each clip is decoded once"


def _vision_remedy(settings: Mapping[str, Any]) -> str:
    if _setting(settings, "model.freeze_vision", False):
        return "lower observe.max_frame_px or observe.num_frames"
    return "model.freeze_vision = true keeps a clip's features for all passes of a step"


_PHASE_RULES: tuple[tuple[str, float, str, Callable[[Mapping[str, Any]], str]], ...] = (
    ("fix", TEACHER_LIMIT, "the teacher is waited for", _teacher_remedy),
    ("observe", OBSERVE_LIMIT, "decoding takes", _observe_remedy),
    ("vision", VISION_LIMIT, "the vision tower takes", _vision_remedy),
    (
        "generate",
        GENERATE_LIMIT,
        "sampling takes",
        lambda _: (
            "raise train.questions_per_step, so that more rollouts are decoded together, or sample with a "
            "server"
        ),
    ),
    ("save", SAVE_LIMIT, "checkpoints take", lambda _: "raise train.save_every"),
    (
        "other",
        OTHER_LIMIT,
        "work outside all phases takes",
        lambda _: "the ranks wait for each other, or the disk of report.output_dir is slow",
    ),
)


def _settings(run_dir: Path) -> Mapping[str, Any]:
    file = run_dir / "config.json"
    if not file.is_file():
        return {}
    try:
        settings = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file}: {error}; restore or delete the file") from error
    return settings if isinstance(settings, dict) else {}


def _setting(settings: Mapping[str, Any], key: str, default: Any) -> Any:
    value: Any = settings
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return default if value is None else value


def _finite(row: Row, name: str) -> bool:
    value = row.get(name)
    return isinstance(value, int | float) and math.isfinite(value)


def _phase_s(row: Row, phase: str) -> float:
    name = f"time/{phase}_s"
    return float(row[name]) if _finite(row, name) else 0.0


def _step_s(row: Row) -> float:
    return float(row["time/step_s"]) if _finite(row, "time/step_s") else sum(_phase_s(row, p) for p in PHASES)


def _median(rows: Sequence[Row], name: str) -> float:
    values = [float(row[name]) for row in rows if _finite(row, name)]
    return median(values) if values else math.nan
