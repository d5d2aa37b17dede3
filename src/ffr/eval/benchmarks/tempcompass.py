"""TempCompass (lmms-lab/TempCompass): temporal perception in four task types on 410 videos."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ffr.eval.base import Target
from ffr.eval.benchmarks.fields import Fields, embedded_options
from ffr.eval.benchmarks.official import OfficialBenchmark
from ffr.types import Option

TASKS = ("multi-choice", "yes_no", "caption_matching", "captioning")
DIMS = ("action", "direction", "speed", "order", "attribute_change")
_MATCH = re.compile(r"^((?:Option|Sentence|Caption) ?(?:\d|[A-Z])):\s*(.*)$", re.MULTILINE)


class TempCompass(OfficialBenchmark):
    """Rows: `question, answer` (`mc_question, mc_answer`); `video_id, dim, task` come from the file's tree."""

    name, title = "tempcompass", "TempCompass"
    hub, licence = "lmms-lab/TempCompass", "CC-BY-NC-4.0"
    tasks = TASKS
    default_tasks = ("multi-choice",)

    def target(self, record: Mapping[str, Any]) -> Target:
        row = Fields(self.name, record)
        task = task_of(row)
        if task == "captioning":
            _, options = embedded_options(row.text("mc_question"))
            return Target("caption", row.text("mc_answer", "answer"), options, task)
        question, answer = row.text("question"), row.text("answer")
        if task == "yes_no":
            gold = answer.strip().rstrip(".").lower()
            if gold not in ("yes", "no"):
                raise row.error("answer", f"is {answer!r}; it must be yes or no")
            return Target("yes_no", gold, task=task)
        if task == "caption_matching":
            options = match_options(question)
            if answer not in (f"{o.label}: {o.text}" for o in options) and not options:
                raise row.error("question", "holds no lines 'Option 1: ...'")
            return Target("match", answer, options, task)
        _, options = embedded_options(question)
        if not options:
            raise row.error("question", "holds no lines 'A. ...'")
        return Target("choice", row.letter(options, "answer"), options, task)


def match_options(question: str) -> tuple[Option, ...]:
    """The sentences of a caption-matching question, labelled as written (`Option 1`, `Sentence A`)."""
    return tuple(Option(m.group(1), m.group(2).strip()) for m in _MATCH.finditer(question))


def task_of(row: Fields) -> str:
    """The task type: the row's own `task`, else told from its fields.

    Raises:
        EvalDataError: If `task` is unknown.
    """
    task = row.text("task", default="").replace("multi_choice", "multi-choice")
    if task in TASKS:
        return task
    if task:
        raise row.error("task", f"is {task!r}; known: {', '.join(TASKS)}")
    if row.get("mc_question") is not None:
        return "captioning"
    if row.text("answer", default="").strip().rstrip(".").lower() in ("yes", "no"):
        return "yes_no"
    return "caption_matching" if match_options(row.text("question")) else "multi-choice"
