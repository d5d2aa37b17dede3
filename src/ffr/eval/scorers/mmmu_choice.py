"""Letters as MMMU's first parser reads them, with the colon that VideoMMMU added.

Forms in order: `B.` or `B:`, else `(B)`, else `B ` anywhere (the end of a word too), else an option's text in
an answer of more than five words; among several the one whose form stands last. Source:
https://github.com/MMMU-Benchmark/MMMU, `eval/eval_utils.py`, and EvolvingLMMs-Lab/VideoMMMU.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

_PUNCTUATION: Final = ",.!?;:'"


def video_mmmu_letter(text: str, options: Mapping[str, str]) -> tuple[str, str]:
    """The letter and the rule that found it; both empty if none did.

    Args:
        text: An answer.
        options: Text by letter, in order.
    """
    for mark in _PUNCTUATION:
        text = text.strip(mark)
    padded = f" {text} "
    periods = [letter for letter in options if f"{letter}." in padded]
    colons = [letter for letter in options if f"{letter}:" in padded]
    if periods or colons:
        # One list: with a period anywhere the places of periods decide, even for a letter with a colon.
        form = "{}." if periods else "{}:"
        return _last(padded, [*periods, *colons], form), "period" if periods else "colon"
    for rule, form, place in (("brackets", "({})", "({})"), ("blank", "{} ", " {} ")):
        letters = [letter for letter in options if form.format(letter) in padded]
        if letters:
            return _last(padded, letters, place), rule
    if len(padded.split()) > 5:
        low = padded.lower()
        named = [letter for letter, option in options.items() if option.lower() in low]
        if named:
            return max(named, key=lambda letter: low.rfind(options[letter].lower())), "option_text"
    return "", ""


def _last(text: str, letters: list[str], form: str) -> str:
    return max(letters, key=lambda letter: text.rfind(form.format(letter)))
