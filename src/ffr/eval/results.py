"""A run read back for counting: every question has a value, and a question without an output has 0."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ffr.eval.base import Score
from ffr.eval.rows import (
    ROWS_FILE,
    EvalRow,
    ItemRow,
    RunFileError,
    RunInfo,
    ScoreRow,
    read_items,
    read_rows,
    read_run,
)

PLAIN = "plain"
NO_ROW = "no_row"
"""Status of a question that was not asked (yet)."""
ScoreItem = Callable[[ItemRow, str, str], Score]
"""`ffr.eval.scorers.score_item`, or what a test puts in its place."""


@dataclass(frozen=True, slots=True)
class Cell:
    """What one line of a table is about.

    Example:
        >>> Cell("mvbench", 16, (42,)).mode
        'plain'
    """

    benchmark: str
    num_frames: int
    seeds: tuple[int, ...]
    mode: str = PLAIN


@dataclass(frozen=True, slots=True)
class EvalRun:
    """A run's files in memory.

    Example:
        >>> load_run(Path("outputs/eval/base")).cells()  # doctest: +SKIP
        [Cell(benchmark='mvbench', num_frames=16, seeds=(42,), mode='plain')]
    """

    path: Path
    info: RunInfo
    items: Mapping[str, ItemRow]
    rows: Mapping[tuple[str, int, int, str], EvalRow]
    scorer: ScoreItem | None = None
    """For profiles that the rows do not hold; `ffr.eval.score_item` if None."""
    _scored: dict[tuple[str, str, str], ScoreRow] = field(
        default_factory=dict[tuple[str, str, str], ScoreRow]
    )

    def benchmark_items(self, benchmark: str) -> list[ItemRow]:
        """The questions of one benchmark, in order."""
        return [item for item in self.items.values() if item.benchmark == benchmark]

    def row(self, uid: str, cell: Cell, seed: int) -> EvalRow | None:
        """The output that counts, an error's row if there is no better one, None if not asked."""
        return self.rows.get((uid, cell.num_frames, seed, cell.mode))

    def score(self, row: EvalRow, profile: str) -> ScoreRow:
        """A profile's score of an output; scored now if the row does not hold it.

        Raises:
            EvalDataError: The item's record is malformed.
            ValueError: The profile does not exist.
        """
        if (known := row.scores.get(profile)) is not None:
            return known
        key = (row.uid, profile, row.raw)
        if key not in self._scored:
            self._scored[key] = score_row(self.items[row.uid], row.raw, profile, self.scorer)
        return self._scored[key]

    def value(self, uid: str, cell: Cell, seed: int, profile: str) -> float:
        """In [0, 1]; 0 without an output, whatever the reason."""
        row = self.row(uid, cell, seed)
        return 0.0 if row is None or row.error else self.score(row, profile).value

    def mean_value(self, uid: str, cell: Cell, profile: str) -> float:
        """Mean over the cell's seeds."""
        return sum(self.value(uid, cell, seed, profile) for seed in cell.seeds) / len(cell.seeds)

    @property
    def greedy(self) -> bool | None:
        """Whether outputs were not sampled; None if the run does not say."""
        temperature = self.info.config.get("temperature")
        return None if temperature is None else temperature == 0

    def cells(self) -> list[Cell]:
        """All that the run asks, mode by mode, the plain one first."""
        modes = dict.fromkeys((PLAIN, *self.info.modes, *(key[3] for key in self.rows)))
        found: list[Cell] = []
        for mode in modes:
            with_rows = {key[2] for key in self.rows if key[3] == mode}
            if mode not in self.info.modes and not with_rows:
                continue
            seeds = self.info.seeds
            if self.greedy:  # Further seeds change nothing then, and are not run.
                seeds = tuple(seed for seed in seeds if seed in with_rows) or seeds[:1]
            names = dict.fromkeys((*self.info.benchmarks, *(item.benchmark for item in self.items.values())))
            found += [Cell(name, num, seeds, mode) for name in names for num in self.info.frames]
        return found


def load_run(path: Path, *, scorer: ScoreItem | None = None) -> EvalRun:
    """Reads a run's files.

    Args:
        path: Directory of a run of `ffr eval`.
        scorer: Scores profiles that the rows do not hold.

    Raises:
        RunFileError: A file can't be read, or a row is of another configuration or of no known question.
    """
    info, items = read_run(path), read_items(path)
    rows = read_rows(path) if (path / ROWS_FILE).exists() else []
    for row in rows:
        if row.config_hash != info.config_hash:
            raise RunFileError(
                f"{path / ROWS_FILE}: the row of {row.uid} is of another configuration ({row.config_hash}, "
                f"this run is {info.config_hash}); remove it or start anew"
            )
        if row.uid not in items:
            raise RunFileError(
                f"{path / ROWS_FILE}: {row.uid} is no question of items.jsonl; remove the row or start anew"
            )
    return EvalRun(path, info, items, {row.key: row for row in rows}, scorer)


def score_row(item: ItemRow, text: str, profile: str, scorer: ScoreItem | None = None) -> ScoreRow:
    """One output under one profile, as `rows.jsonl` holds it."""
    if scorer is None:
        from ffr.eval.scorers import score_item as scorer
    found = scorer(item, text, profile)
    whole = found.extracted.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return ScoreRow(value=found.value, extracted=whole, rule=found.rule, note=found.note)


def error_status(row: EvalRow | None) -> str:
    """Why there is no output: the status before the colon; empty if there is one."""
    if row is None:
        return NO_ROW
    return row.error.partition(":")[0].strip() or "error" if row.error else ""


def chosen(names: Iterable[str], known: Sequence[str], what: str) -> tuple[str, ...]:
    """Names that must be among the known ones; `all` stands for these.

    Raises:
        ValueError: One is not known.

    Example:
        >>> chosen(["all"], ["robust", "official"], "profile")
        ('robust', 'official')
    """
    wanted = tuple(dict.fromkeys(names))
    if "all" in wanted:
        return tuple(known)
    for name in wanted:
        if name not in known:
            raise ValueError(f"unknown {what} {name!r}; use all, {', '.join(known)}")
    return wanted
