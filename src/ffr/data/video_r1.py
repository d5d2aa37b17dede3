"""Video-R1 annotation files (JSON list or JSONL), and those of VideoRFT, which have the same keys.

Row: `problem_id, problem, data_type, problem_type, options, solution, path` (HF
`Video-R1/Video-R1-data`); VideoRFT writes the options into `problem` as well. Our optional extra keys:
`evidence`, `scenario`, `clip_s`. All other keys are kept in `Sample.meta`.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import cast

from ffr.data.base import ReadResult, RowReader, read_rows
from ffr.types import Option, ProblemType, Sample

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp"})
_READ = frozenset(
    {"problem", "problem_type", "data_type", "options", "solution", "path", "evidence", "scenario", "clip_s"}
)
_TYPES = {str(t).casefold(): t for t in ProblemType}
_ANSWER = re.compile(r"<answer>\s*(.*?)\s*</answer>", re.DOTALL)
_LABELLED = re.compile(r"\s*(?:\(([A-Z])\)|([A-Z])\s*[.):])(?:\s+(.*)|\s*)$", re.DOTALL)
_LETTER = re.compile(r"\s*\(?([A-Z])\)?\s*(?:[.):](?:\s.*)?)?$", re.DOTALL)
_HEADER = re.compile(r"\s*(?:options|choices)\s*:?\s*$", re.IGNORECASE)
_HEADER_TAIL = re.compile(r"\s*(?:options|choices)\s*:\s*$", re.IGNORECASE)


def read_video_r1(
    path: Path, root: Path, *, name: str = "", check_media: bool = True, strict: bool = True
) -> ReadResult:
    """Read a Video-R1 or VideoRFT file.

    Args:
        path: JSON list or JSONL.
        root: Media root that the rows' `./` paths start from.
        name: Source name in uids and tables; the file's stem when empty.
        check_media: Whether rows without their clip are skipped now; if not, a missing clip is found
            when it is observed.
        strict: Whether a malformed row raises; otherwise it is skipped and listed.

    Returns:
        Samples in file order, and every row that was left out with its reason.

    Raises:
        DataError: For an unreadable file, or a malformed row if `strict`.
    """
    path, root = Path(path), Path(root)
    source = name or path.stem
    return read_rows(path, root, lambda row: _parse(row, source), check_media=check_media, strict=strict)


def _parse(row: RowReader, source: str) -> tuple[Sample, str, str]:
    written = row.text("path")
    media_type = _media_type(row, written)
    problem_type = _problem_type(row)
    question = row.text("problem").strip()
    options = parse_options(row)
    if problem_type is ProblemType.MULTIPLE_CHOICE:
        question, embedded = split_options(question)
        options = options or embedded
    sample = Sample(
        uid=f"{source}/{row.text('problem_id', default=str(row.number))}",
        question=question,
        answer=_answer(row, problem_type, options),
        problem_type=problem_type,
        video=Path(written),
        options=options,
        media_type=media_type,
        source=source,
        scenario=row.text("scenario", default=""),
        clip_s=row.clip(),
        evidence=row.evidence(),
        meta={key: value for key, value in row.row.items() if key not in _READ},
    )
    return sample, written, "path"


def _media_type(row: RowReader, written: str) -> str:
    guess = "image" if Path(written).suffix.lower() in IMAGE_SUFFIXES else "video"
    value = row.text("data_type", default=guess).strip().lower()
    if value not in ("video", "image"):
        raise row.error("data_type", f"is {value!r}; allowed: video, image")
    return value


def _problem_type(row: RowReader) -> ProblemType:
    value = row.text("problem_type").strip()
    found = _TYPES.get(value.casefold())
    if found is None:
        raise row.error("problem_type", f"is {value!r}; allowed: {', '.join(str(t) for t in ProblemType)}")
    return found


def parse_options(row: RowReader) -> tuple[Option, ...]:
    """The `options` field: `"A. x"`, `"A) x"`, `"(A) x"`, `"A: x"`, bare texts in order, or `{"A": "x"}`.

    Labels hold if every option has one and they differ; otherwise the options are texts and get
    letters in their order ("A. Lincoln" beside "Grant" is a name). Pairs `["A", "x"]` are read, too.

    Raises:
        DataError: If it is not a list of texts or an object of them, or there are more than 26.
    """
    value = row.row.get("options")
    if value is None:
        return ()
    if isinstance(value, dict):
        value = [f"{label}. {text}" for label, text in cast("dict[str, object]", value).items()]
    if not isinstance(value, list):
        raise row.error("options", f"must be a list of texts, got {type(value).__name__}")
    texts = [_joined(item) for item in cast("list[object]", value)]
    for item in texts:
        if isinstance(item, bool) or not isinstance(item, (str, int, float)):
            raise row.error("options", f"must be a list of texts, got {item!r} in it")
    if len(texts) > 26:
        raise row.error("options", f"has {len(texts)} entries; at most 26 letters are known")
    return label_options([str(item) for item in texts])


def _joined(item: object) -> object:
    if isinstance(item, list):
        pair = cast("list[object]", item)
        if len(pair) == 2 and isinstance(pair[0], str) and re.fullmatch("[A-Z]", pair[0]):
            return f"{pair[0]}. {pair[1]}"
    return item


def label_options(texts: list[str]) -> tuple[Option, ...]:
    """Options from texts with or without labels."""
    matches = [_LABELLED.match(text) for text in texts]
    labels = [(m.group(1) or m.group(2)) for m in matches if m]
    if len(labels) == len(texts) and len(set(labels)) == len(labels):
        return tuple(
            Option(label, (m.group(3) or "").strip()) for label, m in zip(labels, matches, strict=True) if m
        )
    return tuple(Option(chr(ord("A") + i), text.strip()) for i, text in enumerate(texts))


def split_options(problem: str) -> tuple[str, tuple[Option, ...]]:
    """A question and the options that its last lines hold (VideoRFT's form).

    The last lines count as options if they are labelled A, B, C ... in order, two at least; a line
    "Options:" before them goes with them.

    Returns:
        The question alone and the options; the problem unchanged and no options if it holds none.
    """
    lines = problem.split("\n")
    while lines and not lines[-1].strip():
        lines.pop()
    for start in range(len(lines) - 2, -1, -1):
        matches = [_LABELLED.match(line) for line in lines[start:]]
        labels = [(m.group(1) or m.group(2)) for m in matches if m]
        if len(labels) != len(matches):
            return problem, ()
        if labels == [chr(ord("A") + i) for i in range(len(labels))]:
            head = lines[:start]
            while head and (not head[-1].strip() or _HEADER.match(head[-1])):
                head.pop()
            question = _HEADER_TAIL.sub("", "\n".join(head)).rstrip()
            return (question, label_options(lines[start:])) if question else (problem, ())
    return problem, ()


def _answer(row: RowReader, problem_type: ProblemType, options: tuple[Option, ...]) -> str:
    """The gold answer without its tags; the letter for multiple choice."""
    solution = row.text("solution")
    tagged = _ANSWER.search(solution)
    answer = tagged.group(1) if tagged else solution.strip()
    if not answer:
        raise row.error("solution", "holds no answer; write <answer>...</answer>")
    if problem_type is not ProblemType.MULTIPLE_CHOICE:
        return answer
    labels = {option.label for option in options}
    for option in options:
        if answer == option.text:
            return option.label
    letter = _LETTER.match(answer)
    if letter is None or (labels and letter.group(1) not in labels):
        allowed = ", ".join(sorted(labels)) or "a single letter"
        raise row.error(
            "solution", f"is {answer!r}; a multiple-choice row needs the letter of an option: {allowed}"
        )
    return letter.group(1)
