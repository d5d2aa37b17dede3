"""What every reader gives back, and how it refuses a row."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from ffr.data.paths import PathRefused, resolve_media
from ffr.types import Evidence, Sample

Row = Mapping[str, Any]


class DataError(ValueError):
    """A malformed annotation: the message names file, row, field and remedy.

    Example:
        >>> raise DataError(Path("a.json"), 3, "solution", "is empty; write <answer>B</answer>")
        Traceback (most recent call last):
        ffr.data.base.DataError: a.json: row 3: field 'solution' is empty; write <answer>B</answer>
    """

    def __init__(self, file: Path, row: int, field: str, problem: str) -> None:
        """Keep the parts; `problem` says what is wrong and what to do."""
        super().__init__(f"{file}: row {row}: field {field!r} {problem}")
        self.file, self.row, self.field, self.problem = file, row, field, problem


@dataclass(frozen=True, slots=True)
class SkippedRow:
    """A row that was left out, and why; never replaced by another.

    Example:
        >>> SkippedRow(file=Path("a.json"), row=3, field="path", reason="missing: no file").row
        3
    """

    file: Path
    row: int
    """1-based; 0 for the file as a whole."""
    field: str
    reason: str
    """`<status>: <words>`: missing, outside_root, malformed, media_filter or short_source."""

    @property
    def status(self) -> str:
        """The reason's first word, for counters."""
        return self.reason.partition(":")[0]


@dataclass(frozen=True, slots=True)
class ReadResult:
    """The samples of a file, and the rows that were left out.

    Example:
        >>> ReadResult(samples=(), skipped=()).counts
        {}
    """

    samples: tuple[Sample, ...]
    skipped: tuple[SkippedRow, ...]

    @property
    def counts(self) -> dict[str, int]:
        """Skipped rows by status."""
        out: dict[str, int] = {}
        for row in self.skipped:
            out[row.status] = out.get(row.status, 0) + 1
        return out


class RowReader:
    """Typed access to one row's fields; every complaint is a `DataError` with its place.

    Example:
        >>> RowReader(Path("a.json"), 1, {"problem": "Why?"}).text("problem")
        'Why?'
    """

    def __init__(self, file: Path, number: int, row: Row) -> None:
        """Wrap row `number` (1-based) of `file`."""
        self.file, self.number, self.row = file, number, row

    def error(self, field: str, problem: str) -> DataError:
        """A `DataError` of this row."""
        return DataError(self.file, self.number, field, problem)

    def text(self, field: str, *, default: str | None = None) -> str:
        """A non-empty string (or number, as text); `default` where the field is absent or null.

        Raises:
            DataError: If it is absent without a default, empty, or of another type.
        """
        value = self.row.get(field)
        if value is None:
            if default is None:
                raise self.error(field, "is missing; add it or remove the row")
            return default
        if isinstance(value, bool) or not isinstance(value, (str, int, float)):
            raise self.error(field, f"must be text, got {type(value).__name__}")
        if default is None and not str(value).strip():
            raise self.error(field, "is empty; fill it or remove the row")
        return str(value)

    def span(self, field: str, value: object) -> tuple[float, float]:
        """`[start, end]` in seconds with 0 <= start < end.

        Raises:
            DataError: If it is anything else.
        """
        numbers = self.numbers(field, value, 2)
        if not 0 <= numbers[0] < numbers[1]:
            raise self.error(field, f"must be [start, end] in seconds with 0 <= start < end, got {value!r}")
        return numbers[0], numbers[1]

    def numbers(self, field: str, value: object, count: int) -> tuple[float, ...]:
        """A list of `count` finite numbers.

        Raises:
            DataError: If it is anything else.
        """
        items = cast("list[object]", value) if isinstance(value, (list, tuple)) else []
        ok = len(items) == count and all(
            isinstance(x, (int, float)) and not isinstance(x, bool) for x in items
        )
        numbers = tuple(float(cast("float", x)) for x in items) if ok else ()
        if not ok or not all(abs(x) < float("inf") for x in numbers):
            raise self.error(field, f"must be a list of {count} numbers, got {value!r}")
        return numbers

    def clip(self) -> tuple[float, float] | None:
        """The optional `clip_s` field."""
        value = self.row.get("clip_s")
        return None if value is None else self.span("clip_s", value)

    def evidence(self) -> Evidence | None:
        """The optional `evidence` field: `{"spans_s": [[s, e]], "boxes": [[x0, y0, x1, y1]], "note": str}`.

        Raises:
            DataError: If it has another form, a box leaves 0..1 or has no area.
        """
        value = self.row.get("evidence")
        if value is None:
            return None
        if not isinstance(value, dict):
            raise self.error("evidence", "must be an object with spans_s, boxes and note")
        data = cast("dict[str, Any]", value)
        unknown = sorted(set(data) - {"spans_s", "boxes", "note"})
        if unknown:
            raise self.error("evidence", f"has unknown keys {unknown}; allowed: spans_s, boxes, note")
        spans = tuple(
            self.span("evidence.spans_s", s) for s in self._list("evidence.spans_s", data.get("spans_s"))
        )
        boxes: list[tuple[float, float, float, float]] = []
        for item in self._list("evidence.boxes", data.get("boxes")):
            x0, y0, x1, y1 = self.numbers("evidence.boxes", item, 4)
            if not (0 <= x0 < x1 <= 1 and 0 <= y0 < y1 <= 1):
                raise self.error(
                    "evidence.boxes", f"must be [x0, y0, x1, y1] in 0..1 with area, got {item!r}"
                )
            boxes.append((x0, y0, x1, y1))
        return Evidence(spans_s=spans, boxes=tuple(boxes), note=str(data.get("note") or ""))

    def _list(self, field: str, value: object) -> list[object]:
        if value is None:
            return []
        if not isinstance(value, list):
            raise self.error(field, f"must be a list, got {type(value).__name__}")
        return cast("list[object]", value)


