"""What `ffr eval` shows while it works, and the summary of a run's rows."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from ffr.cli.progress import duration
from ffr.eval.rows import EvalRow

PLAIN_EVERY_S = 5.0


class EvalProgress:
    """A bar in a terminal, elsewhere a line now and then: answers, accuracy so far, failures, ETA.

    Args:
        total: Answers of the whole run.
        done: Answers that are there already.
        console: Where to draw.
        display: `rich` (a bar when the console is a terminal), `plain` or `none`.
    """

    def __init__(self, total: int, done: int, console: Console, display: str = "rich") -> None:
        self.num_rows = 0
        """Rows of this call."""
        self._total, self._done = total, done
        self._right = self._unread = self._failed = 0
        self._console = console
        self._started = self._printed = time.monotonic()
        self._plain = display == "plain" or (display == "rich" and not console.is_terminal)
        self._bar: Progress | None = None
        self._task = TaskID(0)
        if display == "rich" and not self._plain and total > done:
            self._bar = Progress(
                TextColumn("answers"),
                MofNCompleteColumn(),
                BarColumn(bar_width=20),
                TextColumn("{task.fields[shown]}"),
                TextColumn("ETA"),
                TimeRemainingColumn(compact=True),
                console=console,
            )
            self._task = self._bar.add_task("", total=total, completed=done, shown="")
            self._bar.start()

    def row(self, row: EvalRow) -> None:
        """Counts one row and shows where things stand."""
        self.num_rows += 1
        robust = row.scores.get("robust")
        self._failed += bool(row.error)
        self._right += bool(robust and robust.value >= 1.0)
        self._unread += bool(robust and robust.rule == "none")
        seconds = time.monotonic() - self._started
        words = [
            f"right {self._right / self.num_rows:.1%}",
            f"{60 * self.num_rows / max(seconds, 1e-9):.0f}/min",
        ]
        words += [f"unreadable {self._unread}"] if self._unread else []
        words += [f"errors {self._failed}"] if self._failed else []
        shown = "  ".join(words)
        at = self._done + self.num_rows
        if self._bar is not None:
            self._bar.update(self._task, completed=at, shown=shown)
        elif self._plain and time.monotonic() - self._printed >= PLAIN_EVERY_S:
            self._printed = time.monotonic()
            left = seconds / self.num_rows * (self._total - at)
            self._console.print(f"answer {at}/{self._total}  {shown}  ETA {duration(left)}", soft_wrap=True)

    def close(self) -> None:
        """Takes the bar down; safe to call twice."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def error_lines(rows: Iterable[EvalRow], *, shown: int = 3) -> list[str]:
    """How many rows failed for which reason, with the first few of each.

    Example:
        >>> row = EvalRow(config_hash="a", uid="b/1", num_frames=4, seed=0, error="missing: x.mp4")
        >>> error_lines([row])
        ['WARNING: 1 answer is missing and counts as wrong: 1 missing', '  b/1: missing: x.mp4']
    """
    failed = [row for row in rows if row.error]
    if not failed:
        return []
    counts = Counter(row.error.partition(":")[0] for row in failed)
    kinds = ", ".join(f"{number} {status}" for status, number in sorted(counts.items()))
    noun = "answer is" if len(failed) == 1 else "answers are"
    lines = [f"WARNING: {len(failed)} {noun} missing and counts as wrong: {kinds}"]
    if len(failed) > 1:
        lines[0] = lines[0].replace("counts as", "count as")
    lines += [f"  {row.uid}: {row.error[:200]}" for row in failed[:shown]]
    if len(failed) > shown:
        lines.append(f"  ... and {len(failed) - shown} more")
    return lines
