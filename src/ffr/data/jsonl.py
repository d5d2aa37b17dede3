"""Our own format: one `Sample` per line, nothing lost on a round trip."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

from ffr.data.base import DataError, ReadResult, RowReader, read_rows
from ffr.types import Option, ProblemType, Sample

_KEYS = frozenset(
    {
        "uid",
        "question",
        "answer",
        "problem_type",
        "video",
        "options",
        "media_type",
        "source",
        "scenario",
        "clip_s",
        "evidence",
        "meta",
    }
)


def sample_to_row(sample: Sample, root: Path) -> dict[str, Any]:
    """A sample as a JSON object, its video relative to `root`.

    Raises:
        ValueError: If the video is outside the root.
    """
    video = Path(os.path.realpath(sample.video)).relative_to(os.path.realpath(root)).as_posix()
    row: dict[str, Any] = {
        "uid": sample.uid,
        "question": sample.question,
        "answer": sample.answer,
        "problem_type": str(sample.problem_type),
        "video": video,
        "options": [[option.label, option.text] for option in sample.options],
        "media_type": sample.media_type,
        "source": sample.source,
        "scenario": sample.scenario,
    }
    if sample.clip_s is not None:
        row["clip_s"] = list(sample.clip_s)
    if sample.evidence is not None:
        row["evidence"] = {
            "spans_s": [list(span) for span in sample.evidence.spans_s],
            "boxes": [list(box) for box in sample.evidence.boxes],
            "note": sample.evidence.note,
        }
    if sample.meta:
        row["meta"] = dict(sample.meta)
    return row


def write_jsonl(samples: Iterable[Sample], path: Path, root: Path) -> None:
    """Write samples, one per line, atomically.

    Args:
        samples: What to write; every video must lie under `root`.
        path: File to write.
        root: Media root that the videos are written relative to.

    Raises:
        DataError: If a video is outside the root or `meta` is not JSON.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    lines: list[str] = []
    for number, sample in enumerate(samples, start=1):
        try:
            lines.append(
                json.dumps(sample_to_row(sample, Path(root)), ensure_ascii=False, allow_nan=False) + "\n"
            )
        except ValueError as error:
            raise DataError(path, number, "video", f"is not under the media root {root} ({error})") from error
        except TypeError as error:
            raise DataError(path, number, "meta", f"is not JSON ({error})") from error
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".part-", suffix=".jsonl")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.writelines(lines)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def read_jsonl(
    path: Path, root: Path, *, name: str = "", check_media: bool = True, strict: bool = True
) -> ReadResult:
    """Read a file of `write_jsonl`.

    Args:
        path: JSONL file.
        root: Media root.
        name: Replaces each row's `source`; kept as written when empty.
        check_media: Whether rows without their clip are skipped now.
        strict: Whether a malformed row raises; otherwise it is skipped and listed.

    Returns:
        Samples in file order, and the rows left out.

    Raises:
        DataError: For an unreadable file, or a malformed row if `strict`.
    """
    path, root = Path(path), Path(root)
    return read_rows(path, root, lambda row: _parse(row, name), check_media=check_media, strict=strict)


def _parse(row: RowReader, name: str) -> tuple[Sample, str, str]:
    unknown = sorted(set(row.row) - _KEYS)
    if unknown:
        raise row.error(unknown[0], "is unknown; put it into 'meta'")
    meta: object = row.row.get("meta") or {}
    if not isinstance(meta, dict):
        raise row.error("meta", "must be an object")
    value = row.text("problem_type")
    if value not in {str(t) for t in ProblemType}:
        raise row.error("problem_type", f"is {value!r}; allowed: {', '.join(str(t) for t in ProblemType)}")
    media_type = row.text("media_type", default="video")
    if media_type not in ("video", "image"):
        raise row.error("media_type", f"is {media_type!r}; allowed: video, image")
    written = row.text("video")
    sample = Sample(
        uid=row.text("uid"),
        question=row.text("question"),
        answer=row.text("answer"),
        problem_type=ProblemType(value),
        video=Path(written),
        options=_options(row),
        media_type=media_type,
        source=name or row.text("source", default=""),
        scenario=row.text("scenario", default=""),
        clip_s=row.clip(),
        evidence=row.evidence(),
        meta=cast("dict[str, Any]", meta),
    )
    return sample, written, "video"


def _options(row: RowReader) -> tuple[Option, ...]:
    value: object = row.row.get("options") or []
    options: list[Option] = []
    for item in cast("list[object]", value) if isinstance(value, list) else [None]:
        pair = cast("list[object]", item) if isinstance(item, list) else []
        if len(pair) != 2 or not all(isinstance(part, str) for part in pair):
            raise row.error("options", f'must be a list of ["A", "text"] pairs, got {item!r}')
        options.append(Option(str(pair[0]), str(pair[1])))
    return tuple(options)