def load_rows(path: Path) -> Iterator[tuple[int, Row]]:
    """Rows of a JSON list or a JSONL file with their 1-based numbers; blank lines don't count as rows.

    The form is told from the first character, not from the suffix.

    Raises:
        DataError: If the file is missing, is not UTF-8 JSON, or a row is not an object.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(path, 0, "file", f"can't be read as UTF-8 text ({error}); check the path") from error
    if text.lstrip().startswith("["):
        try:
            rows = json.loads(text)
        except ValueError as error:
            raise DataError(path, 0, "file", f"is not valid JSON ({error}); fetch it again") from error
        numbered: Iterator[tuple[int, object]] = enumerate(rows, start=1)
    else:
        numbered = _lines(path, text)
    for number, row in numbered:
        if not isinstance(row, dict):
            raise DataError(path, number, "row", f"must be a JSON object, got {type(row).__name__}")
        yield number, cast("Row", row)


def _lines(path: Path, text: str) -> Iterator[tuple[int, object]]:
    number = 0
    for line in text.split("\n"):
        if not line.strip():
            continue
        number += 1
        try:
            yield number, json.loads(line)
        except ValueError as error:
            raise DataError(
                path, number, "row", f"is not valid JSON ({error}); mend or remove the line"
            ) from error


def read_rows(
    path: Path,
    root: Path,
    parse: Callable[[RowReader], tuple[Sample, str, str]],
    *,
    check_media: bool,
    strict: bool,
) -> ReadResult:
    """The loop that all readers share.

    Args:
        path: Annotation file.
        root: Media root.
        parse: Gives a sample without its video path, the path as written, and the path's field.
        check_media: Whether a missing file skips the row (paths out of the root always do).
        strict: Whether a malformed row raises; otherwise it is skipped and listed as `malformed`.

    Raises:
        DataError: For an unreadable file, and for a malformed row if `strict`.
    """
    samples: list[Sample] = []
    skipped: list[SkippedRow] = []
    uids: set[str] = set()
    for number, row in load_rows(path):
        reader = RowReader(path, number, row)
        try:
            sample, written, field = parse(reader)
        except DataError as error:
            if strict:
                raise
            skipped.append(SkippedRow(path, number, error.field, f"malformed: {error.problem}"))
            continue
        try:
            video = resolve_media(root, written, must_exist=check_media)
        except PathRefused as refusal:
            skipped.append(SkippedRow(path, number, field, str(refusal)))
            continue
        uid = sample.uid if sample.uid not in uids else f"{sample.uid}#{number}"
        uids.add(uid)
        samples.append(replace(sample, uid=uid, video=video))
    return ReadResult(tuple(samples), tuple(skipped))
