"""Intervals: no number of a report stands without one.

Quantiles come from `scipy.special`: importing `scipy.stats` takes seconds, and `ffr report` should not.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from scipy import special


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean with its interval; the bounds are NaN where one value or none was seen.

    Example:
        >>> Interval(mean=0.5, low=0.4, high=0.6, num=3).num
        3
    """

    mean: float
    low: float
    high: float
    num: int


def t_interval(values: Iterable[float], *, level: float = 0.95) -> Interval:
    """Mean and Student-t interval (n - 1 degrees of freedom) of the finite values.

    Two seeds make a very wide interval (t = 12.7), and that is right.
    """
    known = [value for value in values if math.isfinite(value)]
    if not known:
        return Interval(math.nan, math.nan, math.nan, 0)
    n, mean = len(known), sum(known) / len(known)
    if n == 1:
        return Interval(mean, math.nan, math.nan, 1)
    std = math.sqrt(sum((value - mean) ** 2 for value in known) / (n - 1))
    half = float(special.stdtrit(n - 1, 0.5 + level / 2)) * std / math.sqrt(n)
    return Interval(mean, mean - half, mean + half, n)


def wilson_interval(successes: int, trials: int, *, level: float = 0.95) -> Interval:
    """Share and Wilson score interval of `successes` in `trials`."""
    if trials == 0:
        return Interval(math.nan, math.nan, math.nan, 0)
    z, share = float(special.ndtri(0.5 + level / 2)), successes / trials
    scale = 1 + z * z / trials
    centre = (share + z * z / (2 * trials)) / scale
    half = z / scale * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))
    return Interval(share, max(centre - half, 0.0), min(centre + half, 1.0), trials)
