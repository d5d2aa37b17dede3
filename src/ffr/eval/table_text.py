"""A table for the terminal, as Markdown and as JSON; numbers are 0-100."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from ffr.eval.stats import Estimate
from ffr.eval.table import EvalTable, Line

MARKDOWN_FILE, JSON_FILE = "table.md", "table.json"
PROFILE_TITLES = {
    "video_r1": "strict",
    "robust": "robust",
    "official": "official",
    "lmms_eval": "lmms-eval",
    "vlmevalkit": "VLMEvalKit",
}
LEGEND = (
    "strict: Video-R1's comparison of strings; robust: as a person reads the answer. Intervals: 95 %, "
    "clustered by video. A question without an output counts as 0; * marks such lines. No form: outputs "
    "without the <think> and <answer> that the prompt asks for; no answer: outputs in which the robust "
    "profile finds none; cut: outputs that ended at the limit of tokens. Chance: a blind guess among the "
    "options."
)
OPTIONS_TITLE = "Test-time options (more than one answer per question; not comparable with plain accuracy)"


SHARES = ("chance", "no form", "no answer", "cut", "scored")


@dataclass(frozen=True, slots=True)
class _Row:
    part: str
    """Empty for a whole benchmark."""
    line: Line
    cells: Sequence[str]


def points(value: float, digits: int = 1) -> str:
    """A share as points of 100, a dash for NaN.

    Example:
        >>> points(0.6312), points(float("nan"))
        ('63.1', '-')
    """
    return "-" if math.isnan(value) else f"{100 * value:.{digits}f}"


def interval(estimate: Estimate) -> str:
    """A share with its interval; the share alone where there is none (questions on one video only).

    Example:
        >>> interval(Estimate(0.631, 0.6, 0.66, 0.015, 100, 50, 1.2))
        '63.1 [60.0, 66.0]'
    """
    if math.isnan(estimate.low):
        return points(estimate.mean)
    return f"{points(estimate.mean)} [{points(estimate.low)}, {points(estimate.high)}]"


def errors_text(errors: Mapping[str, int]) -> str:
    """Missing outputs by status in words.

    Example:
        >>> errors_text({"timeout": 2, "no_row": 1})
        '2 timeout, 1 no_row'
    """
    return ", ".join(f"{count} {status}" for status, count in errors.items())


def _rows(table: EvalTable, lines: Sequence[Line]) -> list[_Row]:
    """The table's rows; an overall number other than the mean has a row of its own."""
    rows: list[_Row] = []
    for line in lines:
        shares = [
            points(line.chance),
            points(line.format_failures),
            points(line.no_answer),
            points(line.cut),
            f"{line.num_scored}/{line.num_total}",
        ]
        rows.append(_Row(line.part, line, [interval(line.accuracy[p]) for p in table.profiles] + shares))
        for part, found in ((line.headline, line.overall), ("delta-knowledge", line.delta_knowledge)):
            if found:
                cells = [interval(found[p]) for p in table.profiles]
                rows.append(_Row(part, line, cells + [""] * len(shares)))
    return rows


def _titles(table: EvalTable) -> list[str]:
    return [*(PROFILE_TITLES.get(profile, profile) for profile in table.profiles), *SHARES]


def _full_name(line: Line, part: str) -> str:
    star = "*" if line.num_scored < line.num_total else ""
    mode = "" if line.cell.mode == "plain" else f", {line.cell.mode}"
    return f"{line.title}{': ' if part else ''}{part}{star}{mode}"


def remarks(table: EvalTable) -> list[str]:
    """What the columns have no room for: covered parts, seeds one by one, delta-knowledge, notes."""
    out: list[str] = []
    for line in (*table.lines, *table.option_lines):
        name = f"{_full_name(line, line.part)}, {line.cell.num_frames} frames"
        if line.errors:
            shown = ", ".join(f"{PROFILE_TITLES.get(p, p)} {points(v)}" for p, v in line.covered.items())
            alone = f"; over the {line.num_scored} outputs alone {shown}" if shown else ""
            missing = line.num_total - line.num_scored
            out.append(f"{name}: {missing} without an output ({errors_text(line.errors)}){alone}")
        if len(line.cell.seeds) > 1 and not line.part:
            for profile, by_seed in line.by_seed.items():
                shown = ", ".join(f"{seed}: {points(value)}" for seed, value in by_seed.items())
                out.append(f"{name}, {PROFILE_TITLES.get(profile, profile)} by seed: {shown}")
    return [*out, *table.notes]


