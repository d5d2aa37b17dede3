"""The trace page: one HTML file that needs no server, no network and no library.

Everything a run wrote is hostile text here (questions, answers, teacher replies): jinja2 escapes all of it,
and a content security policy lets the browser run exactly the one script of this package and fetch nothing.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup
from PIL import Image

from ffr.report.charts import Chart, line_chart
from ffr.report.metrics import metric, nanmean, read_metrics
from ffr.report.rows import TraceRow
from ffr.report.table import table_cells
from ffr.report.trace import frame_path, read_traces, replace_text
from ffr.report.view import STATUS_WORDS, group_view, num_columns, stories

TEMPLATES = Path(__file__).parent / "templates"
THUMB_PX = 208
"""Longest side of a frame in the page; larger frames are shrunk, smaller ones kept as stored."""
MAX_FRAME_BYTES = 9_000_000
"""Limit on the frames of one page before base64; groups beyond it are left out, and counted."""
CHARTS = (
    ("first_pass_accuracy", "right alone", "first-pass accuracy"),
    ("intervention_rate", "teacher asked", "intervention rate"),
    ("repair_rate", "repaired when asked", "repair rate"),
)


class FrameBook:
    """The frames of a page, each once: a CSS class per content hash.

    Args:
        run_dir: The run whose `frames/` are read.
    """

    def __init__(self, run_dir: Path) -> None:
        """Start with no frames."""
        self.run_dir = run_dir
        self.images: dict[str, str] = {}
        self.num_bytes = 0
        self.missing: set[str] = set()

    def add(self, row: TraceRow) -> None:
        """Take in every frame that the group shows."""
        for view in row.observations.values():
            for frame in (*view.frames, *view.extra_frames):
                if frame.sha256 not in self.images and frame.sha256 not in self.missing:
                    self._load(frame.sha256)

    def name(self, sha256: str) -> str:
        """The CSS class of a frame; empty if its pixels were not stored."""
        return f"f{sha256[:20]}" if sha256 in self.images else ""

    def css(self) -> str:
        """One rule per frame with its data URI."""
        rule = '.f{}{{background-image:url("data:image/webp;base64,{}")}}'
        return "\n".join(rule.format(sha[:20], data) for sha, data in self.images.items())

    def _load(self, sha256: str) -> None:
        path = frame_path(self.run_dir, sha256)
        if not sha256 or not path.is_file():
            self.missing.add(sha256)
            return
        data = path.read_bytes()
        try:
            with Image.open(io.BytesIO(data)) as image:
                if max(image.size) > THUMB_PX:
                    image.thumbnail((THUMB_PX, THUMB_PX))
                    shrunk = io.BytesIO()
                    image.convert("RGB").save(shrunk, format="WEBP", quality=74, method=4)
                    data = shrunk.getvalue()
        except OSError:  # a damaged file is shown as missing, with the count in the page's footer
            self.missing.add(sha256)
            return
        self.num_bytes += len(data)
        self.images[sha256] = base64.b64encode(data).decode()


def choose_groups(rows: Sequence[TraceRow], max_groups: int) -> list[TraceRow]:
    """The most telling groups, in step order: repaired ones first, spread evenly over the steps.

    Order of interest: a repair beside a right or failed rollout, any repair, a blocked leak, a repair that
    failed, a mixed group, the rest.
    """
    ranked: dict[int, list[TraceRow]] = {}
    for row in rows:
        ranked.setdefault(_interest(row), []).append(row)
    chosen: list[TraceRow] = []
    for rank in sorted(ranked):
        chosen += _spread(sorted(ranked[rank], key=lambda row: row.step), max_groups - len(chosen))
    return sorted(chosen, key=lambda row: row.step)


def _interest(row: TraceRow) -> int:
    found = {slot.status for slot in row.slots}
    if "repaired" in found:
        return 0 if len(found) > 1 else 1
    order = ("leaked", "still_wrong", "teacher_failed", "over_budget")
    rank = next((i for i, status in enumerate(order) if status in found), len(order))
    return 2 + rank + (0 if len(found) > 1 else 1)


def _spread(rows: Sequence[TraceRow], count: int) -> list[TraceRow]:
    if count <= 0 or len(rows) <= count:
        return list(rows) if count > 0 else []
    if count == 1:
        return [rows[0]]
    return [rows[round(i * (len(rows) - 1) / (count - 1))] for i in range(count)]


def trace_metrics(rows: Sequence[TraceRow]) -> list[dict[str, Any]]:
    """Metrics rows estimated from the traced groups alone, for a run without `metrics.jsonl`."""
    by_step: dict[int, list[TraceRow]] = {}
    for row in rows:
        by_step.setdefault(row.step, []).append(row)
    out: list[dict[str, Any]] = []
    for step, found in sorted(by_step.items()):
        slots = [slot for row in found for slot in row.slots]
        asked = [slot for slot in slots if slot.repair is not None]
        out.append(
            {
                "step": step,
                "ffr/first_pass_accuracy": nanmean(float(s.first_verdict.correct) for s in slots),
                "ffr/intervention_rate": nanmean(float(s.repair is not None) for s in slots),
                "ffr/repair_success_rate": nanmean(float(s.status == "repaired") for s in asked),
            }
        )
    return out


def _charts(metrics: Sequence[dict[str, Any]]) -> list[tuple[Chart, str]]:
    steps = [int(row["step"]) for row in metrics]
    charts = [
        (line_chart(title, steps, [metric(row, name) for row in metrics]), note)
        for name, title, note in CHARTS
    ]
    return [(chart, note) for chart, note in charts if chart.svg]


def _header(run_dir: Path, rows: Sequence[TraceRow]) -> dict[str, Any]:
    metrics = read_metrics(run_dir)
    headings, cells = table_cells(run_dir, num_windows=8)
    config = _json(run_dir / "config.json")
    facts = [
        config.get("train", {}).get("algorithm"),
        Path(str(config.get("model", {}).get("path", ""))).name,
    ]
    return {
        "name": run_dir.resolve().name,
        "facts": [str(fact) for fact in facts if fact],
        "charts": _charts(metrics or trace_metrics(rows)),
        "from_traces": not metrics,
        "table": (headings, cells),
        "num_traces": len(rows),
    }


def _json(path: Path) -> dict[str, Any]:
    value = json.loads(path.read_text()) if path.is_file() else {}
    return value if isinstance(value, dict) else {}


def _signed(value: float, digits: int = 2) -> str:
    if not math.isfinite(value):
        return "?"
    sign = "\u2212" if value < -0.5 * 10**-digits else "+" if value > 0.5 * 10**-digits else ""
    return f"{sign}{abs(value):.{digits}f}"


def _aspect(width_px: int, height_px: int) -> str:
    return f"{max(width_px, 1)} / {max(height_px, 1)}"


def _environment(book: FrameBook) -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["signed"] = _signed
    environment.globals.update(
        frame_class=book.name, aspect=_aspect, num_columns=num_columns, status_words=STATUS_WORDS
    )
    return environment


def render_page(run_dir: Path | str, out: Path | str | None = None, max_groups: int = 40) -> Path:
    """The path of the page: one self-contained HTML file made from a run directory.

    Args:
        run_dir: A directory that `RunWriter` wrote.
        out: Where the page goes; `<run_dir>/index.html` when unset.
        max_groups: Groups shown at most, see `choose_groups`; the page says how many were left out.

    Raises:
        TraceError: A trace file is broken; the message names file, row and field.
    """
    run_dir = Path(run_dir)
    rows = read_traces(run_dir)
    book, shown = FrameBook(run_dir), []
    for row in choose_groups(rows, max_groups):
        if shown and book.num_bytes > MAX_FRAME_BYTES:
            break
        book.add(row)
        shown.append(row)
    groups = [group_view(row, i + 1) for i, row in enumerate(shown)]
    script = (TEMPLATES / "trace.js").read_text()
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    counts: dict[str, int] = {}
    for row in shown:
        for story in stories(row):
            counts[story] = counts.get(story, 0) + 1
    text = (
        _environment(book)
        .get_template("trace.html.j2")
        .render(
            run=_header(run_dir, rows),
            groups=groups,
            left_out=len(rows) - len(shown),
            missing=len(book.missing),
            story_counts=counts,
            script_hash=digest,
            # Our own files and base64 of images: the only text that goes in unescaped.
            script=Markup(script),
            style=Markup((TEMPLATES / "trace.css").read_text()),
            frames_css=Markup(book.css()),
        )
    )
    path = Path(out) if out is not None else run_dir / "index.html"
    replace_text(path, text)
    return path
