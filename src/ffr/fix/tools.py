"""The teacher's three tools: on the original clip, bounded, with no path, URL or command in reach."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, cast

import numpy as np
import numpy.typing as npt

from ffr.observe import MediaError, read_frames_at
from ffr.observe.folder import folder_fps
from ffr.observe.video import DecodeLimits
from ffr.types import Box, Frame, Observation, Sample, ToolCall

Pixels = npt.NDArray[np.uint8]

MAX_SEGMENT_FRAMES: Final = 8
MAX_FPS: Final = 30.0
MIN_ZOOM_SIDE: Final = 0.02
"""Smallest side of a zoomed region, as a fraction of the frame."""
ZOOM_GAIN: Final = 4
"""A crop is read at this many times the pixel limit, since only a part of the frame is kept."""
_MAX_ECHO: Final = 120


@dataclass(frozen=True, slots=True)
class LabelledImage:
    """One picture for the teacher with the words that say which moment it is.

    Example:
        >>> LabelledImage(label="Frame 9 (t=12.8 s)", pixels=np.zeros((2, 2, 3), np.uint8)).label
        'Frame 9 (t=12.8 s)'
    """

    label: str
    pixels: Pixels


@dataclass(frozen=True, slots=True)
class ToolResult:
    """What a call gave: the record for the trace, and the pictures for the teacher.

    Example:
        >>> ToolResult(call=ToolCall(name="get_frames", arguments={}, ok=False)).images
        ()
    """

    call: ToolCall
    images: tuple[LabelledImage, ...] = ()


class ToolError(ValueError):
    """Arguments the teacher can mend; the message is the tool's answer."""


def frame_label(frame: Frame) -> str:
    """`Frame 9 (t=12.8 s)`: number and timestamp, the same for student, teacher and report."""
    return f"Frame {frame.number} (t={frame.timestamp_s:.1f} s)"


def tool_schemas(num_frames: int) -> list[dict[str, Any]]:
    """The tools as OpenAI function definitions for an observation of `num_frames` frames."""
    number = {"type": "integer", "minimum": 1, "maximum": max(1, num_frames)}
    seconds = {"type": "number", "minimum": 0}
    box = {"type": "array", "items": {"type": "number"}, "minItems": 4, "maxItems": 4}
    return [
        _function(
            "get_frames",
            "Show the student's frames start..end again, at full resolution.",
            {"start": number, "end": number},
        ),
        _function(
            "get_segment",
            f"Show the clip from t0 to t1 seconds at fps frames per second, at most {MAX_SEGMENT_FRAMES}.",
            {"t0": seconds, "t1": seconds, "fps": {"type": "number"}},
        ),
        _function(
            "zoom_region",
            "Show one region of one of the student's frames, enlarged.",
            {"frame": number, "box": box},
        ),
    ]


def _function(name: str, description: str, properties: dict[str, Any]) -> dict[str, Any]:
    parameters = {
        "type": "object",
        "additionalProperties": False,
        "required": list(properties),
        "properties": properties,
    }
    return {
        "type": "function",
        "function": {"name": name, "description": description, "parameters": parameters},
    }


