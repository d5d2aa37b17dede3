"""VSI-Bench: mean relative accuracy in its two forms, and units.

MRA = (1/10) sum over theta in {0.5, 0.55, ..., 0.95} of 1[|p - g| / g <= 1 - theta]
(arXiv 2412.14171 writes `<`, the authors' program `<=`).
"""

from __future__ import annotations

import re
from typing import Final

import numpy as np

FIRST, LAST, STEP = 0.5, 0.95, 0.05
NUM_THRESHOLDS: Final = 10

_METRE: Final = {"m": 1.0, "cm": 0.01, "mm": 0.001, "km": 1000.0, "in": 0.0254, "ft": 0.3048}
_NAMES: Final = {
    "m": r"m(?:et(?:er|re)s?)?",
    "cm": r"(?:cms?|centimet(?:er|re)s?)",
    "mm": r"(?:mm|millimet(?:er|re)s?)",
    "km": r"(?:km|kilomet(?:er|re)s?)",
    "in": r"inch(?:es)?",
    "ft": r"(?:ft|feet|foot)",
}
_LENGTH: Final = "|".join(f"(?P<{unit}>{names})" for unit, names in _NAMES.items())
_UNIT: Final = re.compile(
    rf"(?P<square>(?:square|sq\.?)[\s-]*)?\b(?:{_LENGTH})\b(?P<squared>\s*\^?\s*2\b|[\s-]+squared\b)?",
    re.IGNORECASE,
)
_STATED: Final = re.compile(rf"\d\s*-?\s*(?={_UNIT.pattern.replace('?P<', '?P<x_')})", re.IGNORECASE)
_ASKED: Final = re.compile(r"\bin\s+(?=\w)", re.IGNORECASE)


def official_mra(answer: float, gold: float) -> float:
    """MRA as the authors compute it, in double precision; bit for bit their expression.

    The number of thresholds comes out as 10 only because (0.95 - 0.5) / 0.05 + 2 falls just below 11.

    Args:
        answer: p.
        gold: g; no gold number of the benchmark is 0.

    Returns:
        A multiple of 0.1; 0 if g is 0.
    """
    if gold == 0:
        return 0.0
    num_points = (LAST - FIRST) / STEP + 2
    accuracy = abs(answer - gold) / gold <= 1 - np.linspace(FIRST, LAST, int(num_points))
    return float(accuracy.mean())


def strict_mra(answer: float, gold: float) -> float:
    """MRA of Video-R1's evaluation: float32 throughout, strict `<`, 1e-8 below the line.

    Args:
        answer: p.
        gold: g.

    Returns:
        A multiple of 0.1 in float32 (0.1 is 0.10000000149011612).
    """
    with np.errstate(all="ignore"):
        p, g = np.float32(answer), np.float32(gold)
        error = np.abs(p - g) / (np.abs(g) + np.float32(1e-8))
        thresholds = (FIRST + STEP * np.arange(NUM_THRESHOLDS)).astype(np.float32)
        hits = np.count_nonzero(error < np.float32(1) - thresholds)
    return float(np.float32(hits) / np.float32(NUM_THRESHOLDS))


def unit_factor(question: str, passage: str) -> float:
    """What a stated number is multiplied with to be in the unit that was asked for.

    Args:
        question: Names the unit after "in": "(in meters)", "measured in centimeters".
        passage: The answer with its unit, "250 cm".

    Returns:
        1.0 if either names no unit, several, or one of another dimension.
    """
    asked = {_unit_at(question, match.end()) for match in _ASKED.finditer(question[:2000])} - {None}
    stated = {_unit_at(passage, match.end()) for match in _STATED.finditer(passage[:400])} - {None}
    if len(asked) != 1 or len(stated) != 1:
        return 1.0
    want, got = asked.pop(), stated.pop()
    if want is None or got is None or want[1] != got[1]:
        return 1.0
    return (_METRE[got[0]] / _METRE[want[0]]) ** got[1]


def _unit_at(text: str, start: int) -> tuple[str, int] | None:
    match = _UNIT.match(text, start)
    if not match:
        return None
    name = next(unit for unit in _NAMES if match[unit])
    return name, 2 if match["square"] or match["squared"] else 1
