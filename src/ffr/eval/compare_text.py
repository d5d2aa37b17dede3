"""A comparison for the terminal, as Markdown and as JSON; numbers are points of 100."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from ffr.eval.compare import CompareResult, Comparison
from ffr.eval.table_text import json_value, markdown_table, points

LEGEND = (
    "Difference: second less first, in points. Intervals: 95 %; t: clustered by video, Student's t; "
    "bootstrap: videos drawn again. Only a, only b: questions that one run alone has fully right. "
    "p: exact McNemar, two-sided; Holm: corrected for the number of tests."
)


def p_text(value: float) -> str:
    """A p-value with three digits, a dash for NaN.

    Example:
        >>> p_text(0.21875), p_text(0.00001)
        ('0.219', '<0.001')
    """
    if math.isnan(value):
        return "-"
    return "<0.001" if value < 0.001 else f"{value:.3f}"


def signed(value: float) -> str:
    """A difference in points with its sign.

    Example:
        >>> signed(0.0153)
        '+1.5'
    """
    return "-" if math.isnan(value) else f"{100 * value:+.1f}"


def comparison_cells(result: CompareResult) -> tuple[list[str], list[list[str]]]:
    """Headings and cells of the table."""
    titles = ["benchmark", "frames", "seeds", result.first, result.second, "difference", "t", "bootstrap"]
    titles += ["pairs", "videos", "only a", "only b", "p", "Holm"]
    return titles, [_cells(line) for line in result.lines]


def _cells(line: Comparison) -> list[str]:
    low, high = line.difference.low, line.difference.high
    return [
        line.title,
        str(line.num_frames),
        ", ".join(line.seeds) if len(line.seeds) == 1 else f"mean of {len(line.seeds)}",
        points(line.first),
        points(line.second),
        signed(line.difference.mean),
        f"[{signed(low)}, {signed(high)}]",
        f"[{signed(line.bootstrap[0])}, {signed(line.bootstrap[1])}]",
        str(line.num_pairs),
        str(line.num_videos),
        "-" if line.only_first is None else str(line.only_first),
        "-" if line.only_second is None else str(line.only_second),
        p_text(line.p_value),
        p_text(line.adjusted),
    ]


def remarks(result: CompareResult) -> list[str]:
    """In what the runs differ, and what a reader should know."""
    return [*(f"not the same: {text}" for text in result.differences), *result.notes]


def comparison_rich(result: CompareResult) -> RenderableType:
    """For a terminal."""
    titles, rows = comparison_cells(result)
    head = f"a = {result.first}, b = {result.second}, profile {result.profile}"
    shown = cells_table([*titles[:3], "a", "b", *titles[5:]], rows, title=head)
    parts: list[RenderableType] = [shown, *(Text(text, style="yellow") for text in remarks(result))]
    return Group(*parts, Text(LEGEND, style="dim"))


def cells_table(titles: Sequence[str], rows: Sequence[Sequence[str]], *, title: str) -> Table:
    """A table of texts, the first column to the left."""
    shown = Table(box=SIMPLE_HEAD, title=title, title_justify="left", pad_edge=False)
    for place, name in enumerate(titles):
        shown.add_column(name, justify="left" if place == 0 else "right", overflow="fold")
    for row in rows:
        shown.add_row(*map(Text, row))
    return shown


def comparison_markdown(result: CompareResult) -> str:
    """As Markdown."""
    titles, rows = comparison_cells(result)
    out = [f"# {result.second} against {result.first}, profile {result.profile}", ""]
    out += markdown_table(titles, rows)
    out += ["", *(f"- {text}" for text in remarks(result))]
    return "\n".join([*out, "", LEGEND, ""])


def comparison_json(result: CompareResult) -> str:
    """As JSON: shares and differences as points of 100, what is unknown as null."""
    data: dict[str, Any] = json_value(asdict(result))
    data["lines"] = [
        {
            **json_value(asdict(line)),
            "first": json_value(line.first, share=True),
            "second": json_value(line.second, share=True),
            "bootstrap": json_value(line.bootstrap, share=True),
            "p_value": None if math.isnan(line.p_value) else line.p_value,
            "adjusted": None if math.isnan(line.adjusted) else line.adjusted,
        }
        for line in result.lines
    ]
    data |= {"first": result.first, "second": result.second}
    return json.dumps(data, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