class ToolBox:
    """Runs tool calls for one rollout; knows the clip, so that no argument has to name it.

    Args:
        sample: Whose clip is read.
        observation: The student's view: its frame numbers are the tools' frame numbers.
        max_px: Upper limit of one returned image's area.
        max_images: Upper limit of images over all calls.
        timeout_s: Wall time of one look at the clip: it is read in a process that is killed after it.

    Example:
        >>> box = ToolBox(sample, observation, max_px=401_408, max_images=48)  # doctest: +SKIP
    """

    def __init__(
        self,
        sample: Sample,
        observation: Observation,
        *,
        max_px: int,
        max_images: int,
        timeout_s: float = 20.0,
    ) -> None:
        self._sample = sample
        self._frames = observation.frames
        last_s = observation.frames[-1].timestamp_s if observation.frames else 0.0
        self._bounds_s = sample.clip_s or (0.0, max(observation.duration_s, last_s))
        self._max_px = max_px
        self._images_left = max_images
        self._limits = DecodeLimits(timeout_s=timeout_s, isolate=True)
        self.calls: list[ToolCall] = []

    @property
    def num_images(self) -> int:
        """Images returned so far."""
        return sum(call.num_images for call in self.calls)

    async def call(self, name: str, arguments: Mapping[str, Any]) -> ToolResult:
        """Run one call; wrong arguments and unreadable clips are answered in words, never raised."""
        try:
            text, images = await self._dispatch(name, arguments)
            self._images_left -= len(images)
            call = ToolCall(name=name, arguments=dict(arguments), result=text, num_images=len(images))
        except (ToolError, MediaError, OverflowError) as error:
            images = ()
            call = ToolCall(
                name=printable(name)[:40],
                arguments=_bounded(arguments),
                result=f"error: {_words(error)}"[:400],
                ok=False,
            )
        self.calls.append(call)
        return ToolResult(call=call, images=images)

    async def student_frames(self) -> tuple[LabelledImage, ...]:
        """All frames as the student saw them, labelled.

        Raises:
            MediaError: The observation carries no pixels (it was read back) and the clip cannot be read.
        """
        return await self._labelled(self._frames, as_seen=True)

    async def _dispatch(
        self, name: str, arguments: Mapping[str, Any]
    ) -> tuple[str, tuple[LabelledImage, ...]]:
        if name == "get_frames":
            _only(arguments, "start", "end")
            return await self._get_frames(self._number(arguments, "start"), self._number(arguments, "end"))
        if name == "get_segment":
            _only(arguments, "t0", "t1", "fps")
            t0, t1, fps = (_real(arguments, key) for key in ("t0", "t1", "fps"))
            return await self._get_segment(t0, t1, fps)
        if name == "zoom_region":
            _only(arguments, "frame", "box")
            return await self._zoom_region(self._number(arguments, "frame"), _box(arguments))
        raise ToolError(
            f"there is no tool {printable(name)[:40]!r}; use get_frames, get_segment or zoom_region"
        )

    async def _get_frames(self, start: int, end: int) -> tuple[str, tuple[LabelledImage, ...]]:
        if start > end:
            raise ToolError(f"start {start} is after end {end}; give start <= end")
        self._afford(end - start + 1)
        images = await self._labelled(self._frames[start - 1 : end], as_seen=False)
        return f"Frames {start}-{end}: {len(images)} images attached below.", images

    async def _get_segment(self, t0: float, t1: float, fps: float) -> tuple[str, tuple[LabelledImage, ...]]:
        if self._sample.media_type == "image":
            raise ToolError("this is a still image; use zoom_region")
        start_s, end_s = self._bounds_s
        if not start_s <= t0 < t1 <= end_s + 0.05:
            raise ToolError(f"give {start_s:.1f} <= t0 < t1 <= {end_s:.1f} seconds")
        if not 0.0 < fps <= MAX_FPS:
            raise ToolError(f"fps must be above 0 and at most {MAX_FPS:.0f}")
        t1 = min(t1, end_s)
        wanted = max(2, math.floor((t1 - t0) * fps) + 1)
        count = min(wanted, MAX_SEGMENT_FRAMES)
        self._afford(count)
        times = [t0 + (t1 - t0) * i / (count - 1) for i in range(count)]
        pixels = await self._read(times, self._max_px)
        images = tuple(LabelledImage(f"Clip at t={t:.2f} s", p) for t, p in zip(times, pixels, strict=True))
        thinned = f" (thinned from {wanted})" if wanted > count else ""
        return f"Segment {t0:.2f}-{t1:.2f} s: {count} images{thinned} attached below.", images

    async def _zoom_region(self, number: int, box: Box) -> tuple[str, tuple[LabelledImage, ...]]:
        self._afford(1)
        frame = self._frames[number - 1]
        if self._sample.media_type == "image":
            whole = _own_pixels(frame)
        else:
            whole = (await self._read([frame.timestamp_s], ZOOM_GAIN * self._max_px))[0]
        crop = _crop(whole, box, self._max_px)
        corners = ", ".join(f"{v:.2f}" for v in box)
        label = f"{frame_label(frame)}, region [{corners}]"
        return f"Frame {number}, region [{corners}]: 1 image attached below.", (LabelledImage(label, crop),)

    async def _labelled(self, frames: Sequence[Frame], *, as_seen: bool) -> tuple[LabelledImage, ...]:
        have_pixels = all(frame.pixels is not None for frame in frames)
        if self._sample.media_type == "image" or (as_seen and have_pixels):
            pixels = tuple(_own_pixels(frame) for frame in frames)
        else:
            pixels = await self._read([frame.timestamp_s for frame in frames], self._max_px)
        return tuple(LabelledImage(frame_label(f), p) for f, p in zip(frames, pixels, strict=True))

    async def _read(self, times_s: Sequence[float], max_px: int) -> tuple[Pixels, ...]:
        """Pixels at times of the file, which are the student's too; decoded in a process of its own."""
        sample = self._sample
        frames = await asyncio.to_thread(
            read_frames_at,
            sample.video,
            times_s,
            max_px=max_px,
            clip_s=sample.clip_s,
            folder_fps=folder_fps(sample) if sample.video.is_dir() else None,
            limits=self._limits,
        )
        if len(frames) != len(times_s):
            raise ToolError(f"the clip gave {len(frames)} of {len(times_s)} frames; ask for other times")
        return tuple(_own_pixels(frame) for frame in frames)

    def _number(self, arguments: Mapping[str, Any], key: str) -> int:
        value = arguments.get(key)
        total = len(self._frames)
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= total:
            raise ToolError(f"{key} must be a whole number from 1 to {total}")
        return value

    def _afford(self, count: int) -> None:
        if count > self._images_left:
            raise ToolError(
                f"{count} images asked for, {self._images_left} left; write the patch now or ask for fewer"
            )


