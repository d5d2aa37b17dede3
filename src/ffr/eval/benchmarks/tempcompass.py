"""TempCompass (lmms-lab/TempCompass): temporal perception in four task types on 410 videos."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from ffr.eval.base import EvalDataError, Target
from ffr.eval.benchmarks.fields import Fields, embedded_options
from ffr.eval.benchmarks.files import Annotations, SourceRow, add_rows, locate, read_json, read_records
from ffr.eval.benchmarks.official import OfficialBenchmark
from ffr.types import Option

TASKS = ("multi-choice", "yes_no", "caption_matching", "captioning")
DIMS = ("action", "direction", "speed", "order", "attribute_change")
GOLD = ("answer", "gt-answer")
"""Field of the gold answer in question files and in the authors' rating files."""
_BEST = "\nPlease directly give the best option:"
_ASK = {
    "multi-choice": _BEST,
    "yes_no": "\nPlease answer yes or no:",
    "caption_matching": _BEST,
    "captioning": "",
}
_MATCH = re.compile(r"^((?:Option|Sentence|Caption) ?(?:\d|[A-Z])):\s*(.*)$", re.MULTILINE)


class TempCompass(OfficialBenchmark):
    """Rows: `question, answer` (`mc_question, mc_answer`); `video_id, dim, task` are the file's tree."""

    name, title = "tempcompass", "TempCompass"
    hub, licence = "lmms-lab/TempCompass", "CC-BY-NC-4.0"
    layout = "questions/<task>.json and tempcompass_videos.zip unpacked: videos/<id>.mp4"
    tasks = TASKS
    default_tasks = ("multi-choice",)

    def target(self, record: Mapping[str, Any]) -> Target:
        """A letter, yes or no, one of the sentences, or a caption, as `task_of` says.

        Raises:
            EvalDataError: If a field is missing or malformed.
        """
        row = Fields(self.name, record)
        task = task_of(row)
        if task == "captioning":
            _, options = embedded_options(row.text("mc_question", default=""))
            return Target("caption", row.text("mc_answer", *GOLD, default=""), options, task)
        question, answer = row.text("question"), row.text(*GOLD)
        if task == "yes_no":
            gold = answer.strip().rstrip(".").lower()
            if gold not in ("yes", "no"):
                raise row.error("answer", f"is {answer!r}; it must be yes or no")
            return Target("yes_no", gold, task=task)
        if task == "caption_matching":
            options = match_options(question)
            if not options:
                raise row.error("question", "holds no lines 'Option 1: ...'")
            return Target("match", answer, options, task)
        _, options = embedded_options(question)
        if not options:
            raise row.error("question", "holds no lines 'A. ...'")
        return Target("choice", row.letter(options, *GOLD), options, task)

    def rows(self, root: Path, tasks: Sequence[str]) -> Annotations:
        """`questions/<task>.json`, or the hub's parquet folders; captions get their multi-choice question."""
        out = Annotations()
        for task in TASKS:
            if tasks and task not in tasks:
                continue
            name = task.replace("-", "?")
            patterns = (f"questions/{task}.json", f"{task}.json", f"{name}/*.parquet", f"{name}*.parquet")
            for path in locate(root, self.name, patterns):
                add_rows(out, path, _flat(path, task))
        return out

    def own_id(self, row: Fields, source: SourceRow) -> str:
        return f"{task_of(row)}/{source.source_index}"

    def media(self, row: Fields) -> tuple[str, ...]:
        video = row.text("video_id")
        return f"videos/{video}.mp4", f"{video}.mp4", f"tempcompass_videos/{video}.mp4"

    def group(self, row: Fields) -> str:
        return row.text("video_id")

    def question(self, row: Fields, target: Target) -> str:
        """The stem where the options stand apart, else the official text with its instruction."""
        text = row.text("question")
        return embedded_options(text)[0] if target.kind == "choice" else text + _ASK[target.task]

    def prompt(self, row: Fields, target: Target) -> str:
        return row.text("question") + _ASK[target.task]


def _flat(path: Path, task: str) -> Iterator[Mapping[str, Any]]:
    """One record per question, with `video_id`, `dim` and `task` from the file's tree."""
    if path.suffix == ".parquet":
        yield from ({**row, "task": task} for row in read_records(path))
        return
    twin = path.with_name("multi-choice.json")
    choices = _tree(twin) if task == "captioning" and twin.is_file() else {}
    for video, dims in _tree(path).items():
        for dim, rows in dims.items():
            asked = choices.get(video, {}).get(dim, [{}])[:1]
            extra = {f"mc_{key}": row[key] for row in asked for key in ("question", "answer") if key in row}
            for row in rows:
                yield {**extra, **row, "video_id": video, "dim": dim, "task": task}


def _tree(path: Path) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """`{video: {dim: [row]}}`, checked.

    Raises:
        EvalDataError: If the file has another form.
    """
    tree = read_json(path)
    if not isinstance(tree, dict):
        raise EvalDataError(f"{path}: must be an object of videos, got {type(tree).__name__}")
    for video, dims in cast("dict[str, Any]", tree).items():
        lists = list(cast("dict[str, Any]", dims).values()) if isinstance(dims, dict) else [None]
        if not all(isinstance(rows, list) and all(isinstance(r, dict) for r in rows) for rows in lists):
            raise EvalDataError(f"{path}: video {video!r} must be an object of lists of questions, by aspect")
    return cast("dict[str, dict[str, list[dict[str, Any]]]]", tree)


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
    if row.get("mc_question") is not None or "Generated Caption:" in row.text("question", default=""):
        return "captioning"
    if row.text(*GOLD, default="").strip().rstrip(".").lower() in ("yes", "no"):
        return "yes_no"
    return "caption_matching" if match_options(row.text("question")) else "multi-choice"
