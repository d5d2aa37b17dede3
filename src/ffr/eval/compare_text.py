"""A comparison for the terminal, as Markdown and as JSON; numbers are points of 100."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from ffr.eval.compare import CompareResult, Comparison
from ffr.eval.table_text import json_value, markdown_table, points, stacked_table

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
    head = f"a = {result.first}, b = {result.second}, profile {result.profile}"
    titles = [
        "benchmark",
        "a",
        "b",
        "difference\nbootstrap",
        "pairs\nvideos",
        "only\na",
        "only\nb",
        "p\nHolm",
    ]
    shown = stacked_table(titles, head)
    for row in comparison_cells(result)[1]:
        seeds = row[2] if row[2].startswith("mean") else f"seed {row[2]}"
        cells = [f"{row[0]}\n  {row[1]} frames, {seeds}", *row[3:5], f"{row[5]}\n{row[7]}"]
        cells += [f"{row[8]}\n{row[9]}", *row[10:12], f"{row[12]}\n{row[13]}"]
        shown.add_row(*map(Text, cells))
    parts: list[RenderableType] = [shown, *(Text(text, style="yellow") for text in remarks(result))]
    return Group(*parts, Text(LEGEND, style="dim"))


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
