"""Finders of an option letter as lmms-eval 0.7.3 has them, one per family of tasks.

Each returns the letter (empty if there is none) and the rule that found it (`none`). Nothing is random.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

EIGHT = ("A", "B", "C", "D", "E", "F", "G", "H")

_PHRASES = (
    *("the answer is", "answer is", "the correct answer is", "correct answer is", "the best answer is"),
    *("best answer is", "the correct option is", "correct option is", "the best option is"),
    *("best option is", "the choice is", "choice is", "the correct choice is", "correct choice is"),
    *("i choose", "i select", "i pick", "my answer is", "my choice is"),
    *(
        "\uc635\uc158",
        "\uc815\ub2f5\uc740",
        "\ub2f5\uc740",
        "\ub2f5:",
        "\u7b54\u6848\u662f",
        "\u7b54\u6848\u4e3a",
        "\u9009",
        "\u7b54\u3048\u306f",
    ),
)
_PREFIXES = (
    *("The best answer is", "The correct answer is", "The answer is", "The answer", "The best option is"),
    *("The correct option is", "Best answer:", "Best option:"),
)
_MARKS = (  # a letter in its form, the form's rank and name
    ("({})", 6, "parentheses"),
    ("{}.", 5, "period"),
    ("{}:", 4, "colon"),
    ("{})", 3, "right_parenthesis"),
    ("{} ", 2, "space"),
)
_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'


def best_ranked(text: str, allowed: Sequence[str]) -> tuple[str, str]:
    """The letter in the highest-ranked form; among equals the last in the text (LVBench, VideoMMMU).

    Ranks: at the start, at the end, after a phrase ("the answer is"), `(B)`, `B.`, `B:`, `B)`, `B `,
    anywhere. A letter of a word counts in most of them ("OPTION B" has B at the end, N before a space).
    """
    text = text.strip()
    for mark in ",.!?;:'\"":
        text = text.strip(mark)
    if not text:
        return "", "none"
    padded, bare = f" {text} ", text.strip()
    found: list[tuple[int, int, str, str]] = []  # rank, position, letter, rule
    for form, rank, rule in _MARKS:
        for letter in allowed:
            position = padded.rfind(form.format(letter))
            if position >= 0:
                found.append((rank, position, letter, rule))
    found += _after_phrases(padded, allowed)
    for letter in allowed:
        if bare.startswith(letter) and not bare[1:2].isalpha():
            found.append((10, 0, letter, "start"))
    for letter in allowed:
        if bare.endswith(letter) and (len(bare) == 1 or not bare[-2].isalpha()):
            found.append((9, len(padded) - 1, letter, "end"))
    if not found:
        found = [(0, padded.rfind(letter), letter, "anywhere") for letter in allowed if letter in padded]
    if not found:
        return "", "none"
    best = max(found, key=lambda entry: entry[:2])  # the first of equals, as a stable sort leaves it
    return best[2], best[3]


def _after_phrases(padded: str, allowed: Iterable[str]) -> list[tuple[int, int, str, str]]:
    lower = padded.lower()
    found: list[tuple[int, int, str, str]] = []
    for phrase in _PHRASES:
        start = lower.find(phrase)
        if start >= 0:
            for letter in allowed:
                position = padded.find(letter, start + len(phrase))
                if position >= 0:
                    found.append((7, position, letter, "phrase"))
    return found


def mmmu_letter(text: str, options: Mapping[str, str]) -> tuple[str, str]:
    """MMMU's rule (Video-Holmes): `(B)`, else `B `, else `B.`, else an option's text in more than five words.

    Of several letters the last in the text; without any MMMU draws at random, here it is empty.
    """
    for mark in ",.!?;:'":
        text = text.strip(mark)
    text = f" {text} "
    lower = text.lower()
    labels = sorted(options)
    for form, where, rule in (
        ("({})", "({})", "parentheses"),
        ("{} ", " {} ", "space"),
        ("{}.", " {} ", "period"),
    ):
        found = [label for label in labels if form.format(label) in text]
        if found:
            return max(found, key=lambda label: text.rfind(where.format(label))), rule
    if len(text.split()) > 5:
        found = [label for label, option in options.items() if option.lower() in lower]
        if found:
            return max(found, key=lambda label: lower.rfind(options[label].lower())), "option_text"
    return "", "none"


def without_prefixes(text: str) -> str:
    """A text without the openings that LongVideoBench's parser removes, wherever they stand."""
    text = text.strip()
    for prefix in _PREFIXES:
        text = text.replace(prefix, "")
    return text


def standalone_letter(text: str) -> tuple[str, str]:
    """What MVBench's task compares: a leading `B. ...`, else the first lone A-E or a-e, else all of it."""
    text = text.strip()
    head, rest = text[:2], text[2:]
    # The rest of "B. ..." must stand on one line, blank lines before it aside.
    if re.match(r"[A-E]\.", head, re.IGNORECASE) and rest and not rest[: rest.rfind("\n") + 1].strip():
        return head[0].upper(), "option_line"
    text = _without_punctuation(text.replace("\n", " ").replace("\t", " ").strip())
    for mark in "'\")(":
        text = text.strip(mark)
    text = text.strip().lower()
    found = re.search(r"\b([A-E])\b", text, re.IGNORECASE)
    return (found[1].upper(), "standalone_letter") if found else (text, "whole_text")


def _without_punctuation(text: str) -> str:
    out = text
    digits_with_comma = re.search(r"\d,\d", text) is not None
    for mark in _PUNCTUATION:
        beside_blank = f"{mark} " in text or f" {mark}" in text
        out = out.replace(mark, "" if beside_blank or digits_with_comma else " ")
    # Only the first 32 full stops go: the harness passes re.UNICODE (32) where `sub` takes a count.
    return re.sub(r"\.(?!\d)", "", out, count=32)
