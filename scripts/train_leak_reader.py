"""Fits the leak gate's reader to the labelled patches of tests/leaks and writes src/ffr/fix/leak_reader.json.

python scripts/train_leak_reader.py [--dry-run]

A logistic model, L2-penalised, classes balanced, on the signs of `ffr.fix.leak_reader`: those of the patch
as a whole, and those of its loudest part (log-sum-exp over the parts, so it is not convex; both start at
zero). Every author's rows are scored once by a reader that has seen none of that author's rows; the threshold
is chosen on those scores, and their table goes into docs/results/leak_reader_folds.json. Sets kept for
testing are never read.
"""

from __future__ import annotations

import argparse
import json
import math
import os
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from scipy import sparse
from scipy.optimize import minimize

from ffr.fix.audit import AuditRow, read_patches
from ffr.fix.leak import inspect, parts_of
from ffr.fix.leak_reader import Hit, Part, Reader, Signs, signs_of
from ffr.fix.leak_rules import Passage
from ffr.fix.leak_target import Target
from ffr.fix.leak_text import lexicon

ROOT = Path(__file__).parents[1]
LEAKS = ROOT / "tests" / "leaks"
AUTHORS = {
    "first": ("direct", "partial", "clean"),
    "second": ("independent", "independent2"),
    **{f"stranger {k}": (f"strangers{k}",) for k in range(1, 27)},
}
"""Files by author; the other sets are for testing (tests/leaks/README.md)."""
MIN_QUESTIONS_OF_WORD = 4
MIN_ROWS_OF_SIGN = 4
MIN_WEIGHT = 0.02
PENALTY, PART_PENALTY = 20.0, 5.0
"""Of the squared weights of the whole and of the parts, against the summed log-loss of the balanced rows."""
MAX_FALSE_ALARMS = 0.15
"""Share of an unseen author's clean rows that may be refused, mean over the authors."""


@dataclass(frozen=True)
class Row:
    """A labelled patch, prepared.

    Example:
        >>> Row("first", "clean", "Which?", passages, parts, target, (), False, False).label  # doctest: +SKIP
        'clean'
    """

    author: str
    label: str
    question: str
    passages: tuple[Passage, ...]
    parts: tuple[Part, ...]
    target: Target
    hits: tuple[Hit, ...]
    certain: bool
    """Refused whatever the reader says."""
    silent: bool
    """Let through whatever the reader says."""


def read_rows() -> list[Row]:
    """All rows of the authors that may be learnt from."""
    rows: list[Row] = []
    for author, names in AUTHORS.items():
        for name in names:
            path = LEAKS / f"{name}.jsonl"
            found = read_patches(path)
            if found.errors:
                raise SystemExit(f"{path}: {found.errors[0]}")
            rows += [_prepare(author, row) for row in found.rows]
    return rows


def _prepare(author: str, row: AuditRow) -> Row:
    seen = inspect(row.patch, row.sample)
    return Row(
        author=author,
        label=row.label,
        question=row.sample.question,
        passages=seen.passages,
        parts=parts_of(row.patch, seen.target),
        target=seen.target,
        hits=seen.reasons,
        certain=seen.certain,
        silent=seen.silent,
    )


def usual_words(rows: Sequence[Row]) -> frozenset[str]:
    """Words in patches on several questions, function words left out (they are usual anyway)."""
    pairs = {
        (word, row.question) for row in rows for p in row.passages for c in p.clauses for word in c.words
    }
    counts = Counter(word for word, _ in pairs)
    return frozenset(w for w, n in counts.items() if n >= MIN_QUESTIONS_OF_WORD) - lexicon().function


class Matrix:
    """Signs by row, one column for each sign that enough rows have.

    Example:
        >>> Matrix([frozenset({"a"}), frozenset({"a", "b"})], least=2).names
        ['a']
    """

    def __init__(self, found: Sequence[frozenset[str]], least: int) -> None:
        counts = Counter(sign for signs in found for sign in signs)
        self.names = sorted(sign for sign, count in counts.items() if count >= least)
        column = {name: at for at, name in enumerate(self.names)}
        columns = [[column[sign] for sign in signs if sign in column] for signs in found]
        ends = np.cumsum([0, *map(len, columns)])
        cells = (np.ones(ends[-1]), np.array([c for row in columns for c in row], dtype=np.int64), ends)
        self.cells = sparse.csr_matrix(cells, shape=(len(found), len(self.names)), dtype=np.float64)
        self.turned = self.cells.T.tocsr()

    def weights(self, values: np.ndarray) -> dict[str, float]:
        """By sign, rounded; those that hardly weigh are left out."""
        pairs = zip(self.names, values, strict=True)
        return {name: round(float(w), 2) for name, w in pairs if abs(w) >= MIN_WEIGHT}


