"""How many questions does it take to see a difference, and how small a one can each benchmark show?"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from scipy import special

from ffr.eval.results import PLAIN, Cell, EvalRun
from ffr.eval.stats import clustered_estimate, intraclass_correlation

MAX_QUESTIONS = 10_000_000
DEFAULT_DISCORDANCE = 0.2
"""Share of questions that one of two runs alone has right: a guess, better measured (`measure`)."""
DEFAULT_ICC = 0.05
"""Likeness of questions on one video: a guess, better measured."""


@dataclass(frozen=True, slots=True)
class BenchmarkSize:
    """How large a benchmark is.

    Example:
        >>> SIZES["lvbench"].per_video
        15.03883495145631
    """

    title: str
    num_questions: int
    num_videos: int | None = None
    """None where the annotation files do not tell; then questions are taken as independent."""

    @property
    def per_video(self) -> float:
        """Questions per video."""
        return self.num_questions / self.num_videos if self.num_videos else 1.0


SIZES = {
    "mmvu": BenchmarkSize("MMVU (multiple choice)", 625),
    "vsi_bench": BenchmarkSize("VSI-Bench", 5130, 288),
    "video_mmmu": BenchmarkSize("VideoMMMU", 900, 300),
    "video_holmes": BenchmarkSize("Video-Holmes", 1837, 270),
    "longvideobench": BenchmarkSize("LongVideoBench (validation)", 1337),
    "lvbench": BenchmarkSize("LVBench", 1549, 103),
    "mvbench": BenchmarkSize("MVBench", 4000),
    "tempcompass": BenchmarkSize("TempCompass (multi-choice)", 1580, 410),
}
"""As published: number of questions of the tasks that tables of video reasoners use, and their videos."""


@dataclass(frozen=True, slots=True)
class Design:
    """What a calculation of power assumes; all shares in [0, 1].

    Example:
        >>> Design(effect=0.015).alpha
        0.05
    """

    effect: float
    """Difference of the two accuracies."""
    base: float = 0.6
    """Accuracy of the weaker run."""
    discordance: float = DEFAULT_DISCORDANCE
    """Share of questions that one run alone has right."""
    power: float = 0.8
    alpha: float = 0.05
    """Two-sided."""
    icc: float = DEFAULT_ICC
    """Intraclass correlation of questions on one video."""
    per_video: float = 1.0
    """Questions per video."""

    def __post_init__(self) -> None:
        """Checks the ranges.

        Raises:
            ValueError: A value is out of its range; the message names it.
        """
        for name in ("effect", "base", "discordance", "power", "alpha"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(f"{name} must lie between 0 and 1, got {getattr(self, name):g}")
        if not 0 <= self.icc <= 1 or self.per_video < 1:
            raise ValueError(f"icc must lie in [0, 1], got {self.icc:g}; per_video at least 1")
        if self.base + self.effect >= 1:
            raise ValueError(f"base {self.base:g} plus effect {self.effect:g} is not below 1")
        if self.discordance < self.effect:
            raise ValueError(
                f"discordance {self.discordance:g} is less than the effect {self.effect:g}: runs that differ "
                "by the effect disagree on at least as many questions"
            )
        if self.power <= self.alpha:
            raise ValueError(f"power {self.power:g} must be above alpha {self.alpha:g}")

    @property
    def design_effect(self) -> float:
        """How many questions on shared videos say as much as one on its own: `1 + (m - 1) icc`."""
        return 1 + (self.per_video - 1) * self.icc


@dataclass(frozen=True, slots=True)
class Needed:
    """How many questions it takes.

    Example:
        >>> needed(Design(effect=0.05)).paired
        658
    """

    paired: int
    """Both runs on the same questions, exact McNemar test."""
    unpaired: int
    """Per run, when only the two accuracies are known."""


def needed(design: Design) -> Needed:
    """The smallest numbers of questions with the asked power, the design effect included.

    Paired: the exact McNemar test's own power (it is conservative, so a little more than the formula of
    Connor 1987). Unpaired: two proportions, normal approximation without correction (Fleiss).
    """
    return Needed(
        paired=math.ceil(_paired(design) * design.design_effect),
        unpaired=math.ceil(_unpaired(design) * design.design_effect),
    )


def within_clusters(num_independent: int, num_videos: int, icc: float) -> float:
    """Questions needed where only so many videos are there and questions are spread evenly over them.

    Solves `n = n0 (1 + (n / G - 1) icc)`; infinite if no number of questions on G videos is enough.

    Example:
        >>> round(within_clusters(1000, 200, 0.1))
        1800
    """
    rest = 1 - num_independent * icc / num_videos
    if rest <= 0:
        return math.inf
    return max(float(num_independent), num_independent * (1 - icc) / rest)


def connor(design: Design) -> float:
    """Connor's number of pairs: `(z_a sqrt(psi) + z_b sqrt(psi - d**2))**2 / d**2`, independent questions."""
    z_a, z_b = _quantiles(design)
    psi, d = design.discordance, design.effect
    return (z_a * math.sqrt(psi) + z_b * math.sqrt(psi - d * d)) ** 2 / d**2


