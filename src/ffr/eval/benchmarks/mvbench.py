"""MVBench (OpenGVLab/MVBench): twenty temporal tasks of 200 questions."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, cast

from ffr.eval.base import EvalDataError, Target
from ffr.eval.benchmarks import sampling
from ffr.eval.benchmarks.fields import Fields, bare_options
from ffr.eval.benchmarks.files import Annotations, SourceRow, add_rows, locate, read_json, read_records
from ffr.eval.benchmarks.official import OfficialBenchmark, lettered_lines

TASKS = tuple(
    "action_sequence action_prediction action_antonym fine_grained_action unexpected_action object_existence "
    "object_interaction object_shuffle moving_direction action_localization scene_transition action_count "
    "moving_count moving_attribute state_change fine_grained_pose character_order egocentric_navigation "
    "episodic_reasoning counterfactual_inference".split()
)
"""In the official order."""
BOUNDED = (
    "action_sequence action_prediction object_interaction action_localization episodic_reasoning".split()
)
"""Tasks with `start` and `end`."""
FOLDER_FPS = 3.0
"""Of TVQA's folders of images."""
_RAW = {
    "action_antonym": "ssv2_video",
    "fine_grained_action": "Moments_in_Time_Raw/videos",
    "unexpected_action": "FunQA_test/test",
    "action_localization": "sta/sta_video",
    "scene_transition": "scene_qa/video",
    "fine_grained_pose": "nturgbd",
    "egocentric_navigation": "vlnqa",
    "episodic_reasoning": "tvqa/frames_fps3_hq",
    **dict.fromkeys(("action_sequence", "action_prediction", "object_interaction"), "star/Charades_v1_480"),
    **dict.fromkeys(
        "object_existence moving_direction moving_count moving_attribute counterfactual_inference".split(),
        "clevrer/video_validation",
    ),
    **dict.fromkeys("object_shuffle action_count state_change character_order".split(), "perception/videos"),
}
"""Folder of each task's clips on the hub's main branch."""
_CUT = {
    "action_antonym": "ssv2_video_mp4",
    "action_localization": "sta/sta_video_segment",
    "fine_grained_pose": "nturgbd_convert",
    "episodic_reasoning": "tvqa/video_fps3_hq_segment",
    **dict.fromkeys(("action_sequence", "action_prediction", "object_interaction"), "star/Charades_segment"),
}
"""Where the hub's branch `video` has another folder: clips that are converted, or cut to their bounds."""
_SYSTEM = (
    "Carefully watch the video and pay attention to the cause and sequence of events, the detail and "
    "movement of objects, and the action and pose of persons. Based on your observations, select the best "
    "option that accurately addresses the question."
)


class MvBench(OfficialBenchmark):
    """Rows: `video, question, candidates, answer` (the option's text), `start, end`; `task` is the file's."""

    name, title = "mvbench", "MVBench"
    hub, licence = "OpenGVLab/MVBench", "MIT (code)"
    layout = "json/<task>.json and video/*.zip unpacked in video/; the NTU clips (fine_grained_pose) by hand"
    tasks = TASKS

    def target(self, record: Mapping[str, Any]) -> Target:
        """The candidates get their letters; the answer is a candidate's text (case doesn't count).

        Raises:
            EvalDataError: If a field is missing or malformed.
        """
        row = Fields(self.name, record)
        options = bare_options(row.texts("candidates"))
        if not options:
            raise row.error("candidates", "is missing; give the row as the official file has it")
        answer = row.text("answer").strip()
        for same in (str, str.casefold):
            for option in options:
                if same(option.text) == same(answer):
                    return Target("choice", option.label, options, row.text("task", default=""))
        raise row.error("answer", f"is {answer!r}; it must be the text of one of 'candidates'")

    def rows(self, root: Path, tasks: Sequence[str]) -> Annotations:
        """`json/<task>.json` (both branches), or the branch `video`'s `test.json` with all tasks."""
        out = Annotations()
        base = root.parent if root.is_file() else root
        whole = root if root.is_file() else base / "test.json"
        if whole.is_file() and not (base / "json").is_dir():
            meta = read_json(whole)
            meta = meta.get("meta", meta) if isinstance(meta, dict) else None
            if not isinstance(meta, dict):
                raise EvalDataError(f"{whole}: must be an object with the rows of each task under 'meta'")
            for task in self._asked(tasks):
                add_rows(out, whole, _tasked(cast("list[Any]", meta.get(task, [])), task, whole))
            return out
        for task in self._asked(tasks):
            patterns = (f"json/{task}.json", f"{task}.json", f"{task}/*.parquet", f"{task}*.parquet")
            for path in locate(root, self.name, patterns):
                add_rows(out, path, _tasked(read_records(path), task, path))
        return out

    def _asked(self, tasks: Sequence[str]) -> list[str]:
        return [task for task in TASKS if not tasks or task in tasks]

    def own_id(self, row: Fields, source: SourceRow) -> str:
        return f"{row.text('task')}/{source.source_index}"

    def media(self, row: Fields) -> tuple[str, ...]:
        """The raw clip, then the one of the branch `video`, which carries its bounds in its name."""
        task, video = row.text("task"), row.text("video").removeprefix("./")
        raw, cut = _RAW[task], _CUT.get(task, _RAW[task])
        stem = PurePosixPath(video).with_suffix("").as_posix() if PurePosixPath(video).suffix else video
        start, end = row.get("start"), row.get("end")
        segments = (f"{stem}_{start}_{end}.mp4",) if start is not None else ()
        places = [f"{raw}/{video}", *(f"{cut}/{name}" for name in (video, *segments, f"{stem}.mp4"))]
        extra = [f"data0613/{raw}/{video}"] if raw.startswith(("clevrer", "star")) else []
        return tuple(f"{head}{place}" for head in ("video/", "") for place in (*places, *extra))

    def clip_s(self, row: Fields, video: Path) -> tuple[float, float] | None:
        """`start` and `end`; none for a clip that is cut already, nor for bounds that hold no time."""
        start, end = row.number("start"), row.number("end")
        if start is None or end is None or any("_segment" in part for part in video.parts[-3:-1]):
            return None
        return (start, end) if 0 <= start < end else None

    def folder_fps(self, row: Fields, video: Path) -> float | None:
        return FOLDER_FPS if video.suffix == "" else None

    def prompt(self, row: Fields, target: Target) -> str:
        """System text, question and options; the authors also begin the answer with `Best option:(`."""
        options = lettered_lines(target, "({label}) {text}")
        return f"{_SYSTEM}\nQuestion: {row.text('question')}\nOptions:\n{options}\nOnly give the best option."

    def frame_indices(self, total: int, num: int, *, fps: float = 25.0) -> tuple[int, ...]:
        return sampling.midpoints(total, num)


def _tasked(rows: Iterable[Any], task: str, path: Path) -> Iterator[Mapping[str, Any]]:
    for row in rows:
        if not isinstance(row, Mapping):
            raise EvalDataError(f"{path}: task {task!r} must hold objects, got {type(row).__name__}")
        yield {**cast("Mapping[str, Any]", row), "task": task}
