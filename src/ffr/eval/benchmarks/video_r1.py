"""Evaluation files in Video-R1's form (Video-R1/Video-R1-eval), which re-write six benchmarks."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ffr.data.video_r1 import split_options
from ffr.eval.base import Kind, Target
from ffr.eval.benchmarks.fields import Fields
from ffr.eval.benchmarks.official import OfficialBenchmark
from ffr.types import ProblemType

_KINDS: dict[str, Kind] = {
    ProblemType.MULTIPLE_CHOICE: "choice",
    ProblemType.NUMERICAL: "number",
    ProblemType.REGRESSION: "number",
    ProblemType.FREE_FORM: "open",
    ProblemType.OCR: "open",
}
_ANSWER = re.compile(r"<answer>\s*(.*?)\s*</answer>", re.DOTALL)


class VideoR1(OfficialBenchmark):
    """Rows: `problem_id, problem, problem_type, options, solution` (`<answer>A</answer>`), `path`."""

    name, title = "video_r1", "Video-R1 evaluation files"
    hub, licence = "Video-R1/Video-R1-eval", "Apache-2.0"
    tasks = tuple(str(t) for t in ProblemType)

    def target(self, record: Mapping[str, Any]) -> Target:
        row = Fields(self.name, record)
        task = row.text("problem_type")
        kind = _KINDS.get(task)
        if kind is None:
            raise row.error("problem_type", f"is {task!r}; known: {', '.join(self.tasks)}")
        solution = row.text("solution")
        tagged = _ANSWER.search(solution)
        answer = tagged.group(1) if tagged else solution.strip()
        if not answer:
            raise row.error("solution", "holds no answer; write <answer>...</answer>")
        if kind != "choice":
            return Target(kind, answer, task=task)
        options = row.labelled("options") or split_options(row.text("problem"))[1]
        letter = answer.strip().rstrip(".").upper()
        if len(letter) != 1 or (options and letter not in {o.label for o in options}):
            raise row.error("solution", f"is {answer!r}; it must be the letter of an option")
        return Target(kind, letter, options, task)