def _unpaired(design: Design) -> float:
    z_a, z_b = _quantiles(design)
    p, q = design.base, design.base + design.effect
    mean = (p + q) / 2
    spread = z_a * math.sqrt(2 * mean * (1 - mean)) + z_b * math.sqrt(p * (1 - p) + q * (1 - q))
    return spread**2 / design.effect**2


def _quantiles(design: Design) -> tuple[float, float]:
    return float(special.ndtri(1 - design.alpha / 2)), float(special.ndtri(design.power))


def _paired(design: Design) -> int:
    low = max(1, math.floor(0.8 * connor(design)))
    high = max(low + 8, math.ceil(1.3 * connor(design)))

    def enough(num: int) -> bool:
        return mcnemar_power(num, design.discordance, design.effect, alpha=design.alpha) >= design.power

    while not enough(high):
        low, high = high, 2 * high
    return _first(low, high, enough)


def _first(low: int, high: int, holds: Callable[[int], bool]) -> int:
    """The least whole number in (low, high] from which the condition holds, if it holds from some on."""
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high


def mcnemar_power(num_pairs: int, discordance: float, effect: float, *, alpha: float = 0.05) -> float:
    """Probability that the exact two-sided McNemar test rejects in favour of the better run.

    Args:
        num_pairs: Independent questions.
        discordance: Share that one run alone has right.
        effect: Share that the better one alone has right, less that of the other.
        alpha: Level of the test.

    Returns:
        The sum over the number of discordant pairs d ~ Bin(n, discordance) of the chance that the better
        run has at least as many of them as the test asks for.
    """
    spread = 8 * math.sqrt(num_pairs * discordance * (1 - discordance)) + 8
    least = max(0, math.floor(num_pairs * discordance - spread))
    most = min(num_pairs, math.ceil(num_pairs * discordance + spread))
    d = np.arange(least, most + 1, dtype=np.float64)
    log_chance = (
        special.gammaln(num_pairs + 1)
        - special.gammaln(d + 1)
        - special.gammaln(num_pairs - d + 1)
        + special.xlogy(d, discordance)
        + special.xlog1py(num_pairs - d, -discordance)
    )
    critical = np.array([_critical(int(k), alpha) for k in d], dtype=np.float64)
    better = 0.5 * (1 + effect / discordance)
    rejects = np.where(
        critical <= d, special.betainc(np.maximum(critical, 1), np.maximum(d - critical, 0) + 1, better), 0.0
    )
    return float(np.sum(np.exp(log_chance) * rejects))


