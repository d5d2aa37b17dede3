"""Fits the leak gate's reader to the labelled patches of tests/leaks and writes src/ffr/fix/leak_reader.json.

python scripts/train_leak_reader.py [--dry-run]

A logistic model, L2-penalised, classes balanced, on the signs of `ffr.fix.leak_reader`. Every author's rows
are scored once by a reader that has seen none of that author's rows; the threshold is chosen on those scores,
and their table goes into docs/results/leak_reader_folds.json. Sets kept for testing are never read.
"""

from __future__ import annotations

import argparse
import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import sparse
from scipy.optimize import minimize

from ffr.fix.audit import AuditRow, read_patches
from ffr.fix.leak import inspect
from ffr.fix.leak_reader import Reader, signs_of, tells_nothing
from ffr.fix.leak_rules import Passage
from ffr.fix.leak_target import Target
from ffr.fix.leak_text import lexicon

ROOT = Path(__file__).parents[1]
LEAKS = ROOT / "tests" / "leaks"
AUTHORS = {
    "first": ("direct", "partial", "clean"),
    "second": ("independent", "independent2"),
    **{f"stranger {k}": (f"strangers{k}",) for k in range(1, 21)},
}
"""Files by author; `independent3`, `held_out`, `reviewer`, `editor` and `contrast` are for testing."""
MIN_QUESTIONS_OF_WORD = 4
MIN_ROWS_OF_SIGN = 4
MIN_WEIGHT = 0.01
PENALTY = 10.0
"""Of the squared weights, against the summed log-loss of the balanced rows."""
MAX_FALSE_ALARMS = 0.15
"""Share of an unseen author's clean rows that may be refused, mean over the authors."""


@dataclass(frozen=True)
class Row:
    """A labelled patch, prepared.

    Example:
        >>> Row("first", "clean", "Which?", passages, target, (), False, False).label  # doctest: +SKIP
        'clean'
    """

    author: str
    label: str
    question: str
    passages: tuple[Passage, ...]
    target: Target
    hits: tuple[str, ...]
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
        target=seen.target,
        hits=seen.hits,
        certain=seen.certain,
        silent=not seen.hits and tells_nothing(seen.passages, seen.target),
    )


def usual_words(rows: Sequence[Row]) -> frozenset[str]:
    """Words in patches on several questions, function words left out (they are usual anyway)."""
    pairs = {
        (word, row.question) for row in rows for p in row.passages for c in p.clauses for word in c.words
    }
    counts = Counter(word for word, _ in pairs)
    return frozenset(w for w, n in counts.items() if n >= MIN_QUESTIONS_OF_WORD) - lexicon().function


def fit(rows: Sequence[Row]) -> Reader:
    """A reader of these rows; its threshold is not set yet."""
    usual = usual_words(rows)
    signs = [signs_of(row.passages, row.target, row.hits, usual) for row in rows]
    counts = Counter(sign for found in signs for sign in found)
    names = sorted(sign for sign, count in counts.items() if count >= MIN_ROWS_OF_SIGN)
    column = {name: at for at, name in enumerate(names)}
    cells = [(i, column[s]) for i, found in enumerate(signs) for s in found if s in column]
    matrix = sparse.csr_matrix(
        (np.ones(len(cells)), tuple(np.array(cells).T)), shape=(len(rows), len(names)), dtype=np.float64
    )
    leaks = np.array([row.label != "clean" for row in rows])
    sign = np.where(leaks, 1.0, -1.0)
    weight = np.where(leaks, 0.5 / leaks.mean(), 0.5 / (1 - leaks.mean()))

    def loss(theta: np.ndarray) -> tuple[float, np.ndarray]:
        margin = sign * (matrix @ theta[1:] + theta[0])
        pull = -sign * weight / (1.0 + np.exp(np.clip(margin, -50, 50)))
        gradient = np.concatenate(([pull.sum()], matrix.T @ pull + PENALTY * theta[1:]))
        value = (weight * np.logaddexp(0.0, -margin)).sum() + 0.5 * PENALTY * theta[1:] @ theta[1:]
        return float(value), gradient

    theta = minimize(loss, np.zeros(len(names) + 1), jac=True, method="L-BFGS-B", options={"maxiter": 500}).x
    weights = {
        name: round(float(w), 2) for name, w in zip(names, theta[1:], strict=True) if abs(w) >= MIN_WEIGHT
    }
    return Reader(round(float(theta[0]), 3), 0.0, weights, usual)


def unseen_scores(rows: Sequence[Row]) -> list[float]:
    """Each row's score by a reader that has seen none of its author's rows."""
    scores = [0.0] * len(rows)
    for author in AUTHORS:
        model = fit([row for row in rows if row.author != author])
        for at, row in enumerate(rows):
            if row.author == author:
                score = model.score(signs_of(row.passages, row.target, row.hits, model.usual))
                scores[at] = -math.inf if row.silent else score
    return scores


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
    args = parser.parse_args()
    rows = read_rows()
    scores = unseen_scores(rows)
    threshold = choose_threshold(rows, scores)
    folds = table(rows, scores, threshold)
    for author, labels in folds.items():
        print(author, {k: f"{a}/{n} {a / n:.1%}" for k, (a, n) in labels.items()})
    model = fit(rows)
    print(
        f"threshold {threshold}, {len(model.weights)} signs, {len(model.usual)} usual words, {len(rows)} rows"
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
    }
    out = ROOT / "src" / "ffr" / "fix" / "leak_reader.json"
    out.write_text(json.dumps(document, indent=0) + "\n", encoding="ascii")
    report = {"threshold": threshold, "num_rows": len(rows), "authors": folds}
    (ROOT / "docs" / "results" / "leak_reader_folds.json").write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
