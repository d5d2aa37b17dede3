"""Figures: curves with mean and 95 % interval over seeds, repairs over time, error types."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ffr.report.charts import smoothed
from ffr.report.metrics import metric, read_metrics
from ffr.report.rows import TraceRow
from ffr.report.stats import t_interval, wilson_interval
from ffr.report.trace import TraceWarning, read_traces
from ffr.types import ErrorType

COLOURS = ("#2767b0", "#e07b00", "#1f8a55", "#8b5fbf", "#c0392f", "#6a6f76", "#0f9aa8")
Series = Mapping[int, float]
"""Value by step, of one seed."""


def curve(ax: Axes, seeds: Sequence[Series], label: str, colour: str, *, window: int = 1) -> None:
    """The mean over seeds at each step that all seeds have, with a 95 % t-interval band.

    Args:
        ax: Where it is drawn.
        seeds: One series per seed; each is smoothed over `window` of its own points first.
        label: Legend entry; the number of seeds is added.
        colour: Line colour.
        window: Points of the centred moving mean.
    """
    smooth = [_smooth(series, window) for series in seeds if series]
    if not smooth:
        return
    steps = sorted(set.intersection(*(set(series) for series in smooth)))
    intervals = [t_interval(series[step] for series in smooth) for step in steps]
    plural = "" if len(smooth) == 1 else "s"
    means = [interval.mean for interval in intervals]
    dot = "o" if len(steps) <= 30 and window == 1 else ""
    ax.plot(steps, means, color=colour, lw=2, marker=dot, ms=4, label=f"{label} ({len(smooth)} seed{plural})")
    if len(smooth) > 1:
        low, high = [i.low for i in intervals], [i.high for i in intervals]
        ax.fill_between(steps, low, high, color=colour, alpha=0.15, lw=0)


def _smooth(series: Series, window: int) -> dict[int, float]:
    steps = [step for step in sorted(series) if math.isfinite(series[step])]
    return dict(zip(steps, smoothed([series[step] for step in steps], window), strict=True))


def styled(ax: Axes, title: str, ylabel: str) -> None:
    """The house style of an axis: shares, light grid, no box."""
    ax.set_title(title, loc="left", fontsize=11)
    ax.set_xlabel("step")
    ax.set_ylabel(ylabel)
    ax.grid(alpha=0.25)
    ax.spines[["top", "right"]].set_visible(False)
    if ax.get_legend_handles_labels()[0]:
        ax.legend(frameon=False, fontsize=9)


def save(figure: Figure, path: Path) -> Path:
    """The path of the PNG; no date in its metadata, so that equal data make equal files."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.tight_layout()
    figure.savefig(path, dpi=130, metadata={"Software": None})
    plt.close(figure)
    return path


def series_of(rows: Sequence[Mapping[str, Any]], name: str) -> dict[int, float]:
    """One quantity of `METRIC_NAMES` by step."""
    found = {int(row["step"]): metric(row, name) for row in rows}
    return {step: value for step, value in found.items() if math.isfinite(value)}


def training_figure(runs: Mapping[str, Sequence[Sequence[Mapping[str, Any]]]], path: Path) -> Path:
    """Right alone, asked, and repaired over training; one colour per label, one list of rows per seed."""
    panels = (
        ("first_pass_accuracy", "right alone (first-pass accuracy)"),
        ("intervention_rate", "teacher asked (intervention rate)"),
        ("repair_rate", "repaired when asked (repair rate)"),
    )
    figure, axes = plt.subplots(1, 3, figsize=(14, 3.9), sharey=True)
    for ax, (name, title) in zip(axes, panels, strict=True):
        for i, (label, seeds) in enumerate(runs.items()):
            series = [series_of(rows, name) for rows in seeds]
            longest = max((len(s) for s in series), default=0)
            colour = COLOURS[i % len(COLOURS)]
            # An arm without repairs has nothing to show in the repair panels.
            if any(any(s.values()) for s in series):
                curve(ax, series, label, colour, window=max(1, longest // 10))
        ax.set_ylim(0, 1)
        styled(ax, title, "share" if ax is axes[0] else "")
    return save(figure, path)


def error_type_counts(rows: Sequence[TraceRow]) -> dict[str, tuple[int, int]]:
    """Error type -> (repaired, diagnosed) over slots with a patch; a patch of two types counts twice."""
    counts: dict[str, tuple[int, int]] = {}
    for slot in (slot for row in rows for slot in row.slots):
        for kind in slot.patch.error_types if slot.patch else ():
            good, total = counts.get(kind, (0, 0))
            counts[kind] = (good + (slot.status == "repaired"), total + 1)
    order = [kind.value for kind in ErrorType]
    return dict(sorted(counts.items(), key=lambda item: order.index(item[0]) if item[0] in order else 99))


def error_type_figure(rows: Sequence[TraceRow], path: Path) -> Path:
    """How often each error type was diagnosed, and which share was repaired (95 % Wilson interval)."""
    counts = error_type_counts(rows)
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 3.6), sharey=True)
    names = list(counts)[::-1]
    shares = [wilson_interval(*counts[name]) for name in names]
    left.barh(names, [counts[name][1] for name in names], color=COLOURS[5], alpha=0.75)
    errors = [[s.mean - s.low for s in shares], [s.high - s.mean for s in shares]]
    right.barh(
        names,
        [s.mean for s in shares],
        xerr=errors,
        color=COLOURS[0],
        alpha=0.85,
        ecolor="#1f2328",
        capsize=3,
    )
    right.set_xlim(0, 1)
    for ax, title, label in ((left, "diagnosed", "patches"), (right, "repaired", "share of the patches")):
        styled(ax, title, "")
        ax.set_xlabel(label)
    return save(figure, path)


def render_figures(run_dirs: Mapping[str, Sequence[Path]], out_dir: Path) -> list[Path]:
    """The figures of some runs: `training.png`, and `error_types.png` where there are traces.

    Args:
        run_dirs: Label -> the run directories of its seeds.
        out_dir: Where the PNG files go.
    """
    metrics = {label: [read_metrics(run) for run in runs] for label, runs in run_dirs.items()}
    made = [training_figure(metrics, out_dir / "training.png")]
    traces = [row for runs in run_dirs.values() for run in runs for row in read_traces(run)]
    if error_type_counts(traces):
        made.append(error_type_figure(traces, out_dir / "error_types.png"))
    else:
        warnings.warn("no traced patch: error_types.png was not drawn", TraceWarning, stacklevel=2)
    return made