@lru_cache(maxsize=100_000)
def _critical(num: int, alpha: float) -> int:
    """The least k with `P(X >= k) <= alpha / 2`, X ~ Bin(num, 1/2); num + 1 if there is none."""
    guess = num / 2 + float(special.ndtri(1 - alpha / 2)) * math.sqrt(num) / 2
    k = max(0, math.floor(guess) - 3)

    def tail(k: int) -> float:
        return 1.0 if k <= 0 else float(special.betainc(k, num - k + 1, 0.5)) if k <= num else 0.0

    while k > 0 and tail(k - 1) <= alpha / 2:
        k -= 1
    while tail(k) > alpha / 2:
        k += 1
    return k


def resolvable(num_questions: int, design: Design, *, paired: bool = True) -> float:
    """The smallest effect that this many questions show with the asked power; NaN if none below 1 - base.

    Args:
        num_questions: Of the benchmark; divided by the design effect.
        design: Everything but the effect. The discordance grows with the effect where it must.
        paired: The same questions, or two accuracies alone.
    """
    room = num_questions / design.design_effect
    low, high = 1e-4, 1 - design.base - 1e-6

    def _shows(effect: float) -> bool:
        tried = replace(design, effect=effect, discordance=max(design.discordance, effect))
        if paired:
            return (
                mcnemar_power(math.floor(room), tried.discordance, effect, alpha=design.alpha) >= design.power
            )
        return _unpaired(tried) <= room

    if not _shows(high):
        return math.nan
    while high - low > 1e-5:
        middle = (low + high) / 2
        low, high = (low, middle) if _shows(middle) else (middle, high)
    return high


@dataclass(frozen=True, slots=True)
class Measured:
    """What one run, or two, tell about a benchmark.

    Example:
        >>> measure(load_run(a), load_run(b))[0].discordance  # doctest: +SKIP
        0.17
    """

    benchmark: str
    num_frames: int
    num_questions: int
    num_videos: int
    accuracy: float
    discordance: float
    """Between the two runs, or between two seeds of one run; NaN with one seed."""
    icc: float
    """Of the differences if there are two runs, else of the values; 0 where no video has two questions."""
    design_effect: float
    source: str
    """`two runs`, `two seeds`, `one run`."""


def measure(run: EvalRun, other: EvalRun | None = None, *, profile: str = "robust") -> list[Measured]:
    """Accuracy, discordance and clustering of each benchmark and number of frames of a run."""
    out: list[Measured] = []
    others = {(c.benchmark, c.num_frames): c for c in (other.cells() if other else []) if c.mode == PLAIN}
    for cell in run.cells():
        if cell.mode != PLAIN or (other and (cell.benchmark, cell.num_frames) not in others):
            continue
        out.append(_measured(run, cell, other, others.get((cell.benchmark, cell.num_frames)), profile))
    return out


def _measured(
    run: EvalRun, cell: Cell, other: EvalRun | None, other_cell: Cell | None, profile: str
) -> Measured:
    items = [item for item in run.benchmark_items(cell.benchmark) if other is None or item.uid in other.items]
    first = [run.value(item.uid, cell, cell.seeds[0], profile) for item in items]
    groups = [item.group for item in items]
    second: list[float] | None = None
    source = "one run"
    if other is not None and other_cell is not None:
        second = [other.value(item.uid, other_cell, other_cell.seeds[0], profile) for item in items]
        source = "two runs"
    elif len(cell.seeds) > 1:
        second = [run.value(item.uid, cell, cell.seeds[1], profile) for item in items]
        source = "two seeds"
    apart = [] if second is None else [b - a for a, b in zip(first, second, strict=True)]
    spread = apart if source == "two runs" else first
    icc = intraclass_correlation(spread, groups)
    found = clustered_estimate(spread, groups, bounded=False)
    return Measured(
        benchmark=cell.benchmark,
        num_frames=cell.num_frames,
        num_questions=len(items),
        num_videos=len(set(groups)),
        accuracy=sum(first) / len(first) if first else math.nan,
        discordance=sum((a >= 1) != (b >= 1) for a, b in zip(first, second, strict=True)) / len(first)
        if second
        else math.nan,
        icc=0.0 if math.isnan(icc) else icc,
        design_effect=found.design_effect,
        source=source,
    )
