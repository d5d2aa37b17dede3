"""`robust`, numbers: which number an output settles on."""

from __future__ import annotations

import re
from typing import Final

from ffr.eval.scorers.final import MAX_PASSAGE_CHARS, Parts
from ffr.find.verify.number import Number, read_number
from ffr.find.verify.statement import sentences

_ABOUT: Final = (
    r"(?:(?:approximately|about|around|roughly|nearly|almost|exactly|approx\.?|estimated|at|to|be|is|a|the|there|"
    r"are|total|of|in|only|just|close)\b\.?[\s,:]*)*"
)
_LEAD: Final = re.compile(
    rf"^[\s~\u2248=:*(\"'$]*{_ABOUT}[\s~\u2248=:*(\"'$]*"
    r"([-+]?\$?(?:\d[\d,]*\.?\d*|\.\d+)(?:\s*[x*]\s*10\s*\^\s*[-+]?\d+|[eE][-+]?\d+)?|[a-z]+(?:-[a-z]+)?\b)",
    re.IGNORECASE,
)
_RANGE: Final = re.compile(r"^\s*(?:-|to\b|or\b|and\b|/)\s*[\w.]*", re.IGNORECASE)
_CONCLUDES: Final = re.compile(
    r"\b(?:therefore|thus|hence|so|in conclusion|in total|overall|finally|altogether|based on|estimate[ds]?|"
    r"approximately|there are|there is)\b",
    re.IGNORECASE,
)
_BARE: Final = re.compile(r"^\W*(?:[-+]?[\d.,]+|[a-z-]+)\s*(?:[a-z]+\.?(?:\^?2)?\s*){0,2}\W*$", re.IGNORECASE)


def number_in(parts: Parts) -> tuple[Number | None, str, str]:
    """The number an output settles on, the passage it stands in, and the rule; None if there is none."""
    for passage in parts.explicit:
        number = _read(passage.text)
        if number or passage.rule == "answer_tag":
            return number, passage.text, f"{passage.rule}.number"
    for passage in parts.announced:
        number = _read(passage.text) if passage.closing or not parts.unfinished else None
        if number:
            return number, passage.text, f"{passage.rule}.number"
    for text, rule in () if parts.unfinished else _places(parts.body):
        number = _read(text, lead=text[:1].isdigit() and not _CONCLUDES.search(text))
        if number:
            return number, text, f"{rule}.number"
    for passage in parts.spare:
        return _read(passage.text), passage.text, f"{passage.rule}.number"
    return None, "", ""


def _places(body: str) -> list[tuple[str, str]]:
    """Where an unannounced number may stand: the whole reply, a line of its own, the last sentence."""
    places: list[tuple[str, str]] = []
    lines = body.split("\n")
    said = sentences(body[-3 * MAX_PASSAGE_CHARS :])
    if len(said) == 1 and len(body) <= MAX_PASSAGE_CHARS:
        return [(body, "whole")]
    places += [(line, "line") for line in (lines[-1], lines[0]) if len(lines) > 1 and _BARE.match(line)]
    if said and (len(said) == 2 or _CONCLUDES.search(said[-1])):
        places.append((said[-1], "conclusion"))
    if 1 < len(said) <= 3 and len(body) <= MAX_PASSAGE_CHARS:
        places.append((said[0], "sentence"))
    return places


def _read(text: str, *, lead: bool = True) -> Number | None:
    """The one number of a passage, else (`lead`) the one at its start; none if that begins a range."""
    for piece in (text, *sentences(text)[:1]):
        number = read_number(piece)
        if number.value is not None:
            return number
        first = _LEAD.match(piece) if lead else None
        if first and not _RANGE.match(piece[first.end() :]):
            number = read_number(first[1])
            if number.value is not None:
                return number
    return None
