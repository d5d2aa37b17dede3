"""Numbers: how they are written, and when two are the same."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Final

from ffr.find.verify.text import plain_text

_BELOW_TWENTY = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
    "sixteen seventeen eighteen nineteen"
)
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety"
ONES: Final = {word: value for value, word in enumerate(_BELOW_TWENTY.split())}
TENS: Final = {word: 10 * (index + 2) for index, word in enumerate(_TENS.split())}
SCALES: Final = {"hundred": 100, "thousand": 1000, "million": 1_000_000, "billion": 1_000_000_000}
_MAX_CHARS: Final = 400
_NUMBER = re.compile(
    r"(?<![\w.^])(?P<sign>[-+])?[$]?(?P<body>\d{1,3}(?:,\d{3})+(?![\d,])(?:\.\d+)?"
    r"|\d+,\d{1,2}(?![\d,])|\d+(?:\.\d+)?|\.\d+)"
    r"(?:\s*[x*]\s*10\s*\^?\s*(?P<power>[-+]?\d{1,3})|[eE](?P<exp>[-+]?\d{1,3})(?!\w))?"
    r"(?:\s*/\s*(?P<below>\d+(?:\.\d+)?))?"
)
_PART = re.compile(r"\b(?:half|halves|quarters?|dozens?|point|couple)\b", re.IGNORECASE)
_WORD = re.compile(r"[a-z]+")


@dataclass(frozen=True, slots=True)
class Number:
    """A number as read from text; `value` is None when there is none, or several different ones.

    Example:
        >>> Number(value=3.14, decimals=2).decimals
        2
    """

    value: float | None
    decimals: int = 0
    """Digits written after the decimal point."""
    reason: str = ""


def read_number(text: str) -> Number:
    """Read the one number that a short text states.

    Thousands separators, decimals, signs, units and currency, percent signs, simple fractions, powers of
    ten and English number words are understood; what follows the last "=" counts. Two different numbers
    ("3 or 4") are ambiguous.

    Args:
        text: The answer.

    Returns:
        The number with its written precision, or the reason why there is none.
    """
    if len(text) > _MAX_CHARS:
        return Number(None, reason=f"an answer of {len(text)} characters is no number")
    plain = re.sub(r"\\(?:times|cdot)\b", "x", plain_text(text))
    plain = re.sub(r"\^\s*\{\s*([-+]?\d+)\s*\}", r"^\1", plain)
    plain = re.sub(r"\\(?:boxed|text|mathrm|textbf)\s*|\\[,;! ]|[{}]", " ", plain)
    plain = plain.rsplit("=", 1)[-1]
    found = [_from_match(match) for match in _NUMBER.finditer(plain) if not _is_power(plain, match)]
    if not found and _PART.search(plain):
        return Number(None, reason="a fraction or a measure in words is not read")
    if not found:
        found = [Number(float(value)) for value in _word_numbers(plain.casefold())]
    values = {number.value for number in found}
    if not found:
        return Number(None, reason="the answer holds no number")
    if len(values) > 1 or None in values:
        return Number(None, reason="the answer holds several different numbers")
    return max(found, key=lambda number: number.decimals)


def _is_power(text: str, match: re.Match[str]) -> bool:
    """Whether a number is the base of a power ("10^2"), which is not its value."""
    return text.startswith("^", match.end()) and not match["power"]


def _from_match(match: re.Match[str]) -> Number:
    body = match["body"]
    if re.fullmatch(r"\d+,\d{1,2}", body):  # a decimal comma: "3,5"
        body = body.replace(",", ".")
    body = body.replace(",", "")
    decimals = len(body.partition(".")[2])
    value = float(body)
    power = int(match["power"] or match["exp"] or 0)
    value *= 10.0**power if power < 309 else math.inf  # "1e999" is no number, and no error
    if match["below"]:
        below = float(match["below"])
        if below == 0:
            return Number(None, reason="division by zero")
        value, decimals = value / below, 0
    if match["sign"] == "-":
        value = -value
    return Number(value if math.isfinite(value) else None, decimals)


def _word_numbers(text: str) -> list[int]:
    """Every run of English number words in lower-case text, as integers ("twenty-one" is 21)."""
    numbers: list[int] = []
    total, current, active = 0, 0, False
    for word in [*_WORD.findall(text), ""]:
        if word in ONES or word in TENS:
            value = ONES[word] if word in ONES else TENS[word]
            if active and current % 100 and not (current % 10 == 0 and value < 10):
                numbers.append(total + current)  # "two three" are two numbers
                total, current = 0, 0
            current, active = current + value, True
        elif word in SCALES and (active or word == "hundred"):
            scale = SCALES[word]
            current = max(1, current) * scale
            if scale > 100:
                total, current = total + current, 0
            active = True
        elif word == "and" and active and current % 100 == 0:
            continue
        elif active:
            numbers.append(total + current)
            total, current, active = 0, 0, False
    return numbers


def same_number(gold: Number, answer: Number) -> bool:
    """Whether two numbers agree at the gold's written precision, two decimals at least.

    Args:
        gold: The gold number.
        answer: The student's number.

    Returns:
        True if both exist and agree.
    """
    if gold.value is None or answer.value is None:
        return False
    if math.isclose(gold.value, answer.value, rel_tol=1e-9, abs_tol=0.0):
        return True
    digits = max(2, gold.decimals)
    return round(gold.value, digits) == round(answer.value, digits)


def relative_score(gold: float, answer: float) -> float:
    """Video-R1's regression reward: 1 - clip((|p - g| + 1e-9) / (|g| + 1e-9), 0, 1).

    Args:
        gold: g.
        answer: p.

    Returns:
        A score in [0, 1]; 0 where it is not a number.
    """
    error = (abs(answer - gold) + 1e-9) / (abs(gold) + 1e-9)
    return 0.0 if math.isnan(error) else 1.0 - min(1.0, max(0.0, error))


def strict_float(text: str) -> float | None:
    """The released reading: commas out, then `float`; None if that fails or is not finite.

    Args:
        text: The answer.

    Returns:
        The value or None.
    """
    try:
        value = float(text.replace(",", ""))
    except ValueError:
        return None
    return value if math.isfinite(value) else None
