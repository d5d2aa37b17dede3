"""Two runs on the same questions: is one better, and by how much?

Pairs are questions; a question that a run has no output for counts as wrong there, as in its table. Runs
under different protocols are refused: their difference would not be the models' alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ffr.eval.benchmarks import get_benchmark
from ffr.eval.results import PLAIN, Cell, EvalRun
from ffr.eval.rows import ItemRow
from ffr.eval.stats import Estimate, bootstrap_interval, clustered_estimate, holm, mcnemar_exact

IDENTITY = ("model", "weights_sha256")
"""Settings in which two runs may differ: what is compared."""
_FROM_ROWS = ("indices_sha256", "prompt_sha256")
"""Of a card: hashes over the outputs that are there; rows are compared one by one instead."""
_SAME = {"prompt_profile": "prompt"}
"""Field of a card that a setting of another name holds."""
_SHOWN = 3


class ProtocolMismatchError(ValueError):
    """The runs were made under different protocols.

    Attributes:
        differences: One line for each thing that differs.
    """

    def __init__(self, differences: Sequence[str]) -> None:
        self.differences = tuple(differences)
        lines = "\n  ".join(differences)
        super().__init__(f"the runs differ in more than the model:\n  {lines}")


@dataclass(frozen=True, slots=True)
class Comparison:
    """One benchmark, number of frames and seed of two runs.

    Example:
        >>> compare_runs(load_run(a), load_run(b)).lines[0].p_value  # doctest: +SKIP
        0.03
    """

    benchmark: str
    title: str
    num_frames: int
    seeds: tuple[str, ...]
    """`42`, or `42/43` where the runs' only seeds differ; several for the mean over seeds."""
    num_pairs: int
    num_videos: int
    first: float
    """Accuracy of the first run on the pairs."""
    second: float
    difference: Estimate
    """Second minus first, clustered by video, Student's t."""
    bootstrap: tuple[float, float]
    """95 % interval of the difference, videos drawn anew."""
    only_first: int | None = None
    """Pairs that only the first run has fully right; None for a mean over seeds."""
    only_second: int | None = None
    p_value: float = math.nan
    """Exact McNemar; NaN for a mean over seeds."""
    adjusted: float = math.nan
    """Holm's, over all tests of this comparison."""
    num_errors: int = 0
    """Pairs in which at least one run has no output."""


@dataclass(frozen=True, slots=True)
class CompareResult:
    """All lines, and in what the runs differ.

    Example:
        >>> CompareResult("a", "b", "robust", lines=()).differences
        ()
    """

    first: str
    second: str
    profile: str
    lines: tuple[Comparison, ...]
    differences: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def compare_runs(
    first: EvalRun,
    second: EvalRun,
    *,
    profile: str = "robust",
    allow_different: bool = False,
    answered_only: bool = False,
    num_draws: int = 10_000,
) -> CompareResult:
    """Compares plain answers of two runs, question by question.

    Args:
        first: The run that is compared with.
        second: The run that is hoped to be better.
        profile: Which scores.
        allow_different: Go on where protocols differ; the result lists the differences.
        answered_only: Leave out pairs in which a run has no output.
        num_draws: Of the bootstrap.

    Raises:
        ProtocolMismatchError: The protocols differ.
        EvalDataError: An item's record is malformed.
        ValueError: The profile does not exist, or the runs have no question in common.
    """
    differences = protocol_differences(first, second)
    if differences and not allow_different:
        raise ProtocolMismatchError(differences)
    uids = [uid for uid in first.items if uid in second.items]
    pairs = _common_cells(first, second)
    if not uids or not pairs:
        raise ValueError(f"{first.path} and {second.path} have no benchmark and number of frames in common")
    lines: list[Comparison] = []
    for a, b in pairs:
        items = [first.items[uid] for uid in uids if first.items[uid].benchmark == a.benchmark]
        if items:
            maker = _Maker(first, second, a, b, items, profile, answered_only, num_draws)
            lines += maker.lines()
    if not lines:
        raise ValueError(f"{first.path} and {second.path} have no pair of answers in common")
    return CompareResult(
        first.info.name, second.info.name, profile, _adjusted(lines), tuple(differences), _notes(lines)
    )


