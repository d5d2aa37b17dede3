"""The table of a run: accuracies with intervals, computed from its rows each time.

A question without an output counts as 0 and stays in the denominator; how many there are, and what the
accuracy is without them, stands beside the number. Answers of a test-time option have a table of their own.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ffr.eval.benchmarks import OfficialBenchmark, get_benchmark
from ffr.eval.benchmarks.video_mmmu import QUESTION_ONLY
from ffr.eval.results import Cell, EvalRun, error_status
from ffr.eval.rows import EvalRow, ItemRow
from ffr.eval.stats import Estimate, clustered_estimate
from ffr.find.verify.format import robust_format

DEFAULT_PROFILES = ("video_r1", "robust")
TAGGED_PROMPTS = ("video_r1", "brief")
"""Prompts that ask for `<think>...</think><answer>...</answer>`."""
KIND_NAMES = {
    "choice": "letter questions",
    "number": "number questions",
    "open": "open questions",
    "yes_no": "yes/no questions",
    "match": "matching questions",
    "caption": "captions",
}
LENGTH = "length"


@dataclass(frozen=True, slots=True)
class Line:
    """One line: a benchmark, or a part of it, at one number of frames.

    Example:
        >>> build_table(load_run(Path("outputs/eval/base"))).lines[0].num_total  # doctest: +SKIP
        600
    """

    cell: Cell
    title: str
    part: str
    """The task or the kind of question; empty for the whole benchmark."""
    num_items: int
    num_total: int
    """Questions times seeds: the denominator."""
    num_scored: int
    """Those with an output."""
    num_videos: int
    chance: float
    accuracy: Mapping[str, Estimate]
    """By profile: mean over questions (of the means over seeds)."""
    headline: str = ""
    overall: Mapping[str, Estimate] = field(default_factory=dict[str, Estimate])
    """By profile: the benchmark's official overall number, where it is another than the mean."""
    delta_knowledge: Mapping[str, Estimate] = field(default_factory=dict[str, Estimate])
    """By profile, VideoMMMU with its question-only baseline: share of what was left to gain."""
    covered: Mapping[str, float] = field(default_factory=dict[str, float])
    """By profile: accuracy over the outputs alone; empty when none is missing."""
    by_seed: Mapping[str, Mapping[int, float]] = field(default_factory=dict[str, Mapping[int, float]])
    """By profile and seed: accuracy."""
    format_failures: float = math.nan
    """Share of outputs without the form that the prompt asks for; NaN if it asks for none."""
    no_answer: float = math.nan
    """Share of outputs in which the robust profile finds no answer."""
    cut: float = math.nan
    """Share of outputs that ended at the limit of tokens."""
    errors: Mapping[str, int] = field(default_factory=dict[str, int])
    """Missing outputs by status."""


@dataclass(frozen=True, slots=True)
class EvalTable:
    """All lines of a run, and what a reader should know.

    Example:
        >>> build_table(load_run(Path("outputs/eval/base"))).notes  # doctest: +SKIP
        ('greedy decoding: further seeds would change nothing',)
    """

    name: str
    model: str
    engine: str
    profiles: tuple[str, ...]
    lines: tuple[Line, ...]
    """Of plain answers."""
    option_lines: tuple[Line, ...] = ()
    """Of test-time options."""
    notes: tuple[str, ...] = ()


def build_table(
    run: EvalRun, *, profiles: Sequence[str] = DEFAULT_PROFILES, by_task: bool = False
) -> EvalTable:
    """Counts a run.

    Args:
        run: The run.
        profiles: Columns of accuracy; `video_r1` is the strict one.
        by_task: A line per question type, too.

    Raises:
        EvalDataError: An item's record is malformed, or its benchmark is unknown.
        ValueError: A profile does not exist.
    """
    lines: list[Line] = []
    for cell in run.cells():
        benchmark = get_benchmark(cell.benchmark)
        items = run.benchmark_items(cell.benchmark)
        main = [item for item in items if item.task != QUESTION_ONLY]
        if main:
            lines.append(_whole(run, cell, benchmark, items, main, profiles))
        for part, found in _parts(benchmark, items, main, by_task=by_task).items():
            lines.append(_line(run, cell, benchmark.title, part, found, profiles))
    return EvalTable(
        name=run.info.name,
        model=run.info.model,
        engine=run.info.engine,
        profiles=tuple(profiles),
        lines=tuple(line for line in lines if line.cell.mode == "plain"),
        option_lines=tuple(line for line in lines if line.cell.mode != "plain"),
        notes=_notes(run),
    )


def _parts(
    benchmark: OfficialBenchmark, items: Sequence[ItemRow], main: Sequence[ItemRow], *, by_task: bool
) -> dict[str, list[ItemRow]]:
    """The parts that have a line of their own: kinds if there are several, the baseline, tasks if asked."""
    parts: dict[str, list[ItemRow]] = {}
    if len({item.kind for item in main}) > 1:
        for item in main:
            parts.setdefault(KIND_NAMES.get(item.kind, item.kind), []).append(item)
    for item in items if by_task else [item for item in items if item.task == QUESTION_ONLY]:
        for label in benchmark.labels(item.task):
            parts.setdefault(label or "no task", []).append(item)
    return parts


