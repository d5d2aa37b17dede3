"""MMVU (yale-nlp/MMVU): expert questions, 625 multiple-choice and 375 open ones in the validation split."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ffr.eval.base import Target
from ffr.eval.benchmarks.fields import Fields
from ffr.eval.benchmarks.files import Annotations, locate, read_all
from ffr.eval.benchmarks.official import OfficialBenchmark, lettered_lines

FILES = (
    "validation.json",
    "data/validation.json",
    "validation*.parquet",
    "data/validation*.parquet",
    "*.json*",
)
_STEPS = "Begin by explaining your reasoning process clearly. Conclude by stating the final answer using the "
_CHOICE = (
    "\nAnswer the given multiple-choice question step by step. "
    + _STEPS
    + 'following format: "Therefore, the final answer is: $LETTER" (without quotes), where $LETTER is one of '
    "the options. Think step by step before answering."
)
_OPEN = (
    "\nAnswer the given question step by step. "
    + _STEPS
    + 'following format: "Therefore, the final answer is: $ANSWER" (without quotes), where $ANSWER is the '
    "final answer of the question. Think step by step before answering."
)


class Mmvu(OfficialBenchmark):
    """Rows: `id, video` (or `video_path`), `question_type, question, choices {A..E}, answer, metadata`."""

    name, title = "mmvu", "MMVU"
    hub, licence = "yale-nlp/MMVU", "none stated"
    tasks = ("multiple-choice", "open-ended")
    default_tasks = ("multiple-choice",)
    split = "validation"

    def rows(self, root: Path, tasks: Sequence[str]) -> Annotations:
        return read_all(locate(root, self.name, FILES))

    def target(self, record: Mapping[str, Any]) -> Target:
        row = Fields(self.name, record)
        options = row.lettered("choices")
        task = row.text("question_type", default="multiple-choice" if options else "open-ended")
        if task not in self.tasks:
            raise row.error("question_type", f"is {task!r}; known: {', '.join(self.tasks)}")
        if task == "open-ended":
            return Target("open", row.text("answer"), task=task)
        return Target("choice", row.letter(options, "answer"), options, task)

    def media(self, row: Fields) -> tuple[str, ...]:
        written = row.text("video", "video_path").split("/resolve/main/")[-1]
        inside = written.removeprefix("./")
        return inside, f"videos/{inside}"

    def prompt(self, row: Fields, target: Target) -> str:
        head = f"Question:{row.text('question')}\n"
        if target.kind == "open":
            return f"{head}\nVisual Information: processed video{_OPEN}"
        return (
            f"{head}{lettered_lines(target, '{label}: {text}')}\nVisual Information: processed video{_CHOICE}"
        )
