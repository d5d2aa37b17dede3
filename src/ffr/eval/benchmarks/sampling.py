"""Which frames each benchmark's authors take."""

from __future__ import annotations

import numpy as np


def linspace(total: int, num: int) -> tuple[int, ...]:
    """`numpy.linspace(0, total - 1, num)` cut down to integers: the first and the last frame are in.

    Args:
        total: Number of frames.
        num: How many are wanted; at most `total` are taken.

    Raises:
        ValueError: If `total` or `num` is less than 1.
    """
    if total < 1 or num < 1:
        raise ValueError(f"sampling needs total >= 1 and num >= 1, got total={total}, num={num}")
    return tuple(int(i) for i in np.linspace(0, total - 1, min(num, total), dtype=int))
