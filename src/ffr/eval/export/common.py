"""What all exports share: one set of outputs at a time, folders, and what could not be written."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ffr.eval.benchmarks import get_benchmark
from ffr.eval.benchmarks.fields import Fields
from ffr.eval.results import Cell, EvalRun
from ffr.eval.rows import EvalRow, ItemRow
from ffr.eval.table_text import write_text

NO_OUTPUT = "[no output]"
"""In place of an output that is not there, where a format needs a text: no scorer reads an answer in it, and
none leaves it out as it leaves out an empty text."""


@dataclass(slots=True)
class Exported:
    """What an export wrote.

    Example:
        >>> Exported().num_answers
        0
    """

    files: list[Path] = field(default_factory=list[Path])
    notes: list[str] = field(default_factory=list[str])
    """What could not be exported, and what was filled in."""
    num_answers: int = 0

    def note(self, text: str) -> None:
        """Adds a note once."""
        if text not in self.notes:
            self.notes.append(text)


@dataclass(frozen=True, slots=True)
class Answers:
    """The outputs of one benchmark at one number of frames and with one seed, in the official order.

    Example:
        >>> next(answer_sets(load_run(Path("outputs/eval/base")))).folder  # doctest: +SKIP
        'frames16_seed42'
    """

    run: EvalRun
    cell: Cell
    seed: int
    pairs: Sequence[tuple[ItemRow, EvalRow | None]]
    """The row is None where there is no output: not asked, or an error."""

    @property
    def benchmark(self) -> str:
        """Its name."""
        return self.cell.benchmark

    @property
    def folder(self) -> str:
        """Name of the folder of this number of frames and seed."""
        mode = "" if self.cell.mode == "plain" else f"_{self.cell.mode}"
        return f"frames{self.cell.num_frames}_seed{self.seed}{mode}"

    @property
    def num_missing(self) -> int:
        """Questions without an output."""
        return sum(row is None for _, row in self.pairs)


def answer_sets(run: EvalRun) -> Iterator[Answers]:
    """Every benchmark, number of frames, seed and way of answering of a run."""
    for cell in run.cells():
        items = sorted(run.benchmark_items(cell.benchmark), key=lambda item: item.source_index)
        for seed in cell.seeds:
            pairs = [(item, run.row(item.uid, cell, seed)) for item in items]
            yield Answers(run, cell, seed, [(i, None if r is None or r.error else r) for i, r in pairs])


def file_name(text: str) -> str:
    """A name that is safe as a file's on every system.

    Example:
        >>> file_name("org/Qwen2.5-VL 7B")
        'org-Qwen2.5-VL-7B'
    """
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-.") or "model"


def write_json(path: Path, data: Any) -> Path:
    """A JSON file; lone surrogates of an output are replaced."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_text(path, json.dumps(data, indent=1, ensure_ascii=False) + "\n")


def question_text(item: ItemRow) -> str:
    """The question without its options."""
    benchmark = get_benchmark(item.benchmark)
    row = Fields(item.benchmark, item.record)
    return benchmark.question(row, benchmark.target(item.record))


def whole_text(row: EvalRow) -> str:
    """The output with the thoughts that a server took out of it put back."""
    return f"<think>{row.reasoning}</think>{row.raw}" if row.reasoning else row.raw


def own_id(item: ItemRow) -> str:
    """The question's id within its benchmark."""
    return item.uid.removeprefix(f"{item.benchmark}/")
