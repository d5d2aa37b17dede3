"""Training rows that a benchmark also has, and a training file without them."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ffr.data import (
    Dropped,
    ReadResult,
    decontaminate,
    read_jsonl,
    read_video_holmes,
    read_video_r1,
)
from ffr.data.base import load_rows
from ffr.eval.base import EvalDataError, Item
from ffr.eval.benchmarks import PUBLIC, benchmark_root, get_benchmark
from ffr.types import Sample

_YOUTUBE = re.compile(r"(?:v=|youtu\.be/|/embed/|/shorts/)([\w-]{11})")
_LINKS = ("youtube_url", "link_selected")
"""Fields of official rows that hold the address a clip was taken from."""


@dataclass(frozen=True, slots=True)
class TrainingReport:
    """What a training file shares with the benchmarks.

    Example:
        >>> TrainingReport(file=Path("train.json"), num_rows=2).clean
        True
    """

    file: Path
    num_rows: int
    dropped: tuple[Dropped, ...] = ()
    """Each with the benchmark's question that it matches."""
    kept_rows: tuple[int, ...] = ()
    """1-based numbers of the rows without an overlap."""
    skipped: Mapping[int, str] = field(default_factory=dict[int, str])
    """Rows that can't be read, with the reason; they are in no clean file."""
    checked: Mapping[str, int] = field(default_factory=dict[str, int])
    """Questions compared with, by benchmark."""
    unchecked: Mapping[str, str] = field(default_factory=dict[str, str])
    """Why a benchmark could not be compared with."""

    @property
    def clean(self) -> bool:
        """Whether no row matches any question of the benchmarks that were there."""
        return not self.dropped

    @property
    def counts(self) -> dict[tuple[str, str], int]:
        """Number of overlapping rows by (benchmark, `video` or `question`)."""
        out: dict[tuple[str, str], int] = {}
        for entry in self.dropped:
            key = entry.evaluation_uid.partition("/")[0], entry.by
            out[key] = out.get(key, 0) + 1
        return out


def check_training(path: Path, root: Path, names: Sequence[str] = PUBLIC) -> TrainingReport:
    """Compares a training file with benchmarks by clip id and by normalised question.

    No clip is needed, of either side.

    Args:
        path: Video-R1, Video-Holmes or our own JSONL rows.
        root: Directory with one folder per benchmark, or of the one that is asked.
        names: Benchmarks.

    Returns:
        The report; benchmarks without an annotation file are in `unchecked`.

    Raises:
        DataError: If the training file can't be read.
        EvalDataError: If a benchmark is unknown.
    """
    evaluation: list[Sample] = []
    aliases: dict[str, tuple[str, ...]] = {}
    checked: dict[str, int] = {}
    unchecked: dict[str, str] = {}
    for name in names:
        benchmark = get_benchmark(name)
        try:
            items = benchmark.load(benchmark_root(root, name)).items
        except EvalDataError as error:
            unchecked[name] = str(error)
            continue
        checked[name] = len(items)
        evaluation += [item.sample for item in items]
        aliases |= {item.uid: ids for item in items if (ids := _source_ids(item))}
    result = read_training(path)
    found = decontaminate(result.samples, evaluation, aliases=aliases)
    skipped = {row.row: row.reason for row in result.skipped}
    num_rows = len(result.samples) + len(skipped)
    read_rows = [number for number in range(1, num_rows + 1) if number not in skipped]
    kept = {sample.uid for sample in found.kept}
    return TrainingReport(
        file=path,
        num_rows=num_rows,
        dropped=found.dropped,
        kept_rows=tuple(n for n, s in zip(read_rows, result.samples, strict=True) if s.uid in kept),
        skipped=skipped,
        checked=checked,
        unchecked=unchecked,
    )


def read_training(path: Path) -> ReadResult:
    """A training file through the reader that its first row asks for; clips are not looked for.

    Raises:
        DataError: If it can't be read.
    """
    _, first = next(load_rows(path), (0, {}))
    reader = read_jsonl if "uid" in first else read_video_holmes if "video ID" in first else read_video_r1
    return reader(path, path.parent, check_media=False, strict=False)


def write_clean(report: TrainingReport, out: Path) -> None:
    """Writes the rows without an overlap as they are, in the form of the original (JSON list or JSONL).

    Raises:
        DataError: If the original can't be read.
        ValueError: If `out` is the original.
    """
    if out.exists() and report.file.samefile(out):
        raise ValueError(f"{out}: is the training file itself; give another name")
    kept = set(report.kept_rows)
    rows = [row for number, row in load_rows(report.file) if number in kept]
    with report.file.open(encoding="utf-8-sig") as file:
        listed = file.read(4096).lstrip().startswith("[")
    if listed:
        text = json.dumps(rows, ensure_ascii=False, indent=1) + "\n"
    else:
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    out.parent.mkdir(parents=True, exist_ok=True)
    part = out.with_name(f".{os.getpid()}.{out.name}")
    part.write_text(text, encoding="utf-8")
    os.replace(part, out)


def _source_ids(item: Item) -> tuple[str, ...]:
    """YouTube ids in a row's links, where its clip's own name says nothing."""
    links = (item.record.get(name) for name in _LINKS)
    return tuple(m.group(1) for link in links if isinstance(link, str) and (m := _YOUTUBE.search(link)))
