"""Exports: a run's outputs in the forms that other harnesses and scripts read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ffr.eval.export.common import NO_OUTPUT, Exported
from ffr.eval.export.lmms_eval import export_lmms_eval
from ffr.eval.export.official import export_official
from ffr.eval.export.video_r1 import export_video_r1
from ffr.eval.export.vlmevalkit import export_vlmevalkit
from ffr.eval.results import EvalRun

EXPORTS: dict[str, Callable[[EvalRun, Path], Exported]] = {
    "lmms-eval": export_lmms_eval,
    "vlmevalkit": export_vlmevalkit,
    "video-r1": export_video_r1,
    "official": export_official,
}
"""By the word of `--to`."""


def export_run(run: EvalRun, to: str, output: Path) -> Exported:
    """Writes a run's outputs in another harness's form.

    Args:
        run: The run.
        to: One of `EXPORTS`.
        output: Directory to write into.

    Raises:
        ValueError: The form does not exist.
        EvalDataError: An item's record is malformed.
    """
    if to not in EXPORTS:
        raise ValueError(f"unknown form {to!r}; use one of {', '.join(EXPORTS)}")
    return EXPORTS[to](run, output)


__all__ = ["EXPORTS", "NO_OUTPUT", "Exported", "export_run"]
