"""Which frames each benchmark's authors take: their formulas on the frames of a clip, 0-based.

Where a clip has fewer frames than are asked for, the official codes repeat frames (midpoints, MMVU),
take fewer (VSI-Bench, LongVideoBench) or stop (Video-R1 through qwen-vl-utils raises an error). Here
every formula takes each frame once then.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

Rule = Callable[[int, int], tuple[int, ...]]


def _clamped(total: int, num: int, rule: Rule) -> tuple[int, ...]:
    """`rule(total, num)`, or each frame once if there aren't more than `num`.

    Raises:
        ValueError: If `total` or `num` is less than 1.
    """
    if total < 1 or num < 1:
        raise ValueError(f"sampling needs total >= 1 and num >= 1, got total={total}, num={num}")
    return tuple(range(total)) if num > total else rule(total, num)


def linspace(total: int, num: int) -> tuple[int, ...]:
    """`numpy.linspace(0, total - 1, num, dtype=int)`: the first and the last frame, rounded down between.

    MMVU (`utils/video_process.py`), VSI-Bench (its fork of lmms-eval). One frame is the first.

    Args:
        total: Number of frames.
        num: How many are wanted; at most `total` are taken.

    Raises:
        ValueError: If `total` or `num` is less than 1.
    """
    return _clamped(total, num, lambda n, k: tuple(np.linspace(0, n - 1, k, dtype=int).tolist()))


def linspace_with_last(total: int, num: int) -> tuple[int, ...]:
    """`linspace`, but one frame is the last: VideoMMMU shows the question's image at the end.

    Raises:
        ValueError: If `total` or `num` is less than 1.
    """
    return (total - 1,) if num == 1 and total > 0 else linspace(total, num)


def midpoints(total: int, num: int) -> tuple[int, ...]:
    """The middle of each of `num` equal segments of 0..total-1, as MVBench's notebook computes it.

    `int(start + size / 2 + numpy.round(size * i))` with `size = (end - start) / num`: the offset is
    rounded to even halves before the cut, so that a frame may come twice when `num` is close to
    `total`. Video-Holmes uses the same code for InternVL.

    Raises:
        ValueError: If `total` or `num` is less than 1.
    """

    def rule(n: int, k: int) -> tuple[int, ...]:
        size = float(n - 1) / k
        return tuple((size / 2 + np.round(size * np.arange(k))).astype(int).tolist())

    return _clamped(total, num, rule)


def floor_steps(total: int, num: int, *, fps: float) -> tuple[int, ...]:
    """LongVideoBench's `int(total / n) * i` with `n = min(num, int(duration))`: at most one per second.

    The official loader divides by zero for a clip of less than a second; here it gives one frame.

    Args:
        total: Number of frames, `int(duration * fps)` there.
        num: How many are wanted.
        fps: Frames per second.

    Raises:
        ValueError: If `total` or `num` is less than 1, or `fps` is not positive.
    """
    if not fps > 0:
        raise ValueError(f"floor_steps needs fps > 0, got {fps}")
    most = min(num, max(1, int(total / fps + 1e-9)))
    return _clamped(total, most, lambda n, k: tuple(int(n / k) * i for i in range(k)))


def bound_frames(total: int, clip_s: tuple[float, float], fps: float, *, first: int = 0) -> tuple[int, int]:
    """MVBench's bounds: the first and the last frame of a clip inside a file, both included, 0-based.

    Args:
        total: Number of frames of the file.
        clip_s: Start and end in seconds.
        fps: Frames per second.
        first: Number of the file's first frame: 0 for videos, 1 for folders of images.

    Raises:
        ValueError: If no frame lies between the bounds.
    """
    start = max(first, round(clip_s[0] * fps)) - first
    end = min(round(clip_s[1] * fps), total - 1 + first) - first
    if not 0 <= start <= end:
        raise ValueError(
            f"no frame between {clip_s[0]:g} s and {clip_s[1]:g} s of {total} frames at {fps:g} fps"
        )
    return start, end
