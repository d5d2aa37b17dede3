"""LVBench (zai-org/LVBench, once THUDM/LVBench): questions on hour-long videos, of several types each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ffr.eval.base import EvalDataError, Target
from ffr.eval.benchmarks.fields import Fields, as_list, embedded_options
from ffr.eval.benchmarks.files import Annotations, SourceRow, add_rows, locate, read_records
from ffr.eval.benchmarks.official import OfficialBenchmark

TYPES = (
    "key information retrieval",
    "event understanding",
    "summarization",
    "entity recognition",
    "reasoning",
    "temporal grounding",
)
JOIN = " + "


class LvBench(OfficialBenchmark):
    """Rows: a video's `key, type, video_info, qa [...]`; a record is one entry of `qa` with the `key`."""

    name, title = "lvbench", "LVBench"
    hub, licence = "zai-org/LVBench", "CC-BY-NC-SA-4.0"
    layout = "video_info.meta.jsonl and videos/<key>.mp4, each fetched from YouTube by its key"
    files = (
        "video_info.meta.jsonl",
        "data/video_info.meta.jsonl",
        "train*.parquet",
        "data/train*.parquet",
        "lvbench*.json*",
    )
    tasks = TYPES

    def target(self, record: Mapping[str, Any]) -> Target:
        """A letter; several question types are joined by `JOIN`.

        Raises:
            EvalDataError: If a field is missing or malformed.
        """
        row = Fields(self.name, record)
        _, options = embedded_options(row.text("question"))
        options = options or row.labelled("options", "candidates")
        if not options:
            raise row.error("question", "holds no lines '(A) ...' and the row has no 'options'")
        kinds = row.get("question_type")
        labels = [kinds] if isinstance(kinds, str) else row.texts("question_type")
        return Target("choice", row.letter(options, "answer"), options, JOIN.join(labels))

    def rows(self, root: Path, tasks: Sequence[str]) -> Annotations:
        out = Annotations()
        for path in locate(root, self.name, self.files):
            add_rows(out, path, _flat(path), start=len(out.rows))
        return out

    def labels(self, task: str) -> tuple[str, ...]:
        return tuple(task.split(JOIN))

    def own_id(self, row: Fields, source: SourceRow) -> str:
        return row.text("uid", "question_id", default=str(source.source_index))

    def media(self, row: Fields) -> tuple[str, ...]:
        key = row.text("key", default="")
        names = (f"videos/{key}.mp4", f"{key}.mp4", f"all_videos/{key}.mp4") if key else ()
        written = row.text("video_path", default="" if key else None).removeprefix("./")
        return (written, f"videos/{written}", *names) if written else names

    def group(self, row: Fields) -> str:
        return row.text("key", "video_path")

    def question(self, row: Fields, target: Target) -> str:
        return embedded_options(row.text("question"))[0]

    def prompt(self, row: Fields, target: Target) -> str:
        """The question alone: the authors publish none; their `polish_answer` finds the letter."""
        return row.text("question")


def _flat(path: Path) -> Iterator[Mapping[str, Any]]:
    """One record per question: the entries of a video's `qa` with its `key` and `type`."""
    for video in read_records(path):
        entries = as_list(video.get("qa"))
        if entries is None:
            yield video
            continue
        shared = {name: video[name] for name in ("key", "type") if name in video}
        for entry in entries:
            if not isinstance(entry, Mapping):
                raise EvalDataError(f"{path}: field 'qa' of {video.get('key')!r} must hold objects")
            yield {**shared, **entry}
