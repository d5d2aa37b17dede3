"""Video-Holmes question files (TencentARC/Video-Holmes): a JSON list, clips named `<video ID>.mp4`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

from ffr.data.base import ReadResult, RowReader, read_rows
from ffr.types import Option, ProblemType, Sample

QUESTION_TYPES = ("SR", "IMC", "TCI", "TA", "MHR", "PAR", "CTI")
"""The benchmark's seven question types; they become `Sample.scenario`."""
_READ = frozenset({"Question", "Options", "Answer", "Question Type"})


def read_video_holmes(
    path: Path, root: Path, *, name: str = "", check_media: bool = True, strict: bool = True
) -> ReadResult:
    """Read a Video-Holmes train or test file.

    Args:
        path: JSON list.
        root: Folder of the clips (`videos_cropped`).
        name: Source name in uids and tables; the file's stem when empty.
        check_media: Whether rows without their clip are skipped now.
        strict: Whether a malformed row raises; otherwise it is skipped and listed.

    Returns:
        Samples in file order (the explanation is in `meta`), and the rows left out.

    Raises:
        DataError: For an unreadable file, or a malformed row if `strict`.
    """
    path, root = Path(path), Path(root)
    source = name or path.stem
    return read_rows(path, root, lambda row: _parse(row, source), check_media=check_media, strict=strict)


def _parse(row: RowReader, source: str) -> tuple[Sample, str, str]:
    video_id = row.text("video ID").strip()
    question_type = row.text("Question Type").strip()
    if question_type not in QUESTION_TYPES:
        raise row.error("Question Type", f"is {question_type!r}; allowed: {', '.join(QUESTION_TYPES)}")
    options = _options(row)
    answer = row.text("Answer").strip().rstrip(".").upper()
    if answer not in {option.label for option in options}:
        raise row.error("Answer", f"is {answer!r}; it must be one of the letters of 'Options'")
    sample = Sample(
        uid=f"{source}/{video_id}/{row.text('Question ID')}",
        question=row.text("Question").strip(),
        answer=answer,
        problem_type=ProblemType.MULTIPLE_CHOICE,
        video=Path(f"{video_id}.mp4"),
        options=options,
        source=source,
        scenario=question_type,
        meta={key: value for key, value in row.row.items() if key not in _READ},
    )
    return sample, f"{video_id}.mp4", "video ID"


def _options(row: RowReader) -> tuple[Option, ...]:
    value = row.row.get("Options")
    if not isinstance(value, dict) or not value:
        raise row.error("Options", 'must be an object of letters and texts, {"A": ..., "B": ...}')
    options: list[Option] = []
    for label, text in cast("dict[str, Any]", value).items():
        if len(label) != 1 or not "A" <= label <= "Z" or not isinstance(text, str):
            raise row.error(
                "Options", f"has the entry {label!r}: {text!r}; letters A-Z and texts are allowed"
            )
        options.append(Option(label, text.strip()))
    return tuple(options)
