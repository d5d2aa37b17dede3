"""Scorers: from an output to a `Score`, under a named profile; every rule is deterministic.

`robust` reads outputs as a person would; `video_r1` is the reward's strict comparison; `official` holds each
benchmark's own rules; `lmms_eval` and `vlmevalkit` are what these harnesses would say. A profile is a module
of this package with one function, `score_<profile>`; it is imported on first use.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

from ffr.eval.base import PROFILES, Score, Target
from ffr.eval.rows import ItemRow

__all__ = ["score", "score_item", "score_target"]

Scorer = Callable[[str, Target, Mapping[str, Any], str], Score]


def score(benchmark: str, record: Mapping[str, Any], output: str, *, profile: str = "robust") -> Score:
    """Score one output of a model against an official row.

    Args:
        benchmark: Name of the benchmark (`mvbench`).
        record: The row as in the official file, or as in the hub's table of the same benchmark.
        output: The model's whole text: thinking, tags and all; any string is fine.
        profile: One of `ffr.eval.base.PROFILES`.

    Returns:
        Value in [0, 1], what was extracted, the rule that fired.

    Raises:
        EvalDataError: The benchmark is unknown, or a field of `record` is missing.
        ValueError: The profile does not exist.
    """
    from ffr.eval.benchmarks import get_benchmark

    return score_target(benchmark, get_benchmark(benchmark).target(record), record, output, profile=profile)


def score_item(item: ItemRow, text: str, profile: str = "robust") -> Score:
    """Score one output of a run's question; see `score`.

    Raises:
        EvalDataError: The item's record is malformed.
        ValueError: The profile does not exist.
    """
    return score(item.benchmark, item.record, text, profile=profile)


def score_target(
    benchmark: str, target: Target, record: Mapping[str, Any], output: str, *, profile: str = "robust"
) -> Score:
    """Score against a target that was read before: what a loop over many outputs calls.

    Args:
        benchmark: Name of the benchmark; some rules are its own.
        target: `Benchmark.target(record)`.
        record: The official row.
        output: The model's whole text.
        profile: One of `ffr.eval.base.PROFILES`.

    Returns:
        The score.

    Raises:
        ValueError: The profile does not exist.
    """
    return scorer(profile)(benchmark, target, record, output)


def scorer(profile: str) -> Scorer:
    """The function of a profile.

    Raises:
        ValueError: The profile does not exist.
    """
    if profile not in PROFILES:
        raise ValueError(f"unknown scoring profile {profile!r}; use one of {', '.join(PROFILES)}")
    return getattr(import_module(f"{__name__}.{profile}"), f"score_{profile}")
