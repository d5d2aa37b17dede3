"""Evaluation: benchmarks, scorers, runs and their tables. Importing it is cheap and needs no torch."""

from __future__ import annotations

from ffr.eval.base import PROFILES, EvalDataError, Item, Loaded, ProtocolCard, Score, Target
from ffr.eval.benchmarks import BENCHMARKS, get_benchmark
from ffr.eval.rows import EvalRow, ItemRow, RunFileError, read_items, read_rows
from ffr.eval.scorers import score, score_item, score_target

__all__ = [
    "BENCHMARKS",
    "PROFILES",
    "EvalDataError",
    "EvalRow",
    "Item",
    "ItemRow",
    "Loaded",
    "ProtocolCard",
    "RunFileError",
    "Score",
    "Target",
    "get_benchmark",
    "read_items",
    "read_rows",
    "score",
    "score_item",
    "score_target",
]
