"""MicroWorld: our own procedural test videos, written as files and read back like any other benchmark."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ffr.data.microworld import KINDS
from ffr.eval.base import Target
from ffr.eval.benchmarks.fields import Fields
from ffr.eval.benchmarks.video_r1 import VideoR1


class MicroWorld(VideoR1):
    """Rows: Video-R1's, with `scenario` (the question kind) and the evidence's times and boxes."""

    name, title = "microworld", "MicroWorld"
    hub, licence = "ours: ffr.data.microworld", "Apache-2.0"
    tasks = KINDS

    def target(self, record: Mapping[str, Any]) -> Target:
        found = super().target(record)
        scenario = Fields(self.name, record).text("scenario", default="")
        return Target(found.kind, found.answer, found.options, scenario)
