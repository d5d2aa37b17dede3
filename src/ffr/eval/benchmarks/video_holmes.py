"""Video-Holmes (TencentARC/Video-Holmes): suspense films, seven question types, six options."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ffr.data.video_holmes import QUESTION_TYPES
from ffr.eval.base import Target
from ffr.eval.benchmarks import sampling
from ffr.eval.benchmarks.fields import Fields
from ffr.eval.benchmarks.files import SourceRow
from ffr.eval.benchmarks.official import OfficialBenchmark


class VideoHolmes(OfficialBenchmark):
    """Rows: `video ID, Question ID, Question Type, Question, Options {A..F}, Answer, Explanation`."""

    name, title = "video_holmes", "Video-Holmes"
    hub, licence = "TencentARC/Video-Holmes", "Apache-2.0 (academic purpose only)"
    layout = "test_Video-Holmes.json and videos.zip unpacked: videos_cropped/<id>.mp4"
    files = ("test_Video-Holmes.json", "test*.json", "test*.parquet", "data/test*.parquet", "*Holmes*.tsv")
    tasks = QUESTION_TYPES

    def target(self, record: Mapping[str, Any]) -> Target:
        """A letter among the options, at most six.

        Raises:
            EvalDataError: If a field is missing or malformed.
        """
        row = Fields(self.name, record)
        options = row.lettered("Options", "options")
        task = row.text("Question Type", "question_type", default="")
        if task and task not in self.tasks:
            raise row.error("Question Type", f"is {task!r}; known: {', '.join(self.tasks)}")
        return Target("choice", row.letter(options, "Answer", "answer"), options, task)

    def media(self, row: Fields) -> tuple[str, ...]:
        video = row.text("video ID", "video_id")
        folders = ("videos_cropped/", "", "videos/")
        return tuple(f"{folder}{video}.{end}" for folder in folders for end in ("mp4", "MP4", "mkv", "webm"))

    def own_id(self, row: Fields, source: SourceRow) -> str:
        return (
            f"{row.text('video ID', 'video_id')}/{row.text('Question ID', default=str(source.source_index))}"
        )

    def question(self, row: Fields, target: Target) -> str:
        return row.text("Question", "question")

    def prompt(self, row: Fields, target: Target) -> str:
        """The authors' one prompt for all question types."""
        options = ", ".join(f"{o.label}: {o.text}" for o in target.options)
        return (
            "Based on the given video, reason and answer the single-choice question. Provide your reasoning "
            "between the <think> and </think> tags, and then give your final answer between the <answer> and "
            f"</answer> tags. The question is: {self.question(row, target)}. The options are: {options}. "
            "Your answer:"
        )

    def frame_indices(self, total: int, num: int, *, fps: float = 25.0) -> tuple[int, ...]:
        return sampling.midpoints(total, num)
