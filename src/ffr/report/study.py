"""A comparison of arms over seeds, from committed JSON lines to tables with intervals.

Rows of `docs/results/micro/*.jsonl`: `{"kind": "eval", "arm", "seed", "step", "first_pass_accuracy",
"num_questions", "format_rate", "by_scenario"}` and `{"kind": "train", "arm", "seed", "step", ...}` with the
metric names of the run directory and, in either kind, the cumulative `rollouts` spent.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib import pyplot as plt

from ffr.report.figures import COLOURS, Series, curve, save, styled, training_figure
from ffr.report.metrics import metric, nanmean, read_jsonl
from ffr.report.stats import Interval, t_interval

BASELINE = "grpo"
ARM_ORDER = ("grpo", "ffr", "ffr_released", "ffr_first_pass", "ffr_no_std")
ENDS = 10
"""Steps at the start and at the end that the training columns average."""
Rows = list[dict[str, Any]]


class StudyError(ValueError):
    """A result row that cannot be used; the message names file, row, field and remedy."""


@dataclass(frozen=True, slots=True)
class Run:
    """One arm with one seed.

    Example:
        >>> Run(arm="ffr", seed=1, evals=[{"step": 0, "first_pass_accuracy": 0.4}], train=[]).start
        0.4
    """

    arm: str
    seed: int
    evals: Rows
    train: Rows

    @property
    def start(self) -> float:
        """Held-out first-pass accuracy of the first evaluation."""
        return float(self.evals[0]["first_pass_accuracy"]) if self.evals else math.nan

    @property
    def end(self) -> float:
        """Held-out first-pass accuracy of the last evaluation."""
        return float(self.evals[-1]["first_pass_accuracy"]) if self.evals else math.nan

    @property
    def rollouts(self) -> float:
        """Rollouts spent, first passes and repairs."""
        return max(
            (metric(row, "rollouts") for row in (*self.evals, *self.train) if "rollouts" in row),
            default=math.nan,
        )

    def train_mean(
        self, name: str, part: slice = slice(None), *, weight: Callable[[Any], float] | None = None
    ) -> float:
        """The mean of a quantity over some training steps; weighted where a share has a changing base."""
        rows = self.train[part]
        weights = [weight(row) for row in rows] if weight else None
        return nanmean([metric(row, name) for row in rows], weights)


def read_results(folder: Path) -> list[Run]:
    """The runs of all `*.jsonl` files of a folder, arms in a fixed order.

    Raises:
        StudyError: No rows at all, or a row without its fields.
    """
    found: dict[tuple[str, int], Run] = {}
    for path in sorted(folder.glob("*.jsonl")):
        for number, row in enumerate(read_jsonl(path), start=1):
            _check(row, f"{path.name}: row {number}")
            key = (row["arm"], row["seed"])
            run = found.setdefault(key, Run(*key, [], []))
            (run.evals if row["kind"] == "eval" else run.train).append(row)
    if not found:
        raise StudyError(f"{folder}: no *.jsonl with rows; run scripts/run_micro.py first")
    for run in found.values():
        run.evals.sort(key=lambda row: row["step"])
        run.train.sort(key=lambda row: row["step"])
    return sorted(found.values(), key=lambda run: (_rank(run.arm), run.arm, run.seed))


def _rank(arm: str) -> int:
    return ARM_ORDER.index(arm) if arm in ARM_ORDER else len(ARM_ORDER)


def _check(row: Mapping[str, Any], where: str) -> None:
    kinds: dict[str, tuple[type, ...]] = {"kind": (str,), "arm": (str,), "seed": (int,), "step": (int,)}
    if row.get("kind") == "eval":
        kinds["first_pass_accuracy"] = (int, float)
    for field, types in kinds.items():
        if not isinstance(row.get(field), types):
            raise StudyError(
                f"{where}: field {field}: {row.get(field)!r}; write it again with scripts/run_micro.py"
            )
    if row["kind"] not in ("eval", "train"):
        raise StudyError(f"{where}: field kind: {row['kind']!r}; allowed: eval, train")


def by_arm(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """Arm -> its runs, in the order given."""
    out: dict[str, list[Run]] = {}
    for run in runs:
        out.setdefault(run.arm, []).append(run)
    return out


def paired_gain(runs: Sequence[Run], baseline: Sequence[Run]) -> Interval:
    """End accuracy minus the baseline's of the same seed, over the seeds that both have."""
    other = {run.seed: run.end for run in baseline}
    return t_interval(run.end - other[run.seed] for run in runs if run.seed in other)