def fit(rows: Sequence[Row]) -> Reader:
    """A reader of these rows; its threshold is not set yet."""
    usual = usual_words(rows)
    signs = [row_signs(row, usual) for row in rows]
    # A patch without text has one empty part, so that every row has a loudest one.
    parts = [list(one.parts) or [frozenset[str]()] for one in signs]
    whole = Matrix([one.whole for one in signs], MIN_ROWS_OF_SIGN)
    part = Matrix([each for one in parts for each in one], MIN_ROWS_OF_SIGN)
    first = np.cumsum([0, *map(len, parts)])[:-1]
    owner = np.repeat(np.arange(len(rows)), list(map(len, parts)))
    leaks = np.array([row.label != "clean" for row in rows])
    sign = np.where(leaks, 1.0, -1.0)
    weight = np.where(leaks, 0.5 / leaks.mean(), 0.5 / (1 - leaks.mean()))
    cut = 1 + len(whole.names)

    def loss(theta: np.ndarray) -> tuple[float, np.ndarray]:
        loud = part.cells @ theta[cut:]
        top = np.maximum.reduceat(loud, first)
        share = np.exp(loud - top[owner])
        total = np.add.reduceat(share, first)
        margin = sign * (theta[0] + whole.cells @ theta[1:cut] + top + np.log(total))
        pull = -sign * weight / (1.0 + np.exp(np.clip(margin, -50, 50)))
        by_whole = whole.turned @ pull + PENALTY * theta[1:cut]
        by_part = part.turned @ (pull[owner] * share / total[owner]) + PART_PENALTY * theta[cut:]
        value = (weight * np.logaddexp(0.0, -margin)).sum()
        value += 0.5 * PENALTY * (theta[1:cut] ** 2).sum() + 0.5 * PART_PENALTY * (theta[cut:] ** 2).sum()
        return float(value), np.concatenate(([pull.sum()], by_whole, by_part))

    start = np.zeros(cut + len(part.names))
    theta = minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": 500}).x
    return Reader(
        round(float(theta[0]), 3), 0.0, whole.weights(theta[1:cut]), part.weights(theta[cut:]), usual
    )


def row_signs(row: Row, usual: frozenset[str]) -> Signs:
    """What the reader sees of a row."""
    return signs_of(row.passages, row.parts, row.target, row.hits, usual)


def unseen_scores(rows: Sequence[Row], num_processes: int) -> list[float]:
    """Each row's score by a reader that has seen none of its author's rows."""
    scores = [0.0] * len(rows)
    with ProcessPoolExecutor(num_processes, mp_context=get_context("fork")) as pool:
        for found in pool.map(_author_scores, [rows] * len(AUTHORS), AUTHORS):
            for at, score in found.items():
                scores[at] = score
    return scores


def _author_scores(rows: Sequence[Row], author: str) -> dict[int, float]:
    model = fit([row for row in rows if row.author != author])
    mine = {at: row for at, row in enumerate(rows) if row.author == author}
    return {
        at: -math.inf if row.silent else model.score(row_signs(row, model.usual)) for at, row in mine.items()
    }


def choose_threshold(rows: Sequence[Row], scores: Sequence[float]) -> float:
    """The lowest threshold at which the mean over authors of the refused share of clean rows is in bounds."""
    pairs = list(zip(rows, scores, strict=True))
    clean = {a: [s for r, s in pairs if r.author == a and r.label == "clean"] for a in AUTHORS}
    sure = {a: sum(r.certain for r in rows if r.author == a and r.label == "clean") for a in AUTHORS}
    known = {round(s, 3) for found in clean.values() for s in found if math.isfinite(s)}
    for threshold in sorted(known):
        refused = [
            min(1.0, (sure[a] + sum(score > threshold for score in found)) / len(found))
            for a, found in clean.items()
        ]
        if sum(refused) / len(refused) <= MAX_FALSE_ALARMS:
            return threshold
    raise ValueError("no threshold keeps the false alarms in bounds")


def table(rows: Sequence[Row], scores: Sequence[float], threshold: float) -> dict[str, dict[str, list[int]]]:
    """Refused and all rows, by author and label."""
    out: dict[str, dict[str, list[int]]] = {}
    for row, score in zip(rows, scores, strict=True):
        cell = out.setdefault(row.author, {}).setdefault(row.label, [0, 0])
        cell[0] += row.certain or score > threshold
        cell[1] += 1
    return out


def main() -> None:
    """Fits, prints the folds' table and writes the weights."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--dry-run", action="store_true", help="print the folds' table and write nothing")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1, help="folds at a time")
    args = parser.parse_args()
    rows = read_rows()
    scores = unseen_scores(rows, args.processes)
    threshold = choose_threshold(rows, scores)
    folds = table(rows, scores, threshold)
    for author, labels in folds.items():
        print(author, {k: f"{a}/{n} {a / n:.1%}" for k, (a, n) in labels.items()})
    model = fit(rows)
    print(
        f"threshold {threshold}, signs: {len(model.weights)} and {len(model.part_weights)}; "
        f"{len(model.usual)} usual words, {len(rows)} rows"
    )
    if args.dry_run:
        return
    document = {
        "note": "Fitted by scripts/train_leak_reader.py; do not edit.",
        "num_rows": len(rows),
        "bias": model.bias,
        "threshold": threshold,
        "usual": " ".join(sorted(model.usual)),
        "weights": dict(sorted(model.weights.items())),
        "part_weights": dict(sorted(model.part_weights.items())),
    }
    out = ROOT / "src" / "ffr" / "fix" / "leak_reader.json"
    out.write_text(json.dumps(document, indent=0) + "\n", encoding="ascii")
    report = {"threshold": threshold, "num_rows": len(rows), "authors": folds}
    (ROOT / "docs" / "results" / "leak_reader_folds.json").write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
