"""The leak report over a file of patches: rates with exact intervals, by layer, error type and prompt.

Reads what `ffr teach` writes, the label files of the project, and rows of strangers: a question, its gold
answer, and the patch flat in the row or under "patch". No model, no torch; scipy is loaded when first needed.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast

from ffr.config import LeakConfig
from ffr.data.base import DataError, RowReader, load_rows
from ffr.data.video_r1 import parse_options
from ffr.fix.leak import check_leak
from ffr.types import ErrorType, EvidencePatch, LeakReport, ProblemType, Sample, SpatialRegion

PATCH_FIELDS: Final = ("error_types", "key_frames", "temporal_markers", "spatial_regions", "guidance")
LABELS: Final = ("direct", "partial", "leak", "clean")
"""`leak` is for authors who do not tell direct from partial."""
MAX_PROBLEMS: Final = 20
CONFIDENCE: Final = 0.95


@dataclass(frozen=True, slots=True)
class AuditRow:
    """One patch with its question.

    Example:
        >>> AuditRow(1, sample, patch, scenario="logic").label  # doctest: +SKIP
        ''
    """

    number: int
    """1-based row of the file."""
    sample: Sample
    patch: EvidencePatch
    scenario: str = ""
    prompt_config: str = ""
    label: str = ""


@dataclass(frozen=True, slots=True)
class AuditFile:
    """The patches of a file and what could not be read.

    Example:
        >>> AuditFile(rows=(), num_without_patch=0, errors=()).rows
        ()
    """

    rows: tuple[AuditRow, ...]
    num_without_patch: int
    """Rows whose repair has no patch: nothing to leak."""
    errors: tuple[DataError, ...]


@dataclass(frozen=True, slots=True)
class Rate:
    """A count of a total with its exact interval (Clopper and Pearson 1934).

    Example:
        >>> rate_of(0, 10).high < 0.31
        True
    """

    count: int
    total: int
    low: float
    high: float

    @property
    def share(self) -> float:
        """The count over the total; 0 for no rows."""
        return self.count / self.total if self.total else 0.0


@dataclass(frozen=True, slots=True)
class LeakAudit:
    """Rates of a file; a row counts once per layer that hits and once per error type it names.

    Example:
        >>> audit_rows([]).overall.total
        0
    """

    overall: Rate
    tables: Mapping[str, Mapping[str, Rate]]
    """`layer`, `error type`, `scenario`, `prompt configuration`, and `label` where rows carry labels."""
    findings: tuple[tuple[AuditRow, LeakReport], ...]
    """Every row with its report."""


def rate_of(count: int, total: int) -> Rate:
    """The share with its two-sided 95 % Clopper-Pearson interval; [0, 1] for no rows."""
    if total == 0:
        return Rate(0, 0, 0.0, 1.0)
    stats: Any = importlib.import_module("scipy.stats")
    low, high = stats.binomtest(count, total).proportion_ci(CONFIDENCE, method="exact")
    return Rate(count, total, float(low), float(high))


def read_patches(path: Path) -> AuditFile:
    """Read a file of patches; bad rows are collected, none is dropped in silence.

    Args:
        path: JSONL or a JSON list: question, options, gold (or answer), problem_type, and the patch's fields
            at top level or under "patch"; optional uid or id, scenario, prompt_config, label.

    Raises:
        DataError: The file itself cannot be read.
    """
    rows: list[AuditRow] = []
    errors: list[DataError] = []
    without = 0
    for number, row in load_rows(path):
        reader = RowReader(path, number, row)
        try:
            patch = _patch(reader)
            if patch is None:
                without += 1
                continue
            rows.append(_audit_row(reader, patch))
        except DataError as error:
            errors.append(error)
    return AuditFile(tuple(rows), without, tuple(errors))


def _audit_row(reader: RowReader, patch: EvidencePatch) -> AuditRow:
    label = reader.text("label", default="")
    if label and label not in LABELS:
        raise reader.error("label", f"is {label!r}; use one of {', '.join(LABELS)} or leave it out")
    gold = "gold" if reader.row.get("gold") is not None else "answer"
    kind = reader.text(
        "problem_type", default=_kind_of(reader.row.get(gold), bool(reader.row.get("options")))
    )
    if kind not in [str(known) for known in ProblemType]:
        raise reader.error("problem_type", f"is {kind!r}; use one of {', '.join(map(str, ProblemType))}")
    uid = reader.text("uid", default=reader.text("id", default=f"row {reader.number}"))
    options = parse_options(reader) if reader.row.get("options") else ()
    given = reader.row.get(gold)
    answer = str(given) if isinstance(given, (int, float)) else reader.text(gold).strip()
    if options:
        answer = next((option.label for option in options if option.text == answer), answer.strip("()."))
        if answer not in {option.label for option in options}:
            raise reader.error(gold, f"is {answer[:40]!r}, no option's letter or text; write its letter")
    sample = Sample(
        uid=uid,
        question=reader.text("question"),
        answer=answer,
        problem_type=ProblemType(kind),
        video=Path(reader.text("video", default="unseen")),
        options=options,
        media_type=reader.text("media_type", default="video"),
    )
    return AuditRow(
        number=reader.number,
        sample=sample,
        patch=patch,
        scenario=reader.text("scenario", default=""),
        prompt_config=reader.text("prompt_config", default=""),
        label=label,
    )


def _kind_of(gold: object, options: bool) -> str:
    if options:
        return "multiple choice"
    return "numerical" if re.fullmatch(r"-?\d+(?:\.\d+)?", str(gold).strip()) else "free-form"


def _patch(reader: RowReader) -> EvidencePatch | None:
    """The row's patch, unbounded on purpose: what breaks the bounds is the gate's `schema` layer's to say."""
    nested = reader.row.get("patch", reader.row)
    if nested is None:
        return None
    if not isinstance(nested, dict):
        raise reader.error("patch", f"must be an object or null, got {type(nested).__name__}")
    at = RowReader(reader.file, reader.number, cast("dict[str, Any]", nested))
    if not any(at.row.get(name) for name in PATCH_FIELDS):
        if not any(name in at.row for name in PATCH_FIELDS):
            raise reader.error("guidance", f"is missing; a patch has fields {', '.join(PATCH_FIELDS)}")
        return None
    kinds = [str(kind) for kind in _items(at, "error_types")]
    unknown = [kind for kind in kinds if kind not in [str(known) for known in ErrorType]]
    if unknown:
        raise at.error("error_types", f"has {unknown[0]!r}; use {', '.join(map(str, ErrorType))}")
    markers = _items(at, "temporal_markers")
    if not all(isinstance(marker, str) for marker in markers):
        raise at.error("temporal_markers", "must be a list of texts")
    return EvidencePatch(
        error_types=tuple(ErrorType(kind) for kind in kinds),
        key_frames=tuple(_frames(at, "key_frames", item) for item in _items(at, "key_frames")),
        temporal_markers=tuple(str(marker) for marker in markers),
        spatial_regions=tuple(_region(at, item) for item in _items(at, "spatial_regions")),
        guidance=at.text("guidance", default=""),
    )


