"""Temporal grounding: time spans in an answer and their overlap with the gold spans."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence

Span = tuple[float, float]

_TIME = r"(?:(\d{1,3}):)?(\d{1,6}(?:\.\d{1,6})?)\s*(?:s|sec|secs|seconds)?"
_SPAN = re.compile(rf"{_TIME}\s*(?:-|\u2013|to|and|,)\s*{_TIME}(?![\d:])", re.IGNORECASE)
_MAX_CHARS = 20_000


def read_spans(text: str) -> tuple[Span, ...]:
    """Time spans written in a text: "3.2 to 7 s", "[3.2, 7]", "1:05-1:10", "between 3 and 7".

    Args:
        text: An answer; only its first 20,000 characters are read.

    Returns:
        Spans in seconds with start <= end, in the order of the text; reversed ones are left out.
    """
    spans: list[Span] = []
    for match in _SPAN.finditer(text[:_MAX_CHARS]):
        start = 60.0 * float(match[1] or 0) + float(match[2])
        end = 60.0 * float(match[3] or 0) + float(match[4])
        if start <= end:
            spans.append((start, end))
    return tuple(spans)


def temporal_iou(predicted: Iterable[Span], gold: Iterable[Span]) -> float:
    """Intersection over union of two sets of spans, each merged first.

    Args:
        predicted: Spans in seconds.
        gold: Spans in seconds.

    Returns:
        IoU in [0, 1]; 0 if either side covers no time.
    """
    left, right = merge_spans(predicted), merge_spans(gold)
    shared = sum(max(0.0, min(a[1], b[1]) - max(a[0], b[0])) for a in left for b in right)
    union = _length(left) + _length(right) - shared
    return shared / union if union > 0 else 0.0


def merge_spans(spans: Iterable[Span]) -> tuple[Span, ...]:
    """Sorted, disjoint spans that cover the same time; empty, reversed and non-finite ones are dropped.

    Args:
        spans: Spans in seconds.

    Returns:
        The merged spans.
    """
    kept = sorted(span for span in spans if all(map(math.isfinite, span)) and span[0] < span[1])
    merged: list[Span] = []
    for start, end in kept:
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return tuple(merged)


def _length(spans: Sequence[Span]) -> float:
    return sum(end - start for start, end in spans)
