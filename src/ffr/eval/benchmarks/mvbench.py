"""MVBench (OpenGVLab/MVBench): twenty temporal tasks of 200 questions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ffr.eval.base import Target
from ffr.eval.benchmarks.fields import Fields, bare_options
from ffr.eval.benchmarks.official import OfficialBenchmark

TASKS = tuple(
    "action_sequence action_prediction action_antonym fine_grained_action unexpected_action object_existence "
    "object_interaction object_shuffle moving_direction action_localization scene_transition action_count "
    "moving_count moving_attribute state_change fine_grained_pose character_order egocentric_navigation "
    "episodic_reasoning counterfactual_inference".split()
)
"""In the official order."""


class MvBench(OfficialBenchmark):
    """Rows: `video, question, candidates, answer` (the option's text), `start, end`; `task` is the file's."""

    name, title = "mvbench", "MVBench"
    hub, licence = "OpenGVLab/MVBench", "MIT (code)"
    tasks = TASKS

    def target(self, record: Mapping[str, Any]) -> Target:
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
