"""What `ffr teach` shows while it works and when it is done: statuses, calls, tokens, cost, throughput."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping

from rich.console import Console, Group
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from ffr.cli.progress import duration
from ffr.config import Config

STATUSES = ("patched", "leaked", "teacher_failed", "over_budget", "media_error")
PLAIN_EVERY_S = 5.0


class TeachProgress:
    """A bar in a terminal, elsewhere a line now and then (`report.display`: rich, plain or none).

    Args:
        total: Rollouts to do.
        cfg: Display and prices.
        console: Where to draw.
    """

    def __init__(self, total: int, cfg: Config, console: Console) -> None:
        self.num_rows = 0
        """Rows written in this run."""
        self._statuses: Counter[str] = Counter()
        self._total = total
        self._cfg = cfg
        self._console = console
        self._started = self._printed = time.monotonic()
        display = cfg.report.display
        self._plain = display == "plain" or (display == "rich" and not console.is_terminal)
        self._bar: Progress | None = None
        self._task = TaskID(0)
        if display == "rich" and not self._plain and total:
            self._bar = Progress(
                TextColumn("rollouts"),
                MofNCompleteColumn(),
                BarColumn(bar_width=20),
                TextColumn("{task.fields[shown]}"),
                TextColumn("ETA"),
                TimeRemainingColumn(compact=True),
                console=console,
            )
            self._task = self._bar.add_task("", total=total, shown="")
            self._bar.start()

    def row(self, status: str, counters: Mapping[str, int]) -> None:
        """Count one finished rollout and show where things stand."""
        self.num_rows += 1
        self._statuses[status] += 1
        seconds = time.monotonic() - self._started
        words = [f"{name} {self._statuses[name]}" for name in STATUSES if self._statuses[name]]
        words += [spent_words(counters, self._cfg), f"{60 * self.num_rows / max(seconds, 1e-9):.0f}/min"]
        shown = "  ".join(words)
        if self._bar is not None:
            self._bar.update(self._task, completed=self.num_rows, shown=shown)
        elif self._plain and time.monotonic() - self._printed >= PLAIN_EVERY_S:
            self._printed = time.monotonic()
            left = seconds / self.num_rows * (self._total - self.num_rows)
            line = f"rollout {self.num_rows}/{self._total}  {shown}  ETA {duration(left)}"
            self._console.print(line, soft_wrap=True)

    def close(self) -> None:
        """Take the bar down; safe to call twice."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def spent_words(counters: Mapping[str, int], cfg: Config) -> str:
    """Calls, tokens and, where prices are known, the cost of this run, with what is only estimated.

    Example:
        >>> spent_words({"teacher_calls": 2, "prompt_tokens": 900, "completion_tokens": 80}, Config())
        '2 calls, 980 tokens'
        >>> spent_words({"teacher_calls": 1, "prompt_tokens": 70, "estimated_tokens": 70}, Config())
        '1 calls, 70 tokens (70 estimated: the server reports none)'
    """
    from ffr.fix.patch_file import cost_usd

    names = ("prompt_tokens", "completion_tokens", "blind_prompt_tokens", "blind_completion_tokens")
    total = sum(counters.get(name, 0) for name in names)
    words = f"{counters.get('teacher_calls', 0)} calls"
    if counters.get("blind_tests", 0):
        words += f", {counters['blind_tests']} blind tests"
    words += f", {total} tokens"
    estimated = counters.get("estimated_tokens", 0)
    if estimated:
        words += f" ({estimated} estimated: the server reports none)"
    leak, teacher = cfg.fix.leak, cfg.fix.teacher
    prices = (teacher.price_prompt_per_mtok, teacher.price_completion_per_mtok)
    if leak.blind == "model":
        prices += (leak.blind_price_prompt_per_mtok, leak.blind_price_completion_per_mtok)
    if any(prices):
        words += f", ${cost_usd(counters, cfg.fix):.4f}"
    return words


def summary_table(
    statuses: Mapping[str, int], num_rows: int, counters: Mapping[str, int], cfg: Config, seconds: float
) -> Group:
    """Rows by status (of the whole file), then what this run did, spent and met.

    Args:
        statuses: Of all rows in the file.
        num_rows: Rows written in this run.
        counters: Those of `OfflineRun`.
        cfg: Prices.
        seconds: Wall time of this run.
    """
    table = Table(box=None)
    table.add_column("status")
    table.add_column("rows", justify="right")
    table.add_column("share", justify="right")
    total = sum(statuses.values())
    for name in (*STATUSES, *sorted(set(statuses) - set(STATUSES))):
        if statuses.get(name):
            table.add_row(name, str(statuses[name]), f"{statuses[name] / total:.0%}")
    rate = 60 * num_rows / seconds if seconds > 0 else 0.0
    replayed = counters.get("cached", 0)
    lines = [
        f"this run: {num_rows} rows in {duration(seconds)} ({rate:.0f}/min), {spent_words(counters, cfg)}"
    ]
    lines[0] += f", {replayed} replayed from the journal" if replayed else ""
    met = {name: n for name, n in sorted(counters.items()) if name.startswith(("failure/", "leak/"))}
    if met:
        lines.append("met: " + ", ".join(f"{name} {n}" for name, n in met.items()))
    if counters.get("concurrency_halved", 0):
        lines.append(
            f"requests at a time: {counters['concurrency']} of {cfg.fix.teacher.concurrency} in the end, "
            f"{counters['concurrency_lowest']} at the lowest; halved {counters['concurrency_halved']} times"
        )
    return Group(table, *(Text(line) for line in lines))
