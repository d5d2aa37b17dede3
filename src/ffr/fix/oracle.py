"""A teacher that knows where the evidence is: MicroWorld's time lines, tracks of real footage.

It looks through the same tools and answers in the same JSON as a model would, so tools, schema, leak gate
and trace are exercised by every run that has no server.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from typing import Any, Final

from ffr.config import FixConfig
from ffr.fix.patch import MAX_RANGES, MAX_REGIONS, PatchError, parse_patch
from ffr.fix.teacher import FailureKind, TeacherRequest, short_hash
from ffr.fix.tools import ToolBox
from ffr.types import Box, Diagnosis, ErrorType, Evidence, Frame, FrameRange, TeacherCost

ORACLE_VERSION: Final = 1

GUIDANCE: Final = {
    ErrorType.ATTRIBUTE: "Look closely at the object in these frames.",
    ErrorType.COUNTING: "Count again with care, frame by frame.",
    ErrorType.DYNAMICS: "Follow the motion from frame to frame.",
    ErrorType.TEMPORAL: "Check the order of the events again.",
    ErrorType.SPATIAL: "Compare the positions in these frames.",
    ErrorType.LOGIC: "Check each condition in these frames.",
    ErrorType.MISCONCEPTION: "Look at these frames again with care.",
}
"""One neutral sentence per error type, at most 60 characters: small students have small prompts."""


@dataclass(frozen=True, slots=True)
class Pointing:
    """Where the oracle points.

    Example:
        >>> Pointing(key_frames=((5, 8),), boxes=(), note="").key_frames
        ((5, 8),)
    """

    key_frames: tuple[FrameRange, ...]
    boxes: tuple[Box, ...]
    note: str


class OracleTeacher:
    """Answers from `sample.evidence`; deterministic, needs nothing.

    `fix.teacher.oracle_error_rate` is the share of (sample, rollout text) pairs for which it points
    elsewhere: half a clip later and at the opposite side of the frame.

    Example:
        >>> OracleTeacher(FixConfig()).name.startswith("oracle")
        True
    """

    def __init__(self, cfg: FixConfig | None = None) -> None:
        self._cfg = (cfg or FixConfig()).teacher
        self.name = f"oracle:v{ORACLE_VERSION}:err{self._cfg.oracle_error_rate:g}"

    async def diagnose(self, request: TeacherRequest) -> Diagnosis:
        """Point at the evidence; `no_evidence` if the sample has none."""
        started = time.monotonic()
        evidence = request.sample.evidence
        frames = request.rollout.observation.frames
        if evidence is None or not frames or not (evidence.spans_s or evidence.boxes):
            return Diagnosis(patch=None, failure=FailureKind.NO_EVIDENCE, detail=request.sample.uid)
        pointing = self._point(request, evidence, frames)
        toolbox = ToolBox(
            request.sample,
            request.rollout.observation,
            max_px=self._cfg.max_image_px,
            max_images=self._cfg.max_images,
            timeout_s=self._cfg.tool_timeout_s,
        )
        for start, end in pointing.key_frames or ((1, len(frames)),):
            await toolbox.call("get_frames", {"start": start, "end": end})
        text = json.dumps(_reply(request, pointing, len(frames)))
        cost = TeacherCost(num_calls=1, num_images=toolbox.num_images, wall_s=time.monotonic() - started)
        calls = tuple(toolbox.calls)
        try:
            patch = parse_patch(text, len(frames)).to_patch()
        except PatchError as error:
            return Diagnosis(
                None, FailureKind.INVALID_OUTPUT, detail=error.reason, tool_calls=calls, cost=cost
            )
        return Diagnosis(patch=patch, tool_calls=calls, cost=cost)

    async def aclose(self) -> None:
        """Nothing to release."""

    def _point(self, request: TeacherRequest, evidence: Evidence, frames: tuple[Frame, ...]) -> Pointing:
        ranges = merge_ranges([span_to_range(span, frames) for span in evidence.spans_s], MAX_RANGES)
        if len(frames) < 2:
            ranges = ()
        boxes, note = evidence.boxes[:MAX_REGIONS], evidence.note
        if self._errs(request):
            ranges = tuple(_elsewhere(frame_range, len(frames)) for frame_range in ranges)
            boxes, note = tuple(_mirrored(box) for box in boxes), ""
        # The gate named a layer: the note is the only free text in the patch, so it goes.
        return Pointing(ranges, boxes, "" if request.reask else note)

    def _errs(self, request: TeacherRequest) -> bool:
        draw = int(short_hash("oracle", request.sample.uid, request.rollout.text), 16) / 16**12
        return draw < self._cfg.oracle_error_rate


def span_to_range(span_s: tuple[float, float], frames: tuple[Frame, ...]) -> FrameRange:
    """The student's frames inside a span of seconds, as an odd..even range at least two frames wide.

    Qwen students fuse frames (1, 2), (3, 4), ... into one token row, so nothing narrower can be seen.
    A span between two frames takes the nearest frame.

    Args:
        span_s: Start and end, seconds of the student's time line.
        frames: The student's frames, in order, at least one.

    Returns:
        Inclusive 1-based frame numbers, inside `1..len(frames)`.
    """
    inside = [f.number for f in frames if span_s[0] - 1e-6 <= f.timestamp_s <= span_s[1] + 1e-6]
    if not inside:
        middle = (span_s[0] + span_s[1]) / 2
        inside = [min(frames, key=lambda f: abs(f.timestamp_s - middle)).number]
    return snap_to_pairs((inside[0], inside[-1]), len(frames))


def snap_to_pairs(frame_range: FrameRange, total: int) -> FrameRange:
    """Widen an inclusive range to odd..even bounds within `1..total`, two frames wide if possible."""
    start = frame_range[0] - (frame_range[0] + 1) % 2
    end = min(total, frame_range[1] + frame_range[1] % 2)
    if start == end and total > 1:
        start = max(1, end - 1)
    return (max(1, start), end)


def merge_ranges(ranges: list[FrameRange], limit: int) -> tuple[FrameRange, ...]:
    """Sorted, overlapping or touching ranges joined; the closest ones too until at most `limit` remain."""
    merged: list[FrameRange] = []
    for start, end in sorted(ranges):
        if merged and start <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    while len(merged) > limit:
        gaps = [merged[i + 1][0] - merged[i][1] for i in range(len(merged) - 1)]
        at = gaps.index(min(gaps))
        merged[at : at + 2] = [(merged[at][0], merged[at + 1][1])]
    return tuple(merged)


def error_type_of(scenario: str) -> ErrorType:
    """The error type that a question's scenario names; `misconception` when it names none."""
    try:
        return ErrorType(scenario.strip().lower())
    except ValueError:
        return ErrorType.MISCONCEPTION


def _reply(request: TeacherRequest, pointing: Pointing, num_frames: int) -> dict[str, Any]:
    kind = error_type_of(request.sample.scenario)
    span = pointing.key_frames[0] if pointing.key_frames else (1, num_frames)
    return {
        "error_types": [str(kind)],
        "key_frames": [list(frame_range) for frame_range in pointing.key_frames],
        "temporal_markers": [pointing.note] if pointing.note else [],
        "spatial_regions": [{"frames": list(span), "box": list(box)} for box in pointing.boxes],
        "guidance": GUIDANCE[kind],
    }


def _elsewhere(frame_range: FrameRange, total: int) -> FrameRange:
    """A range of the same width half a clip away."""
    width = frame_range[1] - frame_range[0]
    start = (frame_range[0] - 1 + total // 2) % total + 1
    start = min(start, total - width)
    return snap_to_pairs((start, start + width), total)


def _mirrored(box: Box) -> Box:
    x0, y0, x1, y1 = box
    return (1.0 - x1, 1.0 - y1, 1.0 - x0, 1.0 - y0)
