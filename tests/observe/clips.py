"""Small clips whose frame number can be read back from the picture."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from ffr.types import Option, ProblemType, Sample

BASE, STEP = 20, 3
"""Gray level of frame k is BASE + STEP * k: 70 frames fit, lossy coding moves it by less than 1."""


def gray(number: int) -> int:
    return BASE + STEP * number


def read_number(pixels: np.ndarray) -> int:
    """Frame number from the mean gray level."""
    return round((float(pixels.mean()) - BASE) / STEP)


def write_clip(
    path: Path,
    num_frames: int,
    *,
    size: tuple[int, int] = (64, 48),
    rate: int = 10,
    times_ms: Sequence[int] | None = None,
    codec: str = "libx264",
    options: dict[str, str] | None = None,
    container_options: dict[str, str] | None = None,
    split: bool = False,
) -> Path:
    """A clip whose frame k is uniform gray(k); `split` makes the left half white instead."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", options=container_options or {}) as container:
        stream = container.add_stream(codec, rate=rate)
        stream.width, stream.height = size
        stream.pix_fmt = "yuv420p"
        stream.options = (
            options if options is not None else {"crf": "4", "g": "8", "bf": "2", "preset": "veryfast"}
        )
        if times_ms is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        for k in range(num_frames):
            pixels = np.full((size[1], size[0], 3), gray(k), np.uint8)
            if split:
                pixels[:] = 16
                pixels[:, : size[0] // 2] = 235
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            if times_ms is not None:
                frame.pts, frame.time_base = times_ms[k], Fraction(1, 1000)
            for packet in stream.encode(frame):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    return path


def make_sample(video: Path, **changes: object) -> Sample:
    values: dict[str, object] = {
        "uid": "test/1",
        "question": "Which {colour} is {{it}}?",
        "answer": "B",
        "problem_type": ProblemType.MULTIPLE_CHOICE,
        "video": video,
        "options": (Option("A", "red"), Option("B", "blue {% x %}")),
    }
    return Sample(**{**values, **changes})  # type: ignore[arg-type]
