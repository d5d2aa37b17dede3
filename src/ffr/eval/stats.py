"""Intervals and tests for scores of questions that share videos.

Questions on one video are not independent, so every interval is clustered by video. Quantiles come from
`scipy.special`: importing `scipy.stats` takes seconds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import special

Floats = npt.NDArray[np.float64]
Combine = Callable[[Mapping[str, float]], float]
"""An overall number from the mean of each task."""
LEVEL = 0.95
_STEP = 1e-4
"""Of the difference quotient; exact up to rounding for overall numbers that are linear in the means."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A number with its interval; the bounds are NaN where fewer than two videos were seen.

    Example:
        >>> clustered_estimate([1.0, 0.0, 1.0, 1.0], ["u", "u", "v", "w"]).mean
        0.75
    """

    mean: float
    low: float
    high: float
    std_error: float
    num: int
    num_clusters: int
    design_effect: float
    """Variance over that of as many independent questions, at least 1."""


def clustered_estimate(
    values: Sequence[float],
    groups: Sequence[Hashable],
    *,
    tasks: Sequence[str] | None = None,
    combine: Combine | None = None,
    bounded: bool = True,
    level: float = LEVEL,
) -> Estimate:
    """A mean, or an overall number made of task means, with an interval clustered by video.

    The standard error is the linearised cluster-robust one: with `u_i = d overall / d mean_task(i)
    * (y_i - mean_task(i)) / n_task(i)` and `U_g` the sum of `u_i` over video g of G,
    `var = G / (G - 1) * sum_g U_g ** 2`. It is never taken smaller than for independent questions. Quantiles
    are Student's t with G - 1 degrees of freedom. For a number in [0, 1] the interval is Wilson's at the
    effective sample size `p (1 - p) / var` (Korn and Graubard 1998 do the same with Clopper-Pearson), which
    stays in [0, 1]; where all values of a task are equal, G is the effective sample size.

    Args:
        values: One per question.
        groups: The video of each.
        tasks: The task of each; one task if None.
        combine: The overall number from `{task: mean}`; the plain mean over questions if None.
        bounded: Whether the number lies in [0, 1]; else a symmetric interval.
        level: Of the interval.

    Raises:
        ValueError: If lengths differ.
    """
    y = np.asarray(values, dtype=np.float64)
    if len(groups) != len(y) or (tasks is not None and len(tasks) != len(y)):
        raise ValueError(f"{len(y)} values, {len(groups)} groups, {len(tasks or y)} tasks: must be equal")
    if len(y) == 0:
        return Estimate(math.nan, math.nan, math.nan, math.nan, 0, 0, math.nan)
    names, task_of = _codes(tasks if combine and tasks is not None else [""] * len(y))
    _, group_of = _codes(groups)
    num_groups = int(group_of.max()) + 1
    counts = np.bincount(task_of).astype(np.float64)
    means = np.bincount(task_of, weights=y) / counts
    whole = combine or (lambda found: found[""])
    centre, slopes = _gradient(whole, [str(name) for name in names], means)
    residuals = y - means[task_of]
    parts = slopes[task_of] * residuals / counts[task_of]
    independent = float(np.sum(slopes**2 * _variances(residuals, task_of, counts) / counts))
    if num_groups < 2:
        return Estimate(centre, math.nan, math.nan, math.nan, len(y), num_groups, math.nan)
    sums = np.bincount(group_of, weights=parts)
    variance = max(num_groups / (num_groups - 1) * float(np.sum(sums**2)), independent)
    effect = variance / independent if independent > 0 else 1.0
    t = float(special.stdtrit(num_groups - 1, 0.5 + level / 2))
    error = math.sqrt(variance)
    if bounded:
        low, high = _wilson(centre, variance, num_groups, t)
    else:
        low, high = centre - t * error, centre + t * error
    return Estimate(centre, low, high, error, len(y), num_groups, effect)


def _codes(labels: Sequence[Hashable]) -> tuple[list[Hashable], npt.NDArray[np.intp]]:
    places: dict[Hashable, int] = {}
    codes = np.fromiter((places.setdefault(label, len(places)) for label in labels), dtype=np.intp)
    return list(places), codes


def _gradient(whole: Combine, names: Sequence[str], means: Floats) -> tuple[float, Floats]:
    """The overall number at the means and its slope in each of them."""
    slopes = np.empty(len(names))
    for place in range(len(names)):
        ends: list[float] = []
        for step in (_STEP, -_STEP):
            moved = means.copy()
            moved[place] += step
            ends.append(whole(dict(zip(names, moved.tolist(), strict=True))))
        slopes[place] = (ends[0] - ends[1]) / (2 * _STEP)
    return whole(dict(zip(names, means.tolist(), strict=True))), slopes


def _variances(residuals: Floats, task_of: npt.NDArray[np.intp], counts: Floats) -> Floats:
    return np.bincount(task_of, weights=residuals**2) / np.maximum(counts - 1, 1)


def _wilson(share: float, variance: float, num_groups: int, t: float) -> tuple[float, float]:
    spread = share * (1 - share)
    size = spread / variance if variance > 0 and spread > 0 else float(num_groups)
    scale = 1 + t * t / size
    middle = (share + t * t / (2 * size)) / scale
    half = t / scale * math.sqrt(max(spread, 0.0) / size + t * t / (4 * size * size))
    return max(middle - half, 0.0), min(middle + half, 1.0)


def bootstrap_interval(
    values: Sequence[float],
    groups: Sequence[Hashable],
    *,
    num_draws: int = 10_000,
    seed: int = 0,
    level: float = LEVEL,
) -> tuple[float, float]:
    """Percentile interval of the mean when whole videos are drawn again with replacement.

    Args:
        values: One per question: differences of two runs, or scores.
        groups: The video of each.
        num_draws: Number of draws.
        seed: Of the generator; the same one gives the same interval.
        level: Of the interval.

    Returns:
        Lower and upper bound; NaN with fewer than two videos.
    """
    _, group_of = _codes(groups)
    sums = np.bincount(group_of, weights=np.asarray(values, dtype=np.float64))
    counts = np.bincount(group_of).astype(np.float64)
    if len(sums) < 2:
        return math.nan, math.nan
    random = np.random.default_rng(seed)
    means = np.empty(num_draws)
    block = max(1, 2_000_000 // len(sums))
    for start in range(0, num_draws, block):
        drawn = random.integers(0, len(sums), (min(block, num_draws - start), len(sums)))
        means[start : start + len(drawn)] = sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
    low, high = np.quantile(means, [0.5 - level / 2, 0.5 + level / 2])
    return float(low), float(high)


def mcnemar_exact(only_first: int, only_second: int) -> float:
    """Two-sided p-value of the exact McNemar test: a fair coin on the discordant pairs.

    Args:
        only_first: Questions that only the first run has right.
        only_second: Questions that only the second has right.

    Returns:
        `min(1, 2 P(X <= min))` with `X ~ Bin(n, 1/2)`; 1 without a discordant pair.

    Example:
        >>> mcnemar_exact(1, 5)  # 2 * (1 + 6) / 64
        0.21875
    """
    total = only_first + only_second
    ways, term = 0, 1  # Whole numbers: exact for any counts.
    for place in range(min(only_first, only_second) + 1):
        ways += term
        term = term * (total - place) // (place + 1)
    return min(1.0, 2 * ways / 2**total)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values, in the order given: several comparisons at once keep their error rate.

    Example:
        >>> holm([0.01, 0.04, 0.03])
        [0.03, 0.06, 0.06]
    """
    out, largest = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[place]))
        out[place] = largest
    return out


def intraclass_correlation(values: Sequence[float], groups: Sequence[Hashable]) -> float:
    """How alike the questions on one video are: the analysis-of-variance estimate, at least 0.

    With mean squares between (B) and within (W) videos and `m0 = (n - sum n_g**2 / n) / (G - 1)`:
    `(B - W) / (B + (m0 - 1) W)`. NaN if no video has two questions or there is one video only.
    """
    y = np.asarray(values, dtype=np.float64)
    _, group_of = _codes(groups)
    if len(y) == 0 or int(group_of.max()) in (0, len(y) - 1):
        return math.nan
    sizes = np.bincount(group_of).astype(np.float64)
    means = np.bincount(group_of, weights=y) / sizes
    num, num_groups = len(y), len(sizes)
    between = float(np.sum(sizes * (means - y.mean()) ** 2)) / (num_groups - 1)
    within = float(np.sum((y - means[group_of]) ** 2)) / (num - num_groups)
    per_group = (num - float(np.sum(sizes**2)) / num) / (num_groups - 1)
    whole = between + (per_group - 1) * within
    return max(0.0, (between - within) / whole) if whole > 0 else 0.0