def points(value: Interval, *, signed: bool = False) -> str:
    """`52.1 [48.0, 56.2]` in percent or percentage points."""
    if not value.num:
        return "-"
    form = "{:+.1f}" if signed else "{:.1f}"
    mean, low, high = (form.format(100 * v) for v in (value.mean, value.low, value.high))
    return f"{mean} [{low}, {high}]" if value.num > 1 else f"{mean} (one seed)"


def _mean(values: Sequence[float], form: str = "{:.0f}") -> str:
    value = nanmean(values)
    return form.format(value) if math.isfinite(value) else "-"


def markdown_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; the first column is text, the others are aligned to the right."""
    rule = ["---", *("---:" for _ in headings[1:])]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (headings, rule, *rows))


def accuracy_table(runs: Sequence[Run]) -> str:
    """Held-out first-pass accuracy per arm: start, end, paired difference, rollouts."""
    arms = by_arm(runs)
    baseline = arms.get(BASELINE, [])
    rows = [
        [
            f"`{arm}`",
            str(len(found)),
            points(t_interval(run.start for run in found)),
            points(t_interval(run.end for run in found)),
            "" if arm == BASELINE else points(paired_gain(found, baseline), signed=True),
            _mean([run.rollouts for run in found], "{:,.0f}"),
        ]
        for arm, found in arms.items()
    ]
    headings = ["arm", "seeds", "start, %", "end, %", f"end minus `{BASELINE}`, points", "rollouts spent"]
    return markdown_table(headings, rows)


def training_table(runs: Sequence[Run]) -> str:
    """What happened while training: intervention and repair rates, odd advantages."""

    def repaired(row: Mapping[str, Any]) -> float:
        return metric(row, "intervention_rate") * metric(row, "repair_rate")

    def asked(row: Mapping[str, Any]) -> float:
        return metric(row, "intervention_rate")

    def percent(found: Sequence[Run], name: str, part: slice = slice(None), weight: Any = None) -> str:
        return _mean([100 * run.train_mean(name, part, weight=weight) for run in found], "{:.1f}")

    first, last = slice(None, ENDS), slice(-ENDS, None)
    rows = [
        [
            f"`{arm}`",
            f"{percent(found, 'intervention_rate', first)} -> {percent(found, 'intervention_rate', last)}",
            f"{percent(found, 'repair_rate', first, asked)} -> {percent(found, 'repair_rate', last, asked)}",
            percent(found, "repaired_negative", weight=repaired),
            percent(found, "zero_advantage"),
        ]
        for arm, found in by_arm(runs).items()
        if any(run.train for run in found)
    ]
    headings = [
        "arm",
        "teacher asked, %",
        "repaired when asked, %",
        "repaired with A < 0, %",
        "groups without gradient, %",
    ]
    return markdown_table(headings, rows)


def scenario_table(runs: Sequence[Run]) -> str:
    """End accuracy by question kind, mean over seeds; empty where no row has it."""
    arms = by_arm(runs)
    kinds = sorted({kind for run in runs if run.evals for kind in run.evals[-1].get("by_scenario") or {}})
    if not kinds:
        return ""
    rows: list[list[str]] = []
    for kind in kinds:
        cells = [_mean([_scenario(run, kind) for run in found], "{:.1f}") for found in arms.values()]
        start = _mean([_scenario(run, kind, 0) for run in runs], "{:.1f}")
        rows.append([kind, start, *cells])
    return markdown_table(["question kind, %", "start", *(f"`{arm}`" for arm in arms)], rows)


def _scenario(run: Run, kind: str, which: int = -1) -> float:
    value = (run.evals[which].get("by_scenario") or {}).get(kind) if run.evals else None
    if isinstance(value, Mapping):
        value = value.get("first_pass_accuracy", value.get("accuracy"))
    return 100 * float(value) if isinstance(value, int | float) else math.nan


def seed_table(runs: Sequence[Run]) -> str:
    """Every run by itself, so that no mean hides a seed."""
    rows = [
        [
            f"`{run.arm}`",
            str(run.seed),
            f"{100 * run.start:.1f}" if run.evals else "-",
            f"{100 * run.end:.1f}" if run.evals else "-",
            str(run.evals[-1]["step"]) if run.evals else "-",
            _mean([run.rollouts], "{:,.0f}"),
            _mean([100 * metric(run.evals[-1], "format_rate")] if run.evals else [], "{:.1f}"),
        ]
        for run in runs
    ]
    return markdown_table(["arm", "seed", "start, %", "end, %", "last step", "rollouts", "format, %"], rows)


def accuracy_figure(runs: Sequence[Run], path: Path) -> Path:
    """Held-out first-pass accuracy over steps and over rollouts spent, mean and 95 % interval over seeds."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4.2), sharey=True)
    for i, (arm, found) in enumerate(by_arm(runs).items()):
        colour = COLOURS[i % len(COLOURS)]
        curve(left, [_evals(run) for run in found], arm, colour)
        for j, run in enumerate(found):
            spent = [(row["rollouts"], row["first_pass_accuracy"]) for row in run.evals if "rollouts" in row]
            if spent:
                right.plot(
                    *zip(*spent, strict=True), color=colour, lw=1.3, alpha=0.8, label=arm if j == 0 else None
                )
    styled(left, "held-out first-pass accuracy, mean and 95 % interval", "share right")
    styled(right, "the same by rollouts spent, one line a seed", "")
    right.set_xlabel("rollouts (first passes and repairs)")
    return save(figure, path)


