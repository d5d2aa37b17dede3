"""LongVideoBench (longvideobench/LongVideoBench): referred reasoning in videos of up to an hour."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ffr.eval.base import Target
from ffr.eval.benchmarks import sampling
from ffr.eval.benchmarks.fields import LETTERS, Fields, bare_options
from ffr.eval.benchmarks.files import Annotations, locate, read_all
from ffr.eval.benchmarks.official import OfficialBenchmark, lettered_lines

FILES = ("lvb_val.json", "validation*.parquet", "data/validation*.parquet", "*val*.json*", "*.tsv")
_PADDING = "N/A"


class LongVideoBench(OfficialBenchmark):
    """Rows: `id, video_path, question, candidates` (or `option0..4`), `correct_choice, question_category`."""

    name, title = "longvideobench", "LongVideoBench"
    hub, licence = "longvideobench/LongVideoBench", "CC-BY-NC-SA-4.0"
    tasks = tuple("S2E S2O S2A E2O O2E T2E T2O T2A E3E O3O SSS SOS SAA T3E T3O TOS TAA".split())
    split = "validation"

    def rows(self, root: Path, tasks: Sequence[str]) -> Annotations:
        return read_all(locate(root, self.name, FILES))

    def target(self, record: Mapping[str, Any]) -> Target:
        row = Fields(self.name, record)
        texts = row.texts("candidates")
        if not texts:
            padded = [row.text(f"option{i}", default=_PADDING) for i in range(5)]
            texts = [text for text in padded if text != _PADDING]
        if not texts:
            raise row.error("candidates", "is missing (the hub's parquet has option0 to option4 instead)")
        options = bare_options(texts)
        gold = row.number("correct_choice")
        if gold is None or gold != int(gold) or not 0 <= gold < len(options):
            raise row.error(
                "correct_choice",
                f"is {gold!r}; it must be the 0-based number of one of {len(options)} options (the test split "
                "has no answers and can't be scored here)",
            )
        return Target("choice", LETTERS[int(gold)], options, row.text("question_category", default=""))

    def media(self, row: Fields) -> tuple[str, ...]:
        written = row.text("video_path").removeprefix("./")
        return f"videos/{written}", written

    def prompt(self, row: Fields, target: Target) -> str:
        return (
            f"Question: {row.text('question')}\n{lettered_lines(target)}\n"
            "Answer with the option's letter from the given choices directly."
        )