def _whole(
    run: EvalRun,
    cell: Cell,
    benchmark: OfficialBenchmark,
    items: Sequence[ItemRow],
    main: Sequence[ItemRow],
    profiles: Sequence[str],
) -> Line:
    extra: dict[str, Any] = {"headline": benchmark.headline}
    if benchmark.headline != "micro":
        counts = Counter(item.task for item in main)

        def combine(means: Mapping[str, float]) -> float:
            return benchmark.overall({task: (mean, counts[task]) for task, mean in means.items()})

        extra["overall"] = {p: _estimate(run, cell, main, p, combine) for p in profiles}
    if len(main) < len(items) and any(item.task == "Adaptation" for item in main):
        pair = [item for item in items if item.task in ("Adaptation", QUESTION_ONLY)]
        extra["delta_knowledge"] = {p: _estimate(run, cell, pair, p, _gain, bounded=False) for p in profiles}
    return _line(run, cell, benchmark.title, "", main, profiles, extra)


def _gain(means: Mapping[str, float]) -> float:
    before = means[QUESTION_ONLY]
    return (means["Adaptation"] - before) / (1 - before) if before < 1 else math.nan


def _estimate(
    run: EvalRun,
    cell: Cell,
    items: Sequence[ItemRow],
    profile: str,
    combine: Callable[[Mapping[str, float]], float] | None = None,
    *,
    bounded: bool = True,
) -> Estimate:
    return clustered_estimate(
        [run.mean_value(item.uid, cell, profile) for item in items],
        [item.group for item in items],
        tasks=[item.task for item in items],
        combine=combine,
        bounded=bounded,
    )


def _line(
    run: EvalRun,
    cell: Cell,
    title: str,
    part: str,
    items: Sequence[ItemRow],
    profiles: Sequence[str],
    extra: Mapping[str, Any] | None = None,
) -> Line:
    pairs = [(item, run.row(item.uid, cell, seed)) for item in items for seed in cell.seeds]
    rows = [row for _, row in pairs if row is not None and not row.error]
    covered: dict[str, float] = {}
    if rows and len(rows) < len(pairs):
        covered = {p: sum(run.score(row, p).value for row in rows) / len(rows) for p in profiles}
    return Line(
        cell=cell,
        title=title,
        part=part,
        num_items=len(items),
        num_total=len(pairs),
        num_scored=len(rows),
        num_videos=len({item.group for item in items}),
        chance=sum(item.chance for item in items) / len(items),
        accuracy={p: _estimate(run, cell, items, p) for p in profiles},
        covered=covered,
        by_seed={
            p: {s: sum(run.value(i.uid, cell, s, p) for i in items) / len(items) for s in cell.seeds}
            for p in profiles
        },
        format_failures=_share(rows, lambda row: robust_format(_written(row)) == 0)
        if run.info.config.get("prompt") in (None, *TAGGED_PROMPTS)
        else math.nan,
        no_answer=_share(rows, lambda row: run.score(row, "robust").rule == "none"),
        cut=_share(rows, lambda row: row.finish == LENGTH),
        errors=dict(Counter(status for _, row in pairs if (status := error_status(row))).most_common()),
        **(extra or {}),
    )


def _written(row: EvalRow) -> str:
    """The output as the model wrote it: thoughts that a server took out are put back."""
    return f"<think>{row.reasoning}</think>{row.raw}" if row.reasoning else row.raw


def _share(rows: Sequence[EvalRow], holds: Callable[[EvalRow], bool]) -> float:
    return sum(map(holds, rows)) / len(rows) if rows else math.nan


def _notes(run: EvalRun) -> tuple[str, ...]:
    notes = [_seed_note(run)]
    for name, told in run.info.benchmarks.items():
        if told.num_total > told.num_items:
            notes.append(f"{name}: {told.num_items} of {told.num_total} questions were asked")
        if told.tasks:
            notes.append(f"{name}: tasks {', '.join(told.tasks)}")
        if told.num_missing:
            notes.append(
                f"{name}: {told.num_missing} questions without media on this machine, they count as 0"
            )
        notes += [f"{name}: {note}" for note in told.notes]
        found = len(run.benchmark_items(name))
        if found != told.num_items:
            notes.append(f"{name}: items.jsonl has {found} questions, eval.json says {told.num_items}")
    return (*notes, *run.info.notes)


def _seed_note(run: EvalRun) -> str:
    if run.greedy:
        return "greedy decoding: further seeds would change nothing"
    seeds = ", ".join(map(str, run.info.seeds))
    if run.greedy is None:
        return f"seeds {seeds}"
    words = f"temperature {run.info.config['temperature']:g}"
    if len(run.info.seeds) == 1:
        return f"one sample per question ({words}, seed {seeds}): another seed gives another number"
    return (
        f"mean over seeds {seeds} ({words}): the same weights sampled anew, not trained anew; "
        "the interval is for questions drawn anew"
    )
