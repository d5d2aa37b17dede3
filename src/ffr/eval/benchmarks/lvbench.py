"""LVBench (zai-org/LVBench, once THUDM/LVBench): questions on hour-long videos, several types per question."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ffr.eval.base import Target
from ffr.eval.benchmarks.fields import Fields, embedded_options
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
    tasks = TYPES

    def target(self, record: Mapping[str, Any]) -> Target:
        row = Fields(self.name, record)
        _, options = embedded_options(row.text("question"))
        options = options or row.labelled("options", "candidates")
        if not options:
            raise row.error("question", "holds no lines '(A) ...' and the row has no 'options'")
        kinds = row.get("question_type")
        labels = [kinds] if isinstance(kinds, str) else row.texts("question_type")
        return Target("choice", row.letter(options, "answer"), options, JOIN.join(labels))
