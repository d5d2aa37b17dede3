"""The first number in a text, in digits or in words, as lmms-eval 0.7.3 finds it for VSI-Bench."""

from __future__ import annotations

import re

_UNITS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen".split()
)
_UNITS += "sixteen seventeen eighteen nineteen".split()
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
_WORDS = {word: value for value, word in enumerate(_UNITS)} | {
    **{word: 20 + 10 * i for i, word in enumerate(_TENS)},
    "hundred": 100,
    "thousand": 1000,
}
_DIGITS = re.compile(r"-?\d+(?:\.\d+)?")
_WORD = re.compile(r"[a-z]+")


def first_number(text: str) -> float | None:
    """The first number of a text, `3.5` or `twenty-one`; None without one.

    A comma ends a number (`2,500` is 2), a sign directly before it counts (`1-3` starts with 1).
    """
    text = text.strip().lower()
    digits, words = _DIGITS.search(text), _number_words(text)
    if digits and (words is None or digits.start() < words[0]):
        return float(digits[0])
    return None if words is None else words[1]


def _number_words(text: str) -> tuple[int, float] | None:
    """Position and value of the first run of number words; `and` may stand inside it."""
    start, run = -1, list[int]()
    for match in _WORD.finditer(text):
        value = _WORDS.get(match[0])
        if value is None:
            if run and match[0] != "and":
                break
            continue
        start = start if run else match.start()
        run.append(value)
    if not run:
        return None
    total = current = 0
    for value in run:
        if value == 100:
            current = max(current, 1) * 100
        elif value == 1000:
            total, current = total + max(current, 1) * 1000, 0
        else:
            current += value
    try:
        return start, float(total + current)
    except OverflowError:
        return start, float("inf")