def _common_cells(first: EvalRun, second: EvalRun) -> list[tuple[Cell, Cell]]:
    others = {(c.benchmark, c.num_frames): c for c in second.cells() if c.mode == PLAIN}
    return [
        (cell, others[cell.benchmark, cell.num_frames])
        for cell in first.cells()
        if cell.mode == PLAIN and (cell.benchmark, cell.num_frames) in others
    ]


@dataclass(frozen=True, slots=True)
class _Maker:
    first: EvalRun
    second: EvalRun
    a: Cell
    b: Cell
    items: Sequence[ItemRow]
    profile: str
    answered_only: bool
    num_draws: int

    def lines(self) -> list[Comparison]:
        """A line per pair of seeds, and one of the means where a run has several."""
        if len(self.a.seeds) == len(self.b.seeds) == 1:
            seeds = [(self.a.seeds[0], self.b.seeds[0])]
        else:
            seeds = [(seed, seed) for seed in self.a.seeds if seed in self.b.seeds]
        made = [self._line([pair]) for pair in seeds]
        if len(self.a.seeds) > 1 or len(self.b.seeds) > 1:
            made.append(self._line([]))
        return [line for line in made if line.num_pairs]

    def _line(self, seeds: Sequence[tuple[int, int]]) -> Comparison:
        """Of one pair of seeds; of the means over all seeds if none is given."""
        firsts = [a for a, _ in seeds] or list(self.a.seeds)
        seconds = [b for _, b in seeds] or list(self.b.seeds)
        kept: list[tuple[ItemRow, float, float]] = []
        num_errors = 0
        for item in self.items:
            missing = self._missing(self.first, self.a, item, firsts)
            missing = self._missing(self.second, self.b, item, seconds) or missing
            num_errors += missing
            if missing and self.answered_only:
                continue
            x = _mean([self.first.value(item.uid, self.a, seed, self.profile) for seed in firsts])
            y = _mean([self.second.value(item.uid, self.b, seed, self.profile) for seed in seconds])
            kept.append((item, x, y))
        groups = [item.group for item, _, _ in kept]
        gains = [y - x for _, x, y in kept]
        only_first = sum(x >= 1 > y for _, x, y in kept) if seeds else None
        only_second = sum(y >= 1 > x for _, x, y in kept) if seeds else None
        return Comparison(
            benchmark=self.a.benchmark,
            title=get_benchmark(self.a.benchmark).title,
            num_frames=self.a.num_frames,
            seeds=tuple(str(a) if a == b else f"{a}/{b}" for a, b in seeds)
            or tuple(map(str, dict.fromkeys((*firsts, *seconds)))),
            num_pairs=len(kept),
            num_videos=len(set(groups)),
            first=_mean([x for _, x, _ in kept]),
            second=_mean([y for _, _, y in kept]),
            difference=clustered_estimate(gains, groups, bounded=False),
            bootstrap=bootstrap_interval(gains, groups, num_draws=self.num_draws)
            if kept
            else (math.nan, math.nan),
            only_first=only_first,
            only_second=only_second,
            p_value=math.nan
            if only_first is None or only_second is None
            else mcnemar_exact(only_first, only_second),
            num_errors=num_errors,
        )

    @staticmethod
    def _missing(run: EvalRun, cell: Cell, item: ItemRow, seeds: Sequence[int]) -> bool:
        rows = [run.row(item.uid, cell, seed) for seed in seeds]
        return any(row is None or row.error for row in rows)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan


def _adjusted(lines: Sequence[Comparison]) -> tuple[Comparison, ...]:
    tested = [place for place, line in enumerate(lines) if not math.isnan(line.p_value)]
    values = dict(zip(tested, holm([lines[place].p_value for place in tested]), strict=True))
    return tuple(replace(line, adjusted=values.get(place, math.nan)) for place, line in enumerate(lines))


