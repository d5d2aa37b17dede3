"""The sink that shows a run while it goes: a bar in a terminal, one line a step elsewhere."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from ffr.types import Trace

COLUMNS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("first", "{:.0%}", ("find/first_pass_accuracy", "ffr/first_pass_accuracy")),
    ("asked", "{:.0%}", ("fix/intervention_rate", "ffr/intervention_rate")),
    ("repaired", "{:.0%}", ("fix/repair_rate", "ffr/repair_rate", "ffr/repair_success_rate")),
    ("loss", "{:.4f}", ("train/loss", "loss")),
)
"""Heading, format, and the metric's names, the first that a step has: first-pass accuracy, intervention
rate, share of repairs that succeeded, loss."""

COST_COLUMNS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("sampled/s", "{:.0f}", ("speed/generate_tok_s",)),
    ("teacher", "{:.0%}", ("time/teacher_share",)),
    ("memory", "{:.1f} GiB", ("memory/peak_gib",)),
)
"""The same for what a step costs: sampled tokens a second, share of the step that waits for the teacher,
peak memory of the fullest process. Left out by engines that do not measure it."""

SUMMARY = ("steps", "reason/final_accuracy", "reason/reward_mean", "train/kl")
"""What the last line of a run shows of its last step; metrics.jsonl has everything."""


class RichProgress:
    """A sink (see `ffr.engines.Sink`) that shows step, accuracy, interventions, repairs, loss and ETA.

    Args:
        total_steps: What the bar counts to.
        display: `rich` (a bar when the console is a terminal, else as `plain`), `plain` (a line a step)
            or `none`.
        console: Where to draw; standard output when None.
        smoothing: Weight of the newest step in the shown averages, in (0, 1]; one step has few rollouts.
    """

    def __init__(
        self,
        total_steps: int,
        *,
        display: str = "rich",
        console: Console | None = None,
        smoothing: float = 0.2,
    ) -> None:
        self.console = console or Console()
        self.total_steps = total_steps
        self.display = "plain" if display == "rich" and not self.console.is_terminal else display
        self._smoothing = smoothing
        self._averages: dict[str, float] = {}
        self._bar: Progress | None = None
        self._task = TaskID(0)
        self._first: tuple[int, float] | None = None

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Shows one step; the bar appears with the first one."""
        if self.display == "none":
            return
        current = read_columns(values)
        if self.display == "plain":
            self._print_line(step, current)
            return
        for name, value in current.items():
            before = self._averages.get(name, value)
            self._averages[name] = before + self._smoothing * (value - before)
        bar = self._started()
        shown = "  ".join(f"{name} [bold]{value}[/]" for name, value in _words(self._averages))
        bar.update(self._task, completed=step, total=max(self.total_steps, step), shown=shown)

    def traces(self, step: int, traces: Sequence[Trace]) -> None:
        """Nothing: traces are for the run directory."""

    def finish(self, summary: Mapping[str, float]) -> None:
        """Takes the bar down and prints the summary's main numbers on one line; metrics.jsonl has all."""
        self.close()
        if self.display == "none":
            return
        shown = {name: summary[name] for name in SUMMARY if math.isfinite(summary.get(name, math.nan))}
        numbers = "  ".join(f"{name} {value:.4g}" for name, value in shown.items())
        self.console.print(f"done: {numbers}" if numbers else "done", highlight=False, soft_wrap=True)

    def close(self) -> None:
        """Takes the bar down; safe to call twice."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _started(self) -> Progress:
        if self._bar is None:
            self._bar = Progress(
                TextColumn("step"),
                MofNCompleteColumn(),
                BarColumn(bar_width=20),
                TextColumn("{task.fields[shown]}"),
                TextColumn("ETA"),
                TimeRemainingColumn(compact=True),
                console=self.console,
            )
            self._task = self._bar.add_task("", total=self.total_steps, shown="")
            self._bar.start()
        return self._bar

    def _print_line(self, step: int, current: Mapping[str, float]) -> None:
        now = time.monotonic()
        self._first = self._first or (step, now)
        done = step - self._first[0]
        left = (self.total_steps - step) * (now - self._first[1]) / done if done > 0 else math.nan
        words = [f"{name} {value}" for name, value in _words(current)]
        eta = f"ETA {duration(left)}" if math.isfinite(left) else "ETA -"
        line = "  ".join([f"step {step}/{self.total_steps}", *words, eta])
        self.console.print(line, highlight=False, soft_wrap=True)


def read_columns(values: Mapping[str, float]) -> dict[str, float]:
    """The shown quantities of one step's metrics; those that are missing or not finite are left out.

    Example:
        >>> read_columns({"find/first_pass_accuracy": 0.5, "train/loss": float("nan")})
        {'first': 0.5}
    """
    found: dict[str, float] = {}
    for name, _, keys in (*COLUMNS, *COST_COLUMNS):
        value = next((values[key] for key in keys if key in values), math.nan)
        if math.isfinite(value):
            found[name] = float(value)
    return found


def duration(seconds: float) -> str:
    """Seconds in words.

    Example:
        >>> duration(3725.0)
        '1:02:05'
    """
    whole = max(0, round(seconds))
    hours, rest = divmod(whole, 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}" if hours else f"{rest // 60}:{rest % 60:02d}"


def _words(values: Mapping[str, float]) -> list[tuple[str, str]]:
    """Heading and text of each column: all of `COLUMNS`, and of the costs those that are known."""
    known = [column for column in COST_COLUMNS if column[0] in values]
    return [(name, _written(fmt, values.get(name))) for name, fmt, _ in (*COLUMNS, *known)]


def _written(fmt: str, value: float | None) -> str:
    return "-" if value is None else fmt.format(value)
