"""VSI-Bench (nyu-visionx/VSI-Bench): spatial questions on indoor scans, six letter and four number types."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ffr.eval.base import Target
from ffr.eval.benchmarks.fields import Fields
from ffr.eval.benchmarks.official import OfficialBenchmark, macro

DIRECTIONS = tuple(f"object_rel_direction_{level}" for level in ("easy", "medium", "hard"))
CHOICE_TASKS = (*DIRECTIONS, "object_rel_distance", "route_planning", "obj_appearance_order")
NUMBER_TASKS = ("object_counting", "object_abs_distance", "object_size_estimation", "room_size_estimation")
_SOURCES = ("arkitscenes", "scannet", "scannetpp")


class VsiBench(OfficialBenchmark):
    """Rows: `id, dataset, scene_name, question_type, question, ground_truth, options` (null for numbers)."""

    name, title = "vsi_bench", "VSI-Bench"
    hub, licence = "nyu-visionx/VSI-Bench", "Apache-2.0"
    layout = "test.jsonl and the three zips unpacked: arkitscenes/, scannet/, scannetpp/ with <scene>.mp4"
    files = (
        "test.jsonl",
        "test.json",
        "test*.parquet",
        "data/test*.parquet",
        "full/test*.parquet",
        "vsi*.json*",
        "VSI*.tsv",
    )
    tasks = (*CHOICE_TASKS, *NUMBER_TASKS)
    headline = "macro_8"

    def target(self, record: Mapping[str, Any]) -> Target:
        """A number for the four number types, else a letter.

        Raises:
            EvalDataError: If a field is missing or malformed.
        """
        row = Fields(self.name, record)
        texts = row.texts("options")
        task = row.text("question_type", default="")
        if task and task not in self.tasks:
            raise row.error("question_type", f"is {task!r}; known: {', '.join(self.tasks)}")
        if task in CHOICE_TASKS or (not task and texts):
            options = row.labelled("options")
            return Target("choice", row.letter(options, "ground_truth", "answer"), options, task)
        number = row.text("ground_truth", "answer")
        row.number("ground_truth", "answer")
        return Target("number", number.strip(), task=task)

    def media(self, row: Fields) -> tuple[str, ...]:
        source, scene = row.text("dataset", default=""), row.text("scene_name", default="")
        if not source or not scene:
            return (row.text("video_path", "video", "path").removeprefix("./"),)
        return (f"{source}/{scene}.mp4",)

    def prompt(self, row: Fields, target: Target) -> str:
        head = f"These are frames of a video.\n{row.text('question')}\n"
        if target.kind == "number":
            return f"{head}Please answer the question using a single word or phrase."
        options = "\n".join(row.texts("options"))
        return f"{head}Options:\n{options}\nAnswer with the option's letter from the given choices directly."

    def overall(self, by_task: Mapping[str, tuple[float, int]]) -> float:
        """Unweighted mean of eight tasks; the three direction levels are one of them.

        Tasks without a question are left out of the mean.
        """
        present = {task: mean for task, (mean, count) in by_task.items() if count}
        directions = [present[task] for task in DIRECTIONS if task in present]
        means = [mean for task, mean in present.items() if task not in DIRECTIONS]
        return macro([*means, macro(directions)] if directions else means)