def parse_arguments(text: str) -> dict[str, Any]:
    """Tool arguments as the model wrote them; raises `ToolError` with a remedy if they are no JSON object."""
    if len(text) > 4_000:
        raise ToolError("the arguments are too long; give only the tool's own fields")
    try:
        value = json.loads(text or "{}")
    except (ValueError, RecursionError) as error:
        raise ToolError(
            f"the arguments are not JSON ({type(error).__name__}); write one JSON object"
        ) from error
    if not isinstance(value, dict):
        raise ToolError("the arguments must be one JSON object")
    return cast("dict[str, Any]", value)


def printable(text: str) -> str:
    """The text with lone surrogates replaced, so that every file can hold it."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _words(error: Exception) -> str:
    """An error for the teacher: no path, whose names could tell the answer."""
    if isinstance(error, MediaError):
        return f"the clip cannot be read here ({error.status}): {error.detail}".replace(str(error.path), "it")
    return str(error)


def _own_pixels(frame: Frame) -> Pixels:
    if frame.pixels is None:
        raise ToolError("this frame has no pixels")
    return frame.pixels


def _only(arguments: Mapping[str, Any], *names: str) -> None:
    unknown = [key[:40] for key in arguments if key not in names]
    if unknown:
        raise ToolError(f"unknown argument {unknown[0]!r}; the arguments are {', '.join(names)}")


def _real(arguments: Mapping[str, Any], key: str) -> float:
    value = arguments.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ToolError(f"{key} must be a number")
    return float(value)


def _box(arguments: Mapping[str, Any]) -> Box:
    value = arguments.get("box")
    items = cast("list[Any]", value) if isinstance(value, list) else []
    good = len(items) == 4 and all(
        isinstance(v, int | float) and not isinstance(v, bool) and math.isfinite(v) for v in items
    )
    if not good:
        raise ToolError("box must be four numbers [x0, y0, x1, y1]")
    x0, y0, x1, y1 = (float(v) for v in items)
    inside = 0.0 <= x0 < x1 <= 1.0 and 0.0 <= y0 < y1 <= 1.0
    if not inside or x1 - x0 < MIN_ZOOM_SIDE or y1 - y0 < MIN_ZOOM_SIDE:
        raise ToolError(
            f"box must lie in the frame with x0 < x1 and y0 < y1, sides at least {MIN_ZOOM_SIDE} of the frame"
        )
    return (x0, y0, x1, y1)


def _crop(pixels: Pixels, box: Box, max_px: int) -> Pixels:
    from PIL import Image

    height, width = pixels.shape[:2]
    x0, y0 = math.floor(box[0] * width), math.floor(box[1] * height)
    x1, y1 = max(x0 + 1, math.ceil(box[2] * width)), max(y0 + 1, math.ceil(box[3] * height))
    crop = pixels[y0:y1, x0:x1]
    # Small crops are enlarged, at most four times a side: a few pixels say nothing to a vision tower.
    scale = min(4.0, math.sqrt(max_px / (crop.shape[0] * crop.shape[1])))
    size = (max(1, int(crop.shape[1] * scale)), max(1, int(crop.shape[0] * scale)))
    return np.asarray(Image.fromarray(np.ascontiguousarray(crop)).resize(size, Image.Resampling.BICUBIC))


def _bounded(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments fit for a trace: few keys, short values."""
    return {str(key)[:40]: repr(value)[:_MAX_ECHO] for key, value in list(arguments.items())[:8]}
