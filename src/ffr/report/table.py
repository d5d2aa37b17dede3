"""The find/fix/reason table: how often the student was right alone, was helped, and was right at last."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from ffr.report.metrics import metric, nanmean, read_metrics

COLUMNS: tuple[tuple[str, str, str], ...] = (
    ("first_pass_accuracy", "right first", "share"),
    ("intervention_rate", "asked", "share"),
    ("repair_rate", "repaired", "share"),
    ("leaked", "leaked", "number"),
    ("teacher_failed", "no teacher", "number"),
    ("final_accuracy", "right after", "share"),
    ("reward", "reward", "number"),
    ("kl", "KL", "small"),
)
"""Quantity of `METRIC_NAMES`, heading, how it is written."""


@dataclass(frozen=True, slots=True)
class Window:
    """The means of one window of steps.

    Example:
        >>> Window(first_step=0, last_step=9, values={"first_pass_accuracy": 0.5}).label
        '0-9'
    """

    first_step: int
    last_step: int
    values: Mapping[str, float]
    """Quantity of `METRIC_NAMES` -> mean over the window's steps; NaN where no step has it."""

    @property
    def label(self) -> str:
        """The steps in words."""
        return (
            str(self.first_step)
            if self.first_step == self.last_step
            else f"{self.first_step}-{self.last_step}"
        )


def windows(rows: Sequence[Mapping[str, Any]], *, num_windows: int = 8) -> list[Window]:
    """At most `num_windows` windows of nearly equal numbers of steps, in step order.

    The repair rate is weighted by the intervention rate: with groups of one size that is the share of
    all failures of the window that were repaired, not the mean of per-step shares.
    """
    by_step: dict[int, list[Mapping[str, Any]]] = {}
    for row in rows:
        by_step.setdefault(int(row["step"]), []).append(row)
    # Rows without any quantity of the table (an evaluation, a timing row) do not make a window.
    steps = [step for step in sorted(by_step) if any(_counts(row) for row in by_step[step])]
    count = min(num_windows, len(steps))
    edges = [round(i * len(steps) / count) for i in range(count + 1)] if count else []
    out: list[Window] = []
    for start, end in itertools.pairwise(edges):
        inside = [row for step in steps[start:end] for row in by_step[step]]
        out.append(Window(steps[start], steps[end - 1], _means(inside)))
    return out


def _counts(row: Mapping[str, Any]) -> bool:
    return any(math.isfinite(metric(row, name)) for name, _, _ in COLUMNS)


def _means(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    values = {name: nanmean(metric(row, name) for row in rows) for name, _, _ in COLUMNS}
    weights = [metric(row, "intervention_rate") for row in rows]
    if any(math.isfinite(weight) and weight > 0 for weight in weights):
        values["repair_rate"] = nanmean([metric(row, "repair_rate") for row in rows], weights)
    return values


def written(value: float, kind: str) -> str:
    """A value as the tables write it: `61 %`, `1.42`, `0.0031`, or `-` for NaN."""
    if not math.isfinite(value):
        return "-"
    if kind == "share":
        return f"{100 * value:.0f} %"
    return f"{value:.4f}" if kind == "small" else f"{value:.2f}"


def table_cells(run_dir: Path | str, *, num_windows: int = 8) -> tuple[list[str], list[list[str]]]:
    """Headings and rows of the table, as text; columns that no step has are left out."""
    found = windows(read_metrics(run_dir), num_windows=num_windows)
    columns = [c for c in COLUMNS if any(math.isfinite(w.values[c[0]]) for w in found)]
    headings = ["steps", *(heading for _, heading, _ in columns)]
    return headings, [[w.label, *(written(w.values[name], kind) for name, _, kind in columns)] for w in found]


def summary_table(run_dir: Path | str, *, num_windows: int = 8) -> Table:
    """The find/fix/reason table of a run, for `rich.print`."""
    headings, rows = table_cells(run_dir, num_windows=num_windows)
    caption = None if rows else "no metrics yet"
    table = Table(
        title="find, fix, reason",
        title_style="bold",
        caption=caption,
        box=SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
    )
    for i, heading in enumerate(headings):
        # On a narrow terminal headings wrap between words; words and numbers stay whole.
        widest = max(len(word) for word in [*heading.split(), *(row[i] for row in rows)])
        table.add_column(heading, justify="right" if i else "left", min_width=widest)
    for row in rows:
        table.add_row(*row)
    return table


def summary_text(run_dir: Path | str, *, num_windows: int = 8) -> str:
    """The same table as plain text, one line a window."""
    headings, rows = table_cells(run_dir, num_windows=num_windows)
    if not rows:
        return "find, fix, reason: no metrics yet"
    widths = [max(len(row[i]) for row in [headings, *rows]) for i in range(len(headings))]
    lines = [headings, ["-" * width for width in widths], *rows]
    return "\n".join("  ".join(_aligned(line, widths)) for line in lines)


def _aligned(cells: Sequence[str], widths: Sequence[int]) -> list[str]:
    return [
        f"{c:<{w}}" if i == 0 else f"{c:>{w}}" for i, (c, w) in enumerate(zip(cells, widths, strict=True))
    ]
