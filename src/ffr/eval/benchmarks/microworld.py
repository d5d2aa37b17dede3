"""MicroWorld: our own procedural test videos, written as files and read back like any other benchmark."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ffr.data.base import DataError, RowReader
from ffr.data.microworld import KINDS, write_microworld
from ffr.eval.base import Target
from ffr.eval.benchmarks.fields import Fields
from ffr.eval.benchmarks.files import Annotations, SourceRow
from ffr.eval.benchmarks.video_r1 import VideoR1
from ffr.types import Evidence

NUM_TEST = 600
"""Questions of the test split, a hundred of each kind: a 95 % half-width of 4 points."""


class MicroWorld(VideoR1):
    """Rows: Video-R1's, with `scenario` (the question kind) and the evidence's times and boxes."""

    name, title = "microworld", "MicroWorld"
    hub, licence = "ours: ffr.data.microworld", "Apache-2.0"
    layout = "nothing: it is written when it is not there"
    files = ("test.json",)
    tasks = KINDS

    def target(self, record: Mapping[str, Any]) -> Target:
        found = super().target(record)
        scenario = Fields(self.name, record).text("scenario", default="")
        return Target(found.kind, found.answer, found.options, scenario)

    def rows(self, root: Path, tasks: Sequence[str]) -> Annotations:
        """The test split under `root`; `NUM_TEST` questions are written there if there is none."""
        if not root.is_file() and not (root / "test.json").is_file():
            write_microworld(root, num_train=0, num_test=NUM_TEST)
        return super().rows(root, tasks)

    def own_id(self, row: Fields, source: SourceRow) -> str:
        return row.text("problem_id", default=str(source.source_index))

    def evidence(self, row: Fields) -> Evidence | None:
        try:
            return RowReader(Path("test.json"), 0, row.record).evidence()
        except DataError as error:
            raise row.error(error.field, error.problem) from None
