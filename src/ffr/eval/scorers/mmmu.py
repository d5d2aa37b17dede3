"""Open answers as MMMU's rules read them; the harnesses use these rules for VideoMMMU.

The rules (https://github.com/MMMU-Benchmark/MMMU, `eval/eval_utils.py`): of every line the shortest tail
after a word like "is" or "answer"; all numbers in those tails, rounded to 2 decimals; then strings by
containment and numbers by equality. They are generous ("4 or 5" answers both 4 and 5): that is theirs.
The patterns for numbers are written so that a line of 100,000 digits takes linear time.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

API_ERROR = "API Error"

INDICATORS = (
    *("could be ", "so ", "is ", "thus ", "therefore ", "final ", "answer ", "result ", "are "),
    *("in total ", "total ", "identify ", "recognize ", "calculated as ", "counted as ", "measured as "),
    *("observed as ", "concluded as ", "found to be ", "equals ", "determined to be ", "number of "),
    *("value is ", "adds up to ", "have ", "has "),
)
"""Words before an answer; `=` counts too, but only in the last line."""

_TRIVIAL = frozenset(":,.!?;'")
_WITH_COMMAS = re.compile(r"-?\b\d{1,3}(?:,\d{3})+\b")
_SCIENTIFIC = re.compile(r"-?(?<!\d)\d++(?:\.\d++)?[eE][+-]?\d++")
_PLAIN = re.compile(
    r"-?(?:(?<!\d)\d++\.\d++|\.\d++|(?<!\d)\d++\b)"  # from the start of a run of digits to its end
    r"(?![eE][+-]?\d)(?![,\d])"
)


def numbers(text: str) -> list[str]:
    """Numbers in a text as written: first those with commas, then scientific, then plain ones."""
    return [*_WITH_COMMAS.findall(text), *_SCIENTIFIC.findall(text), *_PLAIN.findall(text)]


def normalised(text: str) -> list[str | float]:
    """A number rounded to 2 decimals, or the text in lower case; a lone letter gets a space on a side."""
    text = text.strip()
    try:
        return [round(float(text.replace(",", "")), 2)]
    except ValueError:
        text = text.lower()
    return [f" {text}", f"{text} "] if len(text) == 1 else [text]


def tails(text: str) -> list[str]:
    """The shortest tail after an indicator, of each line that has one; else the whole text."""
    text = text.strip().strip(".").lower()
    lines = text.split("\n")
    found: list[str] = []
    for position, line in enumerate(lines):
        last = position == len(lines) - 1
        shortest = ""
        for indicator in (*INDICATORS, "=") if last else INDICATORS:
            if indicator in line:
                tail = line.rpartition(indicator)[2].strip()
                if not shortest or len(tail) < len(shortest):
                    shortest = tail
        if shortest and shortest not in _TRIVIAL:
            found.append(shortest)
    return found or [text]


def open_candidates(text: str) -> list[str | float] | None:
    """Strings and numbers an open answer may mean; None where the rules see a failed request."""
    if text in ("", API_ERROR):
        return None
    keys = tails(text)
    written = [*keys, *(n for key in keys for n in numbers(key))]
    return [value for item in written for value in normalised(item)]


def open_match(gold: str | Sequence[str], candidates: Iterable[str | float]) -> str | float | None:
    """The first candidate that answers an open question; None if none does.

    Args:
        gold: The answer, or several of which each is right.
        candidates: As `open_candidates` returns them.
    """
    golds = [value for g in ([gold] if isinstance(gold, str) else gold) for value in normalised(g)]
    strings = [value for value in golds if isinstance(value, str)]
    for candidate in candidates:
        if isinstance(candidate, str):
            if any(value in candidate for value in strings):
                return candidate
        elif candidate in golds:
            return candidate
    return None
