"""VideoMMMU (lmms-lab/VideoMMMU): what a lecture teaches, in three tracks on the same 300 videos."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from ffr.eval.base import EvalDataError, Target
from ffr.eval.benchmarks import sampling
from ffr.eval.benchmarks.fields import Fields, as_list
from ffr.eval.benchmarks.files import Annotations, SourceRow, add_rows, locate, read_json, read_records
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
    layout = (
        "data/<track>_video.json (or the parquet folders), zips unpacked: Art/ ... Science/, question_only/"
    )
    tasks = (*TRACKS, QUESTION_ONLY)
    default_tasks = TRACKS
    headline = "mean_of_tracks"

    def target(self, record: Mapping[str, Any]) -> Target:
        """A letter where the row has options, whatever its `question_type` says, else free words.

        Raises:
            EvalDataError: If a field is missing or malformed.
        """
        row = Fields(self.name, record)
        options = row.labelled("options")
        task = row.text("track", default="")
        if options:
            return Target("choice", row.letter(options, "answer"), options, task)
        accepted = _several(row.get("answer"))
        answer = accepted[0] if as_list(row.get("answer")) else row.text("answer")
        return Target("open", answer, task=task, accepted=tuple(a for a in accepted if a != answer))

    def rows(self, root: Path, tasks: Sequence[str]) -> Annotations:
        """`data/<track>_video.json` of the repository, or the hub's parquet folders."""
        out = Annotations()
        for task in self.tasks:
            if task not in (tasks or TRACKS):
                continue
            track = "Adaptation" if task == QUESTION_ONLY else task
            patterns = [
                f"{folder}{track.lower()}{kind}.json" for folder in ("data/", "") for kind in ("_video", "")
            ]
            patterns += [f"{track}/*.parquet", f"{track}*.parquet"]
            for path in locate(root, self.name, patterns):
                add_rows(out, path, ({**row, "track": task} for row in _unwrapped(path, track)))
        return out

    def own_id(self, row: Fields, source: SourceRow) -> str:
        return f"{row.text('track')}/{row.text('id')}"

    def group(self, row: Fields) -> str:
        return row.text("id")

    def media(self, row: Fields) -> tuple[str, ...]:
        name = row.text("id")
        if row.text("track") == QUESTION_ONLY:
            return f"question_only/{name}_image.mp4", f"{name}_image.mp4"
        folder = _FOLDER_OF.get("_".join(name.split("_")[1:-1]), "videos")
        return tuple(f"{place}{name}.mp4" for place in (f"{folder}/", f"videos/{folder}/", "videos/", ""))

    def question(self, row: Fields, target: Target) -> str:
        """The question with the authors' words on its image, which is the video's last frame."""
        text = _IMAGE.sub(" ", row.text("question")).strip()
        return _AT_END + text if row.text("track") in ("Adaptation", QUESTION_ONLY) else text + _IGNORE

    def prompt(self, row: Fields, target: Target) -> str:
        """The question with the track's own words before or after it; none for the baseline."""
        options = lettered_lines(target)
        text = row.text("question") + (f"\n{options}" if options else "")
        track = row.text("track")
        if track == QUESTION_ONLY:
            return text
        if track != "Adaptation":
            return text + _IGNORE
        kind = "multi-choice" if target.kind == "choice" else "open-ended"
        return f"{_LEARN}{kind} question. {_AT_END}{text}"

    def frame_indices(self, total: int, num: int, *, fps: float = 25.0) -> tuple[int, ...]:
        return sampling.linspace_with_last(total, num)

    def overall(self, by_task: Mapping[str, tuple[float, int]]) -> float:
        """Mean of the tracks; the question-only baseline is none of them."""
        return macro([mean for task, (mean, count) in by_task.items() if count and task in TRACKS])


def delta_knowledge(adaptation: float, question_only: float) -> float:
    """What watching the video adds: `(after - before) / (100 - before) * 100`, in points.

    Args:
        adaptation: Accuracy on the adaptation track, in [0, 1].
        question_only: Accuracy on the same questions without the lecture, in [0, 1].

    Returns:
        Points of the possible gain; negative where the video hurts.

    Raises:
        ValueError: If nothing was left to gain (`question_only` is 1).
    """
    if not 0 <= question_only < 1:
        raise ValueError(f"delta_knowledge needs 0 <= question_only < 1, got {question_only}")
    return (adaptation - question_only) / (1 - question_only) * 100


def _unwrapped(path: Path, track: str) -> Iterator[Mapping[str, Any]]:
    """Rows of a track: the repository's JSON keeps them as `{track: {"0": row, ...}}`."""
    if path.suffix == ".parquet":
        yield from read_records(path)
        return
    data = read_json(path)
    if isinstance(data, dict):
        data = cast("dict[str, Any]", data).get(track, cast("Any", data))
    rows: Any = list(cast("dict[str, Any]", data).values()) if isinstance(data, dict) else data
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in cast("list[Any]", rows)):
        raise EvalDataError(f"{path}: must hold the rows of {track!r} as objects; fetch it again")
    yield from cast("list[dict[str, Any]]", rows)


def _several(value: Any) -> list[str]:
    """The golds of a nested answer: a list, or a list in text form even where its quotes are broken."""
    items = as_list(value)
    if items is not None:
        return [str(item) for item in items]
    text = str(value).strip()
    return [a or b or c for a, b, c in _QUOTED.findall(text)] if text.startswith("[") else []
