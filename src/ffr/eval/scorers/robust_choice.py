"""`robust`, options: which option an output settles on, by letter, by text or by both."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from ffr.eval.scorers.final import Parts
from ffr.find.verify.mcq import Choice, read_choice
from ffr.find.verify.number import read_number
from ffr.find.verify.statement import contained_choice, read_lead, read_statement, sentences
from ffr.types import Option

ONE_LINE_CHARS: Final = 300
SHORT_CHARS: Final = 800
"""A longer reply names options on its way; only lines and announcements are read there."""
_MAX_LINES: Final = 80
_SURE: Final = frozenset({"mcq.letter", "mcq.letter_text", "mcq.text", "mcq.number"})
_CONCLUDES: Final = re.compile(
    r"^\W*(?:and\s+|but\s+)?(?:therefore|thus|hence|so|in conclusion|to conclude|in summary|overall|finally|"
    r"consequently|based on)\b[\s,:]*",
    re.IGNORECASE,
)
NONE: Final = Choice(None, "mcq.no_option")


def choose(parts: Parts, options: Sequence[Option]) -> tuple[str, str]:
    """The label of the option an output settles on, and the rule; both empty if it settles on none.

    Args:
        parts: The output taken apart.
        options: The question's options, labelled with letters.
    """
    for passage in parts.explicit:
        choice = _in_tag(passage.text, options)
        if choice.label or passage.rule == "answer_tag":
            return _named(passage.rule, choice)
    for passage in parts.announced:
        if parts.unfinished and not passage.closing:
            continue
        choice = read_statement(passage.text, options)
        if choice.label:
            return _named(passage.rule, choice)
    steps: Iterable[tuple[str, Callable[[str, Sequence[Option]], Choice]]] = (
        ("whole", _whole),
        ("line", _lines),
        ("start", _start),
        ("conclusion", _conclusion),
        ("sentence", _short_reply),
    )
    for rule, read in () if parts.unfinished else steps:
        choice = read(parts.body, options)
        if choice.label or choice.rule == "mcq.ambiguous":
            return _named(rule, choice)
    for passage in parts.spare:
        return _named(passage.rule, _in_tag(passage.text, options))
    return "", ""


def _named(where: str, choice: Choice) -> tuple[str, str]:
    return (choice.label, f"{where}.{choice.rule.removeprefix('mcq.')}") if choice.label else ("", "")


def _in_tag(text: str, options: Sequence[Option]) -> Choice:
    choice = with_numbers(text, options)
    if choice.label or choice.rule in ("mcq.ambiguous", "mcq.unknown_letter", "mcq.empty"):
        return choice
    return read_statement(text, options)


def with_numbers(text: str, options: Sequence[Option]) -> Choice:
    """`read_choice`, and a bare number for the one option of the same value ("10" for "10.0")."""
    choice = read_choice(text, options)
    if choice.label or not re.fullmatch(r"\W*[\d.,]+\W*", text):
        return choice
    value = read_number(text).value
    same = [o.label for o in options if value is not None and read_number(o.text).value == value]
    return Choice(same[0], "mcq.number") if len(same) == 1 else choice


def _whole(body: str, options: Sequence[Option]) -> Choice:
    if "\n" in body or len(body) > ONE_LINE_CHARS:
        return NONE
    choice = with_numbers(body, options)
    if choice.rule == "mcq.marked_letter" and len(sentences(body)) > 1:
        return NONE  # "Plan B. He runs." marks a letter, too
    # A sentence may hold several letters by chance: later steps look again.
    return choice if choice.label else NONE


def _lines(body: str, options: Sequence[Option]) -> Choice:
    """A line that is an option; the last one wins where it only repeats or is a lone letter."""
    lines = body.split("\n")
    if len(lines) < 2:
        return NONE
    found: list[tuple[int, Choice]] = []
    for at, line in enumerate(lines):
        if min(at, len(lines) - 1 - at) >= _MAX_LINES or len(line) > ONE_LINE_CHARS:
            continue
        choice = with_numbers(line, options)
        if choice.label and choice.rule in _SURE:
            found.append((at, choice))
    if not found:
        return NONE
    labels = [choice.label for _, choice in found]
    at, last = found[-1]
    ends = at == len(lines) - 1
    if len(set(labels)) == 1 or (ends and (last.rule == "mcq.letter" or last.label in labels[:-1])):
        return last
    first_at, first = found[0]
    if first_at == 0 and first.rule == "mcq.letter":
        return first  # the letter, then a discussion of the options
    return Choice(None, "mcq.ambiguous", "lines name several options")


def _start(body: str, options: Sequence[Option]) -> Choice:
    """A reply that begins with its letter: "B. The man ...", "(B) because ..."; no list of options."""
    choice = read_lead(body, options, filler=False)
    if choice.label and len(set(re.findall(r"(?<![\w'])\(?([A-J])[.):]\s", body[:SHORT_CHARS]))) > 1:
        return NONE
    return choice


def _conclusion(body: str, options: Sequence[Option]) -> Choice:
    """The last sentence, where it begins with "therefore" or another word that concludes."""
    last = (sentences(body[-2 * ONE_LINE_CHARS :]) or [""])[-1]
    match = _CONCLUDES.match(last)
    if not match:
        return NONE
    rest = last[match.end() :]
    named = read_choice(rest, options)
    return named if named.label else contained_choice(rest, options)


def _short_reply(body: str, options: Sequence[Option]) -> Choice:
    """The one option whose text a short reply holds; what a sentence negates is not read."""
    if len(body) > SHORT_CHARS:
        return NONE
    choices = [contained_choice(sentence, options) for sentence in sentences(body)]
    labels = {choice.label for choice in choices if choice.label}
    if len(labels) != 1 or any(choice.rule == "mcq.ambiguous" for choice in choices):
        return NONE
    return next(choice for choice in choices if choice.label)
