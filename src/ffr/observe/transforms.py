"""Pure changes of an observation: the patch, and the controls that ask whether frames matter.

Each returns a new observation with a new `view_id`; pixels are never changed in place.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Collection, Sequence
from dataclasses import replace

import numpy as np

from ffr.observe.frames import repainted, resize, uniform_indices
from ffr.observe.prompt import check_visual, render_patch
from ffr.types import Box, EvidencePatch, Frame, Observation

MAX_EXTRA_FRAMES = 16
"""Frames and crops shown again at most; more are thinned evenly and noted."""


def view_id(
    frames: Sequence[Frame],
    prompt: str,
    system: str | None = None,
    patch_text: str = "",
    extra_frames: Sequence[Frame] = (),
) -> str:
    """sha256 (hex) of all that the model sees: pixels and times in order, and every text."""
    seen = [
        [[f.sha256, round(f.timestamp_s, 4)] for f in frames],
        prompt,
        system,
        patch_text,
        [[f.sha256, round(f.timestamp_s, 4)] for f in extra_frames],
    ]
    return hashlib.sha256(json.dumps(seen).encode()).hexdigest()


def _renewed(obs: Observation) -> Observation:
    new_id = view_id(obs.frames, obs.prompt, obs.system, obs.patch_text, obs.extra_frames)
    return replace(obs, view_id=new_id)


def apply_patch(obs: Observation, patch: EvidencePatch, *, visual: str = "pointers") -> Observation:
    """Make x + c (FFR eq. 6, arXiv 2604.16243): the same frames and prompt, the patch after them.

    Args:
        obs: The observation of the failed rollout; a patch that it already has is replaced.
        patch: What the teacher gives.
        visual: `none` text without pointers, `pointers` with frame ranges and boxes, `frames` also
            shows those frames and crops again, with their numbers and times.

    Returns:
        A new observation; `obs` is unchanged.

    Raises:
        ValueError: If `visual` is unknown.
    """
    check_visual(visual)
    extra: tuple[Frame, ...] = ()
    notes = obs.notes
    if visual == "frames":
        extra = _shown_again(obs, patch)
        if len(extra) > MAX_EXTRA_FRAMES:
            notes = (*notes, f"extra_frames_limited:{len(extra)}")
            extra = tuple(extra[i] for i in uniform_indices(len(extra), MAX_EXTRA_FRAMES))
    return _renewed(
        replace(obs, patch_text=render_patch(patch, obs, visual=visual), extra_frames=extra, notes=notes)
    )


def _shown_again(obs: Observation, patch: EvidencePatch) -> tuple[Frame, ...]:
    """Frames of the key ranges, each once, then the crops of the regions."""
    whole = [f for f in obs.frames if any(a <= f.number <= b for a, b in patch.key_frames)]
    crops = [
        crop_frame(f, region.box)
        for region in patch.spatial_regions
        for f in obs.frames
        if region.frames[0] <= f.number <= region.frames[1] and f.pixels is not None
    ]
    return (*whole, *crops)


def crop_frame(frame: Frame, box: Box) -> Frame:
    """The part of a frame that holds a box, enlarged to the frame's own size.

    The cut is widened to the frame's aspect ratio, so nothing is stretched and crops can be stacked
    with frames.

    Args:
        frame: A frame with pixels.
        box: (x0, y0, x1, y1) as fractions of the frame.

    Returns:
        A frame of the same size, number and time.

    Raises:
        ValueError: If the frame has no pixels or the box has no area inside the frame.
    """
    if frame.pixels is None:
        raise ValueError(f"frame {frame.number} has no pixels to crop (it was read from a trace)")
    x0, y0, x1, y1 = (min(1.0, max(0.0, v)) for v in box)
    if x1 <= x0 or y1 <= y0:
        raise ValueError(f"box {box} has no area; give x0 < x1 and y0 < y1 in 0..1")
    side = max(x1 - x0, y1 - y0)
    left = min(max((x0 + x1 - side) / 2, 0.0), 1.0 - side)
    top = min(max((y0 + y1 - side) / 2, 0.0), 1.0 - side)
    width = max(1, math.ceil(side * frame.width_px - 1e-9))
    height = max(1, math.ceil(side * frame.height_px - 1e-9))
    col = min(int(left * frame.width_px + 1e-9), frame.width_px - width)
    row = min(int(top * frame.height_px + 1e-9), frame.height_px - height)
    cut = np.ascontiguousarray(frame.pixels[row : row + height, col : col + width])
    return repainted(frame, resize(cut, (frame.width_px, frame.height_px)).copy())


def _noted(obs: Observation, note: str, frames: Sequence[Frame]) -> Observation:
    return _renewed(replace(obs, frames=tuple(frames), notes=(*obs.notes, note)))


def _filled(slot: Frame, content: Frame) -> Frame:
    """The slot's number and time with another frame's pixels."""
    return replace(content, number=slot.number, timestamp_s=slot.timestamp_s)


def shuffle_frames(obs: Observation, seed: int) -> Observation:
    """Frames in a random order, numbers and times in theirs (the control of T-GRPO, Video-R1).

    With two or more frames the order always changes.
    """
    order = list(np.random.default_rng(seed).permutation(len(obs.frames)))
    if len(order) > 1 and order == sorted(order):
        order = [*order[1:], order[0]]
    frames = [_filled(slot, obs.frames[i]) for slot, i in zip(obs.frames, order, strict=True)]
    return _noted(obs, f"shuffled:{seed}", frames)


def reverse_frames(obs: Observation) -> Observation:
    """The video backwards, numbers and times as before."""
    frames = [_filled(a, b) for a, b in zip(obs.frames, reversed(obs.frames), strict=True)]
    return _noted(obs, "reversed", frames)


def mask_frames(obs: Observation, numbers: Collection[int]) -> Observation:
    """The named frames replaced by uniform gray (128), at their places.

    Raises:
        ValueError: If a number is not in the observation.
    """
    unknown = set(numbers) - {f.number for f in obs.frames}
    if unknown:
        raise ValueError(
            f"no frames numbered {sorted(unknown)} in an observation of {len(obs.frames)} frames"
        )
    frames = [
        repainted(f, np.full((f.height_px, f.width_px, 3), 128, np.uint8)) if f.number in numbers else f
        for f in obs.frames
    ]
    return _noted(obs, "masked:" + ",".join(str(n) for n in sorted(set(numbers))), frames)


def drop_video(obs: Observation) -> Observation:
    """The question without its video: what language alone can answer."""
    return _renewed(replace(obs, frames=(), extra_frames=(), notes=(*obs.notes, "video_dropped")))
