"""MMVU (yale-nlp/MMVU): expert questions, 625 multiple-choice and 375 open ones in the validation split."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ffr.eval.base import Target
from ffr.eval.benchmarks.fields import Fields
from ffr.eval.benchmarks.official import OfficialBenchmark, lettered_lines

_STEPS = "Begin by explaining your reasoning process clearly. Conclude by stating the final answer using the "
_THINK = "Think step by step\nbefore answering."
_CHOICE = (
    f"Answer the given multiple-choice question step by step. {_STEPS}following format: 'Therefore, the "
    f"final answer is: $LETTER' (without quotes), where $LETTER is one of the options. {_THINK}"
)
_OPEN = (
    f"Answer the given question step by step. {_STEPS}following format: 'Therefore, the final answer is: "
    f"'Answer: $ANSWER' (without quotes), where $ANSWER is the final answer of the question. {_THINK}"
)


class Mmvu(OfficialBenchmark):
    """Rows: `id, video` (or `video_path`), `question_type, question, choices {A..E}, answer, metadata`."""

    name, title = "mmvu", "MMVU"
    hub, licence = "yale-nlp/MMVU", "none stated"
    layout = "validation.json and videos/<subject>/<n>.mp4"
    files = (
        "validation.json",
        "data/validation.json",
        "validation*.parquet",
        "data/validation*.parquet",
        "mmvu*.json*",
    )
    tasks = ("multiple-choice", "open-ended")
    default_tasks = ("multiple-choice",)
    split = "validation"

    def target(self, record: Mapping[str, Any]) -> Target:
        """A letter, or free words where the row is open-ended.

        Raises:
            EvalDataError: If a field is missing or malformed.
        """
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
        head = f"\nQuestion: {row.text('question')}\n"
        if target.kind == "open":
            return f"{head}\n{_OPEN}"
        return f"{head}{lettered_lines(target, '{label}: {text}')}\n\n{_CHOICE}"