def _notes(lines: Sequence[Comparison]) -> tuple[str, ...]:
    notes: list[str] = []
    widest = max((line.difference.design_effect for line in lines), default=1.0)
    if widest > 1.2:
        notes.append(
            f"McNemar takes questions as independent; by video the variance is up to {widest:.1f} times as "
            "large: trust the intervals"
        )
    if any(line.num_errors for line in lines):
        notes.append("a pair in which a run has no output is wrong there (--answered-only leaves it out)")
    return tuple(notes)


def protocol_differences(first: EvalRun, second: EvalRun) -> list[str]:
    """What besides the model differs: settings, protocol cards, questions, gold answers; a line each."""
    out = _setting_differences(first.info.config, second.info.config)
    said = set(first.info.config) | set(second.info.config)
    names = [name for name in first.info.cards if name in second.info.cards]
    fields: dict[str, list[str]] = {}
    for name in names:
        one, two = first.info.cards[name], second.info.cards[name]
        for key in dict.fromkeys((*one, *two)):
            if key in _FROM_ROWS or _SAME.get(key, key) in said:
                continue
            if one.get(key) != two.get(key):
                fields.setdefault(f"{key}: {_change(one.get(key), two.get(key))}", []).append(name)
    out += [f"{', '.join(where)}: {what}" for what, where in fields.items()]
    out += _shown_differences(first, second)
    benchmarks = {item.benchmark for item in first.items.values()}
    benchmarks &= {item.benchmark for item in second.items.values()}
    for name in sorted(benchmarks):
        out += _question_differences(
            name,
            {item.uid: item for item in first.benchmark_items(name)},
            {item.uid: item for item in second.benchmark_items(name)},
        )
    return out


def _shown_differences(first: EvalRun, second: EvalRun) -> list[str]:
    """Questions that the runs put with other frames or in other words."""
    others = {key[:2]: row for key, row in second.rows.items() if key[3] == PLAIN and not row.error}
    frames: dict[str, None] = {}
    prompts: dict[str, None] = {}
    for key, row in first.rows.items():
        other = others.get(key[:2])
        if other is None or key[3] != PLAIN or row.error:
            continue
        if row.frame_indices != other.frame_indices:
            frames[row.uid] = None
        if row.prompt_sha256 != other.prompt_sha256:
            prompts[row.uid] = None
    return [
        f"{word} of {len(uids)} questions ({_listed(list(uids))})"
        for word, uids in (("the frames", frames), ("the prompts", prompts))
        if uids
    ]


def _listed(uids: Sequence[str]) -> str:
    return ", ".join(uids[:_SHOWN]) + (", ..." if len(uids) > _SHOWN else "")


def _setting_differences(one: Mapping[str, Any], two: Mapping[str, Any]) -> list[str]:
    keys = [
        key for key in dict.fromkeys((*one, *two)) if key not in IDENTITY and one.get(key) != two.get(key)
    ]
    return [f"{key}: {_change(one.get(key), two.get(key))}" for key in keys]


def _change(one: Any, two: Any) -> str:
    if isinstance(one, Mapping) and isinstance(two, Mapping):
        keys = [key for key in dict.fromkeys((*one, *two)) if one.get(key) != two.get(key)]
        return ", ".join(f"{key} {_short(one.get(key))} and {_short(two.get(key))}" for key in keys)
    return f"{_short(one)} and {_short(two)}"


def _short(value: object) -> str:
    text = "unset" if value in (None, "") else str(value)
    return text if len(text) <= 24 else f"{text[:12]}..."


def _question_differences(name: str, one: Mapping[str, ItemRow], two: Mapping[str, ItemRow]) -> list[str]:
    out: list[str] = []
    for label, extra in (
        ("the first run alone has", [uid for uid in one if uid not in two]),
        ("the second run alone has", [uid for uid in two if uid not in one]),
        ("the gold answer differs of", [u for u in one if u in two and one[u].gold != two[u].gold]),
        ("the official row differs of", [u for u in one if u in two and one[u].record != two[u].record]),
    ):
        if extra:
            out.append(f"{name}: {label} {len(extra)} questions ({_listed(extra)})")
    return out
