"""VideoMMMU (lmms-lab/VideoMMMU): what a lecture teaches, in three tracks on the same 300 videos."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ffr.eval.base import EvalDataError, Target
from ffr.eval.benchmarks.fields import Fields, as_list
from ffr.eval.benchmarks.files import Annotations, SourceRow, file_sha256, locate, read_json, read_records
from ffr.eval.benchmarks.official import OfficialBenchmark, lettered_lines, macro

TRACKS = ("Perception", "Comprehension", "Adaptation")
QUESTION_ONLY = "question_only"
"""The adaptation questions on two-second clips of the question's image: the baseline of delta-knowledge."""
_FOLDERS = {
    "Art": "Art Art_Theory Design Music",
    "Science": "Biology Chemistry Geography Math Physics",
    "Humanities": "History Literature Sociology Psychology",
    "Engineering": "Agriculture Architecture_and_Engineering Computer_Science Electronics Energy_and_Power "
    "Materials Mechanical_Engineering",
    "Medicine": "Basic_Medical_Science Clinical_Medicine Diagnostics_and_Laboratory_Medicine Pharmacy "
    "Public_Health",
    "Business": "Accounting Economics Finance Manage Marketing",
}
_FOLDER_OF = {subject: folder for folder, names in _FOLDERS.items() for subject in names.split()}
_LEARN = "You should watch and learn the video content. Then apply what you learned to answer the following "
_AT_END = "The image for this question is at the end of the video.\n"
_IGNORE = "\nPlease ignore the Quiz question in last frame of the video."
_IMAGE = re.compile(r"[ \t]*<image \d+>[ \t]*")
_QUOTED = re.compile(r"'([^']*)'|\"([^\"]*)\"|'([^'\]]*)\]$")


class VideoMmmu(OfficialBenchmark):
    """Rows: `id, question, options, answer, question_type`; the track is the file's (`track` is added)."""

    name, title = "video_mmmu", "VideoMMMU"
    hub, licence = "lmms-lab/VideoMMMU", "MIT (code)"
    tasks = (*TRACKS, QUESTION_ONLY)
    default_tasks = TRACKS
    headline = "mean_of_tracks"

    def target(self, record: Mapping[str, Any]) -> Target:
        row = Fields(self.name, record)
        options = row.labelled("options")
        task = row.text("track", default="")
        if options:
            return Target("choice", row.letter(options, "answer"), options, task)
        accepted = _several(row.get("answer"))
        answer = accepted[0] if as_list(row.get("answer")) else row.text("answer")
        return Target("open", answer, task=task, accepted=tuple(a for a in accepted if a != answer))


def _several(value: Any) -> list[str]:
    """The golds of a nested answer: a list, or a list in text form even where its quotes are broken."""
    items = as_list(value)
    if items is not None:
        return [str(item) for item in items]
    text = str(value).strip()
    return [a or b or c for a, b, c in _QUOTED.findall(text)] if text.startswith("[") else []
