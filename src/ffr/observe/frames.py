"""Which frames, at what size, under which name: indices, resizing, hashes."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from ffr.types import Frame

Pixels = npt.NDArray[np.uint8]


def uniform_indices(total: int, n: int) -> tuple[int, ...]:
    """Spread n indices evenly over 0..total-1, first and last included.

    `numpy.linspace(0, total - 1, n).round()` as all peers sample (Video-R1, qwen-vl-utils); halves
    round to even. A clip with fewer than n frames gives each of its frames once.

    Args:
        total: Number of frames.
        n: How many are wanted.

    Returns:
        Rising indices, `min(total, n)` of them; for n = 1 the first frame.

    Raises:
        ValueError: If `total` or `n` is less than 1.
    """
    if total < 1 or n < 1:
        raise ValueError(f"uniform_indices needs total >= 1 and n >= 1, got total={total}, n={n}")
    if n >= total:
        return tuple(range(total))
    return tuple(int(i) for i in np.linspace(0, total - 1, n).round())


@dataclass(frozen=True, slots=True)
class FrameRule:
    """A way to choose frames, with the name that tells it apart in caches and results.

    Example:
        >>> UNIFORM.choose(9, 3, 25.0)
        (0, 4, 8)
    """

    name: str
    choose: Callable[[int, int, float], Sequence[int]]
    """From the number of frames, how many are wanted and frames per second to 0-based indices."""


UNIFORM = FrameRule("uniform", lambda total, num, fps: uniform_indices(total, num))
"""`uniform_indices`, as all peers sample."""


def fit_size(width: int, height: int, *, max_px: int, min_px: int = 0, factor: int = 28) -> tuple[int, int]:
    """Width and height for the model: sides multiples of `factor`, area within the limits.

    The rule of Qwen2-VL's `smart_resize`: each side is rounded to the nearest multiple; if the area
    is then too large (too small) both sides are scaled by the same number and rounded down (up).
    Where the two limits can't both hold (very long strips) the upper one wins.

    Args:
        width: Source width in pixels.
        height: Source height in pixels.
        max_px: Upper limit of the area in pixels.
        min_px: Lower limit of the area in pixels.
        factor: Side granularity in pixels.

    Returns:
        (width, height) in pixels.

    Raises:
        ValueError: If a side is less than 1 or one tile exceeds `max_px`.
    """
    if width < 1 or height < 1:
        raise ValueError(f"image sides must be at least 1 px, got {width}x{height}")
    if factor * factor > max_px:
        raise ValueError(f"max_px {max_px} is less than one {factor}x{factor} tile")
    out_w = max(factor, round(width / factor) * factor)
    out_h = max(factor, round(height / factor) * factor)
    if out_w * out_h > max_px:
        scale = math.sqrt(width * height / max_px)
        out_w = max(factor, math.floor(width / scale / factor) * factor)
        out_h = max(factor, math.floor(height / scale / factor) * factor)
    elif out_w * out_h < min_px:
        scale = math.sqrt(min_px / (width * height))
        out_w = math.ceil(width * scale / factor) * factor
        out_h = math.ceil(height * scale / factor) * factor
    while out_w * out_h > max_px:
        if out_w >= out_h:
            out_w -= factor
        else:
            out_h -= factor
    return out_w, out_h


def resize(pixels: Pixels, size: tuple[int, int]) -> Pixels:
    """Bicubic, antialiased resize of RGB pixels to (width, height); a copy only where needed."""
    height, width = pixels.shape[:2]
    if (width, height) == size:
        return pixels
    return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC), dtype=np.uint8)


def pixel_hash(pixels: Pixels) -> str:
    """sha256 (hex) of an RGB array's shape and bytes: a frame's name in caches and traces."""
    digest = hashlib.sha256(repr(pixels.shape).encode())
    digest.update(np.ascontiguousarray(pixels).data)
    return digest.hexdigest()


def make_frame(pixels: Pixels, *, number: int, source_index: int, timestamp_s: float) -> Frame:
    """A `Frame` from RGB pixels, shape (height, width, 3); the pixels become read-only."""
    pixels = np.ascontiguousarray(pixels)
    pixels.setflags(write=False)
    return Frame(
        number=number,
        source_index=source_index,
        timestamp_s=timestamp_s,
        sha256=pixel_hash(pixels),
        width_px=int(pixels.shape[1]),
        height_px=int(pixels.shape[0]),
        pixels=pixels,
    )


def repainted(frame: Frame, pixels: Pixels, *, source_index: int | None = None) -> Frame:
    """The same slot (number, time) with other pixels."""
    return make_frame(
        pixels,
        number=frame.number,
        source_index=frame.source_index if source_index is None else source_index,
        timestamp_s=frame.timestamp_s,
    )
