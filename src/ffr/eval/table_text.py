"""A table for the terminal, as Markdown and as JSON; numbers are 0-100."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
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
    "clustered by video. A question without an output counts as 0; * marks such lines, whose accuracy over "
    "the outputs alone is given below. No form: outputs without the <think> and <answer> that the prompt "
    "asks for; no answer: outputs in which the robust profile finds none; cut: outputs that ended at the "
    "limit of tokens. Chance: a blind guess among the options."
)
OPTIONS_TITLE = "Test-time options (more than one answer per question; not comparable with plain accuracy)"


@dataclass(frozen=True, slots=True)
class _Column:
    title: str
    cell: Callable[[Line], str]


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
    """Missing outputs by status in words, a dash for none."""
    return ", ".join(f"{count} {status}" for status, count in errors.items()) or "-"


def _name(line: Line) -> str:
    return f"{'  ' if line.part else ''}{line.part or line.title}{_star(line)}"


def _full_name(line: Line) -> str:
    return f"{line.title}{': ' if line.part else ''}{line.part}{_star(line)}"


def _star(line: Line) -> str:
    return "*" if line.num_scored < line.num_total else ""


def _scored(line: Line) -> str:
    return f"{line.num_scored}/{line.num_total}"


def _overall(line: Line, profile: str) -> str:
    found = line.overall.get(profile)
    return "" if found is None else interval(found)


def _columns(table: EvalTable, lines: Sequence[Line]) -> list[_Column]:
    columns = [_Column("benchmark", _name)]
    if any(line.cell.mode != "plain" for line in lines):
        columns.append(_Column("option", lambda line: line.cell.mode))
    columns.append(_Column("frames", lambda line: str(line.cell.num_frames)))
    if any(len(line.cell.seeds) > 1 for line in lines):
        columns.append(_Column("seeds", lambda line: str(len(line.cell.seeds))))
    for profile in table.profiles:
        title = PROFILE_TITLES.get(profile, profile)
        columns.append(_Column(title, lambda line, p=profile: interval(line.accuracy[p])))
    for profile in table.profiles:
        headlines = {line.headline for line in lines if line.overall}
        if headlines:
            title = f"{'/'.join(sorted(headlines))}, {PROFILE_TITLES.get(profile, profile)}"
            columns.append(_Column(title, lambda line, p=profile: _overall(line, p)))
    columns += [
        _Column("chance", lambda line: points(line.chance)),
        _Column("no form", lambda line: points(line.format_failures)),
        _Column("no answer", lambda line: points(line.no_answer)),
        _Column("cut", lambda line: points(line.cut)),
        _Column("scored", _scored),
        _Column("errors", lambda line: errors_text(line.errors)),
    ]
    if not any(line.errors for line in lines):
        columns.pop()
    return columns


def remarks(table: EvalTable) -> list[str]:
    """What the columns have no room for: covered parts, seeds one by one, delta-knowledge, notes."""
    out: list[str] = []
    for line in (*table.lines, *table.option_lines):
        name = f"{_full_name(line)}, {line.cell.num_frames} frames"
        if line.cell.mode != "plain":
            name += f", {line.cell.mode}"
        if line.covered:
            shown = ", ".join(f"{PROFILE_TITLES.get(p, p)} {points(v)}" for p, v in line.covered.items())
            out.append(f"* {name}: over the {line.num_scored} outputs of {line.num_total} alone {shown}")
        for profile, found in line.delta_knowledge.items():
            out.append(f"{name}: delta-knowledge, {PROFILE_TITLES.get(profile, profile)}: {interval(found)}")
        if len(line.cell.seeds) > 1 and not line.part:
            for profile, by_seed in line.by_seed.items():
                shown = ", ".join(f"{seed}: {points(value)}" for seed, value in by_seed.items())
                out.append(f"{name}, {PROFILE_TITLES.get(profile, profile)} by seed: {shown}")
    return [*out, *table.notes]


def to_rich(table: EvalTable) -> RenderableType:
    """The table for a terminal."""
    parts: list[RenderableType] = []
    for title, lines in (
        (f"{table.name} ({table.engine})", table.lines),
        (OPTIONS_TITLE, table.option_lines),
    ):
        if not lines:
            continue
        shown = Table(box=SIMPLE_HEAD, title=title, title_justify="left", pad_edge=False)
        columns = _columns(table, lines)
        for place, column in enumerate(columns):
            shown.add_column(column.title, justify="left" if place == 0 else "right", overflow="fold")
        for line in lines:
            shown.add_row(*(Text(column.cell(line)) for column in columns))
        parts.append(shown)
    parts += [Text(text) for text in remarks(table)]
    parts.append(Text(LEGEND, style="dim"))
    return Group(*parts)


def to_markdown(table: EvalTable) -> str:
    """The table as Markdown."""
    out = [f"# {_escaped(table.name)}", "", f"Model `{table.model}`, engine `{table.engine}`.", ""]
    for title, lines in (("", table.lines), (OPTIONS_TITLE, table.option_lines)):
        if not lines:
            continue
        columns = _columns(table, lines)
        out += [f"## {title}", ""] if title else []
        out += markdown_table(
            [column.title for column in columns],
            [[column.cell(line) for column in columns] for line in lines],
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
