"""Evaluation: benchmarks, scorers, runs and their tables. Importing it is cheap and needs no torch."""

from __future__ import annotations

from ffr.eval.base import PROFILES, EvalDataError, Item, Score, Target
from ffr.eval.scorers import score, score_item

__all__ = ["PROFILES", "EvalDataError", "Item", "Score", "Target", "score", "score_item"]