def _items(at: RowReader, field: str) -> list[object]:
    value = at.row.get(field)
    if value is None:
        return []
    if not isinstance(value, list):
        raise at.error(field, f"must be a list, got {type(value).__name__}")
    return cast("list[object]", value)


def _frames(at: RowReader, field: str, value: object) -> tuple[int, int]:
    start, end = at.numbers(field, value, 2)
    if start != int(start) or end != int(end):
        raise at.error(field, f"must hold whole frame numbers, got {value!r}")
    return int(start), int(end)


def _region(at: RowReader, value: object) -> SpatialRegion:
    if not isinstance(value, dict):
        raise at.error("spatial_regions", 'must hold objects {"frames": [..], "box": [..]}')
    region = cast("dict[str, Any]", value)
    frames = _frames(at, "spatial_regions.frames", region.get("frames"))
    x0, y0, x1, y1 = at.numbers("spatial_regions.box", region.get("box"), 4)
    return SpatialRegion(frames, (x0, y0, x1, y1))


def audit_rows(rows: Iterable[AuditRow], cfg: LeakConfig = LeakConfig()) -> LeakAudit:
    """Run the leak gate over the rows and count.

    Args:
        rows: Patches with their questions.
        cfg: Limits of the gate; an audit checks even where a run has switched the gate off.
    """
    cfg = cfg.model_copy(update={"enabled": True})
    findings = tuple((row, check_leak(row.patch, row.sample, cfg)) for row in rows)
    groups: dict[str, dict[str, list[bool]]] = {}

    def count(table: str, name: str, leaked: bool) -> None:
        groups.setdefault(table, {}).setdefault(name, []).append(leaked)

    for row, report in findings:
        for finding in report.findings:
            count("layer", finding.layer, finding.leaked)
        for kind in dict.fromkeys(row.patch.error_types):
            count("error type", str(kind), report.leaked)
        count("prompt configuration", row.prompt_config or "not stated", report.leaked)
        if row.scenario:
            count("scenario", row.scenario, report.leaked)
        if row.label:
            count("label", row.label, report.leaked)
    tables = {
        table: {name: rate_of(sum(hits), len(hits)) for name, hits in named.items()}
        for table, named in groups.items()
    }
    overall = rate_of(sum(report.leaked for _, report in findings), len(findings))
    return LeakAudit(overall, tables, findings)


def audit_json(audit: LeakAudit) -> dict[str, Any]:
    """The audit as a JSON-serialisable dictionary, with every alarm's row, field and reason."""

    def rate(value: Rate) -> dict[str, Any]:
        interval = [round(value.low, 6), round(value.high, 6)]
        return {"leaks": value.count, "rows": value.total, "rate": value.share, "interval_95": interval}

    alarms = [
        {
            "row": row.number,
            "uid": row.sample.uid,
            "label": row.label,
            "findings": [
                {"layer": f.layer, "field": f.field, "reason": f.reason} for f in report.findings if f.leaked
            ],
        }
        for row, report in audit.findings
        if report.leaked
    ]
    tables = {
        table: {name: rate(value) for name, value in named.items()} for table, named in audit.tables.items()
    }
    return {"overall": rate(audit.overall), "tables": tables, "alarms": alarms}


def problems_of(errors: Sequence[DataError]) -> list[str]:
    """The first complaints about rows, and how many more there are."""
    lines = [str(error) for error in errors[:MAX_PROBLEMS]]
    more = len(errors) - len(lines)
    return [*lines, f"... and {more} rows more"] if more > 0 else lines