def to_rich(table: EvalTable) -> RenderableType:
    """The table for a terminal: intervals under their numbers, so that 80 columns hold it."""
    parts: list[RenderableType] = []
    headed = f"{table.name} ({table.engine})"
    for title, lines in ((headed, table.lines), (OPTIONS_TITLE, table.option_lines)):
        if not lines:
            continue
        shown = stacked_table(["benchmark", *(name.replace(" ", "\n") for name in _titles(table))], title)
        for row in _rows(table, lines):
            seeds = f", {len(row.line.cell.seeds)} seeds" if len(row.line.cell.seeds) > 1 else ""
            name = f"  {row.part}" if row.part else _full_name(row.line, "")
            first = f"{name}\n  {row.line.cell.num_frames} frames{seeds}"
            shown.add_row(*(Text(text) for text in (first, *map(_two_lines, row.cells))))
        parts.append(shown)
    parts += [Text(text) for text in remarks(table)]
    parts.append(Text(LEGEND, style="dim"))
    return Group(*parts)


def stacked_table(titles: Sequence[str], title: str) -> Table:
    """An empty table with narrow gaps, the first column to the left."""
    shown = Table(box=SIMPLE_HEAD, title=title, title_justify="left", pad_edge=False, padding=(0, 1, 0, 0))
    for place, name in enumerate(titles):
        shown.add_column(name, justify="right" if place else "left", overflow="fold", no_wrap=place > 0)
    shown.columns[0].min_width = 12
    return shown


def _two_lines(cell: str) -> str:
    number, bracket, bounds = cell.partition(" [")
    return f"{number}\n{bounds.rstrip(']').replace(', ', '-')}" if bracket else cell


def to_markdown(table: EvalTable) -> str:
    """The table as Markdown."""
    out = [f"# {_escaped(table.name)}", "", f"Model `{table.model}`, engine `{table.engine}`.", ""]
    for title, lines in (("", table.lines), (OPTIONS_TITLE, table.option_lines)):
        if not lines:
            continue
        out += [f"## {title}", ""] if title else []
        out += markdown_table(
            ["benchmark", "frames", *_titles(table)],
            [
                [_full_name(row.line, row.part), str(row.line.cell.num_frames), *row.cells]
                for row in _rows(table, lines)
            ],
        )
        out.append("")
    out += [f"- {_escaped(text)}" for text in remarks(table)]
    return "\n".join([*out, "", _escaped(LEGEND), ""])


def markdown_table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table, the first column to the left, the others to the right."""
    out = [
        "| " + " | ".join(map(_escaped, titles)) + " |",
        "|---|" + "---:|" * (len(titles) - 1),
    ]
    return out + ["| " + " | ".join(_escaped(cell.strip()) for cell in row) + " |" for row in rows]


def _escaped(text: str) -> str:
    for mark in ("|", "*", "<"):
        text = text.replace(mark, f"\\{mark}")
    return " ".join(text.split())


def to_json(table: EvalTable) -> str:
    """The table as JSON: shares as 0-100, what is unknown as null."""
    return json.dumps(json_value(asdict(table)), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


_COUNTS = {"num", "num_clusters", "design_effect"}
_SHARES = {
    *("chance", "format_failures", "no_answer", "cut", "covered", "by_seed"),
    *("mean", "low", "high", "std_error"),
}


def json_value(value: Any, *, share: bool = False) -> Any:
    """Plain JSON of a result: fields that are shares times 100 and rounded to 4 digits, NaN as null."""
    if isinstance(value, Mapping):
        return {
            str(key): json_value(item, share=(share and key not in _COUNTS) or key in _SHARES)
            for key, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [json_value(item, share=share) for item in value]
    if isinstance(value, float):
        return None if not math.isfinite(value) else round(100 * value if share else value, 4)
    return value


def write_text(path: Path, text: str) -> Path:
    """Replaces a file in one step."""
    part = path.with_name(f".{path.name}.part")
    with part.open("w", encoding="utf-8", errors="replace") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)
    return path


def write_tables(run: Path, table: EvalTable) -> tuple[Path, Path]:
    """Writes `table.md` and `table.json` into a run's directory."""
    return (
        write_text(run / MARKDOWN_FILE, to_markdown(table)),
        write_text(run / JSON_FILE, to_json(table)),
    )
