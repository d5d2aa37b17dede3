"""Evaluation files in Video-R1's form (Video-R1/Video-R1-eval), which re-write six benchmarks."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ffr.data.video_r1 import split_options
from ffr.eval.base import Kind, Target
from ffr.eval.benchmarks.fields import Fields
from ffr.eval.benchmarks.files import Annotations, SourceRow, add_rows, locate, read_records
from ffr.eval.benchmarks.official import OfficialBenchmark
from ffr.observe import uniform_indices
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
    layout = "eval_<name>.json and Evaluation/<name>/..."
    files = ("eval_*.json", "Evaluation/eval_*.json", "eval_*.jsonl")
    tasks = tuple(str(t) for t in ProblemType)

    def target(self, record: Mapping[str, Any]) -> Target:
        """What `problem_type` says; the answer without its tags.

        Raises:
            EvalDataError: If a field is missing or malformed.
        """
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

    def own_id(self, row: Fields, source: SourceRow) -> str:
        return f"{source.file.stem}/{row.text('problem_id', default=str(source.source_index))}"

    def rows(self, root: Path, tasks: Sequence[str]) -> Annotations:
        """Every file of the root, each a split of its own."""
        out = Annotations()
        for path in locate(root, self.name, self.files):
            add_rows(out, path, read_records(path))
        return out

    def media(self, row: Fields) -> tuple[str, ...]:
        written = row.text("path").removeprefix("./")
        return written, written.removeprefix("Evaluation/")

    def question(self, row: Fields, target: Target) -> str:
        problem = row.text("problem").strip()
        return split_options(problem)[0] if target.kind == "choice" else problem

    def prompt(self, row: Fields, target: Target) -> str:
        """Question and options of Video-R1's `eval_bench.py`, without its instruction to think."""
        options = row.texts("options")
        return row.text("problem") + ("Options:\n" + "\n".join(options) + "\n" if options else "")

    def frame_indices(self, total: int, num: int, *, fps: float = 25.0) -> tuple[int, ...]:
        """Evenly spread and rounded, as qwen-vl-utils takes an even number of frames."""
        return uniform_indices(total, num)