def _evals(run: Run) -> Series:
    return {int(row["step"]): float(row["first_pass_accuracy"]) for row in run.evals}


def write_study(folder: Path, out_md: Path, *, analysis: Path | None = None) -> list[Path]:
    """The files made from a folder of results: the Markdown page and its two figures.

    Args:
        folder: Holds the `*.jsonl` results.
        out_md: The page; figures lie beside it as `<stem>.png` and `<stem>_training.png`.
        analysis: A hand-written Markdown file, put in verbatim where it exists.
    """
    runs = read_results(folder)
    figures = [accuracy_figure(runs, out_md.with_suffix(".png"))]
    trained = {arm: [run.train for run in found if run.train] for arm, found in by_arm(runs).items()}
    if any(trained.values()):
        path = out_md.with_name(f"{out_md.stem}_training.png")
        figures.append(training_figure({arm: seeds for arm, seeds in trained.items() if seeds}, path))
    questions = sorted(
        {int(row["num_questions"]) for run in runs for row in run.evals if "num_questions" in row}
    )
    parts = [
        "# MicroWorld: first-pass accuracy over training",
        f"Made by `scripts/make_micro_results.py` from `{folder.name}/*.jsonl`; do not edit by hand. "
        "Every arm starts from the same cold start. Held-out questions, never seen in training: "
        f"{', '.join(map(str, questions)) or 'number not stated'}. Brackets are 95 % t-intervals over seeds; "
        "differences are paired by seed.",
        accuracy_table(runs),
        f"![held-out first-pass accuracy]({figures[0].name})",
        f"## While training\n\nMeans over seeds; arrows go from the first {ENDS} to the last {ENDS} steps.",
        training_table(runs),
        *([f"![training curves]({figures[1].name})"] if len(figures) > 1 else []),
        "## By question kind, at the end" if scenario_table(runs) else "",
        scenario_table(runs),
        "## Every run",
        seed_table(runs),
        analysis.read_text().strip() if analysis is not None and analysis.exists() else "",
    ]
    out_md.write_text("\n\n".join(part for part in parts if part) + "\n")
    return [out_md, *figures]
