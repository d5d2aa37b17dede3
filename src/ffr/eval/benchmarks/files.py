"""Annotation files as they lie on the hub: JSON, JSONL, TSV, parquet."""

from __future__ import annotations

import ast
import csv
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from ffr.eval.base import EvalDataError

MAX_CELL_CHARS = 10_000_000
"""Of one cell of a TSV; longer ones are refused."""


@dataclass(frozen=True, slots=True)
class SourceRow:
    """An official row and where it stands.

    Example:
        >>> SourceRow(Path("test.json"), 1, 0, {"id": 7}).number
        1
    """

    file: Path
    number: int
    """1-based position in the file, for messages."""
    source_index: int
    """0-based row of the official split."""
    record: Mapping[str, Any]
    split: str = ""
    """Empty for the benchmark's usual one."""


@dataclass(frozen=True, slots=True)
class Annotations:
    """The rows of a benchmark and the files that they were read from.

    Example:
        >>> Annotations().rows
        []
    """

    rows: list[SourceRow] = field(default_factory=list[SourceRow])
    files: dict[Path, str] = field(default_factory=dict[Path, str])
    """sha256 by path."""
    notes: tuple[str, ...] = ()


def locate(root: Path, benchmark: str, patterns: Sequence[str]) -> list[Path]:
    """The files of the first pattern that has any under `root`, sorted by name.

    Args:
        root: The benchmark's directory, or the annotation file itself.
        benchmark: For the message.
        patterns: Glob patterns relative to the root, the official name first.

    Raises:
        EvalDataError: If the root doesn't exist or no pattern has a file.
    """
    if root.is_file():
        return [root]
    if not root.is_dir():
        raise EvalDataError(f"{benchmark}: no directory {root}; pass the folder with its annotation files")
    for pattern in patterns:
        found = sorted(path for path in root.glob(pattern) if path.is_file())
        if found:
            return found
    raise EvalDataError(
        f"{benchmark}: no annotation file under {root}; expected {' or '.join(patterns)} as on the hub "
        "(`ffr doctor data` lists what each benchmark needs)"
    )


def read_split(paths: Sequence[Path]) -> Annotations:
    """The rows of some files, the shards of one split."""
    out = Annotations()
    for path in paths:
        add_rows(out, path, read_records(path), start=len(out.rows))
    return out


def add_rows(out: Annotations, path: Path, rows: Iterable[Mapping[str, Any]], *, start: int = 0) -> None:
    """Adds a file's rows; `start` is the position of its first one in the official split."""
    out.files[path] = file_sha256(path)
    for index, record in enumerate(rows):
        out.rows.append(SourceRow(path, index + 1, start + index, record))


def read_records(path: Path) -> Iterator[Mapping[str, Any]]:
    """Rows of a file; its form is told by the suffix, JSON and JSONL by the first character.

    Raises:
        EvalDataError: If it can't be read, or a row is not an object.
    """
    if path.suffix == ".parquet":
        yield from _parquet(path)
        return
    if path.suffix in (".tsv", ".csv"):
        yield from _table(path, "\t" if path.suffix == ".tsv" else ",")
        return
    data = read_json(path)
    rows = cast("list[object]", data) if isinstance(data, list) else [data]
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            raise EvalDataError(f"{path}, row {number}: must be an object, got {type(row).__name__}")
        yield cast("dict[str, Any]", row)


def read_json(path: Path) -> Any:
    """A JSON file; the list of its rows if it is JSONL.

    Raises:
        EvalDataError: If it is not UTF-8 JSON.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise EvalDataError(f"{path}: can't be read as UTF-8 text ({error}); fetch it again") from None
    try:
        if path.suffix == ".jsonl":
            return _lines(path, text)
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise EvalDataError(f"{path}: is not valid JSON ({error}); fetch it again") from None


def _lines(path: Path, text: str) -> list[Any]:
    rows: list[Any] = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            rows.append(json.loads(line))
        except (ValueError, RecursionError) as error:
            raise EvalDataError(
                f"{path}, line {number}: is not valid JSON ({error}); fetch it again"
            ) from None
    return rows


def _table(path: Path, delimiter: str) -> Iterator[Mapping[str, Any]]:
    csv.field_size_limit(MAX_CELL_CHARS)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            for row in csv.DictReader(file, delimiter=delimiter):
                yield {str(key): _cell(value) for key, value in row.items() if key is not None}
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise EvalDataError(f"{path}: can't be read as a table ({error}); fetch it again") from None


def _cell(value: object) -> object:
    """A cell's text; lists and objects, which tables hold as Python or JSON text, as such."""
    if not isinstance(value, str) or value[:1] not in ("[", "{"):
        return None if value == "" else value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return _literal(value)


def _literal(text: str) -> object:
    """A Python literal; the text itself if it is none."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return text


def _parquet(path: Path) -> Iterator[Mapping[str, Any]]:
    try:
        import pyarrow.parquet as parquet
    except ImportError:
        raise EvalDataError(
            f"{path}: reading parquet needs pyarrow; pip install pyarrow, or use the JSON file"
        ) from None
    try:
        yield from cast("list[dict[str, Any]]", cast("Any", parquet).read_table(path).to_pylist())
    except (OSError, ValueError) as error:  # ArrowInvalid is a ValueError
        raise EvalDataError(f"{path}: is not a readable parquet file ({error}); fetch it again") from None


def file_sha256(path: Path) -> str:
    """sha256 (hex) of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
