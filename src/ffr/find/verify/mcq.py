"""Multiple choice: which option did the student name?"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from ffr.find.verify.text import plain_text
from ffr.types import Option

_WRAP = re.compile(r"\\(?:boxed|text|textbf|textrm|mathrm|mathbf|mathsf)\s*\{([^{}]{0,2000})\}")
_LEAD_IN = re.compile(
    r"^(?:so\W+|therefore\W+)?(?:the\s+)?(?:final\s+|correct\s+|right\s+|best\s+)*"
    r"(?:answer|option|choice)\b(?:\s+(?:option|choice))?\s*(?:is\b|:|=)?\s*(?:option\b|choice\b)?\s*",
    re.IGNORECASE,
)
_LONE_LETTER = re.compile(r"^[^\w]*([A-Za-z])[^\w]*$")
_LETTER_AND_TEXT = re.compile(
    r"^(?:[(\[{]\s*([A-Za-z])\s*[)\]}]|([A-Za-z])\s*[).:\]\-])\s*(\S.*)$", re.DOTALL
)
_LETTER_BLANK_TEXT = re.compile(r"^([A-Za-z])\s+(\S.*)$", re.DOTALL)
_MARKED_LETTER = re.compile(r"[(\[]\s*([A-Za-z])\s*[)\]]|(?<![\w'])([A-Z])(?=[.):,;]|\s*$)")
_SINGLE_LETTER = re.compile(r"(?<![\w'])([A-Za-z])(?![\w'])(?:\s+(\w+))?")
_HYPHEN = re.compile(r"(?<=[^\W\d_])-(?=[^\W\d_])")
_JOINERS = frozenset({"and", "or", "nor", "then", "but"})
_MAX_CHARS = 2000
"""No option is longer; a longer answer is an essay, not a choice."""


@dataclass(frozen=True, slots=True)
class Choice:
    """Which option an answer names; `label` is None when it names none or several.

    Example:
        >>> Choice(label="B", rule="mcq.letter").label
        'B'
    """

    label: str | None
    rule: str
    reason: str = ""


def normalise(text: str) -> str:
    """Comparison form of an option or a short answer.

    Plain characters, lower case, no hyphens between words, no outer punctuation or article.

    Args:
        text: Any text.

    Returns:
        The folded text.
    """
    folded = " ".join(_HYPHEN.sub(" ", plain_text(text).casefold()).split())
    folded = folded.strip(" .,;:!?\"'`*_$()[]{}")
    for article in ("a ", "an ", "the "):
        folded = folded.removeprefix(article)
    return folded


def read_choice(answer: str, options: Sequence[Option]) -> Choice:
    """Read the option that an answer names.

    Letters in any dress ("B", "(B)", "b.", "B. red", "Option B") and an option's own text are taken;
    an answer that names two options, or a letter with another option's text, is ambiguous and names none.

    Args:
        answer: What stood in the answer tag.
        options: The question's options; empty if they are written inside the question.

    Returns:
        The choice, with the rule that fired and why when there is none.
    """
    text = _undress(answer)
    if not text:
        return Choice(None, "mcq.empty", "the answer tag is empty")
    if len(text) > _MAX_CHARS:
        return Choice(None, "mcq.too_long", f"an answer of {len(text)} characters is no choice")
    by_text = _labels_with_text(text, options)
    lone = _LONE_LETTER.match(text)
    if lone:
        return _known(lone.group(1), options, "mcq.letter")
    labelled = _read_labelled(text, options)
    if len(by_text) > 1:
        return Choice(None, "mcq.ambiguous", f"the text fits options {', '.join(by_text)}")
    if by_text:
        if labelled and labelled.label not in (None, by_text[0]):
            return Choice(None, "mcq.ambiguous", "the answer reads as a letter and as another option's text")
        return Choice(by_text[0], "mcq.text")
    if labelled:
        return labelled
    return _read_marked(text, options)


def _undress(answer: str) -> str:
    """Take off mark-up and 'the answer is'; what is left is a letter, a text or both."""
    text = " ".join(plain_text(answer[: 4 * _MAX_CHARS]).split())
    for _ in range(3):
        text = _WRAP.sub(r"\1", text)
    text = text.strip("*_$`\"' ")
    lead = _LEAD_IN.match(text)
    rest = text[lead.end() :].strip("*_$`\"' ") if lead else ""
    return rest or text


def _labels_with_text(text: str, options: Sequence[Option]) -> list[str]:
    folded = normalise(text)
    return [option.label for option in options if folded and normalise(option.text) == folded]


def _known(letter: str, options: Sequence[Option], rule: str) -> Choice:
    label = letter.upper()
    if options and label not in {option.label.upper() for option in options}:
        return Choice(None, "mcq.unknown_letter", f"there is no option {label}")
    return Choice(label, rule)


def _read_labelled(text: str, options: Sequence[Option]) -> Choice | None:
    """'B. red', '(B) red', and 'B red' where red is the text of option B."""
    match = _LETTER_AND_TEXT.match(text)
    if match:
        label = (match.group(1) or match.group(2)).upper()
        rest = match.group(3)
    else:
        match = _LETTER_BLANK_TEXT.match(text)
        if not match or match.group(1).upper() not in _labels_with_text(match.group(2), options):
            return None
        return Choice(match.group(1).upper(), "mcq.letter_text")
    named = _labels_with_text(rest, options)
    if named and label not in named:
        return Choice(None, "mcq.ambiguous", f"letter {label} with the text of option {named[0]}")
    if not named and _letters_in(rest, options) - {label}:
        return Choice(None, "mcq.ambiguous", "the answer names several options")
    return _known(label, options, "mcq.letter_text")


def _read_marked(text: str, options: Sequence[Option]) -> Choice:
    """A sentence with exactly one marked letter in it: 'I choose (B)'."""
    letters = _letters_in(text, options)
    marked = {(a or b).upper() for a, b in _MARKED_LETTER.findall(text)}
    if (
        len(letters) == 1
        and letters <= marked
        and not re.search(r"\b(?:not|n't|isn't|neither|nor|or)\b", text, re.IGNORECASE)
    ):
        return Choice(letters.pop(), "mcq.marked_letter")
    if len(letters) > 1 or letters & marked:
        return Choice(None, "mcq.ambiguous", "the answer names several options or negates one")
    return Choice(None, "mcq.no_option", "the answer is neither an option's letter nor its text")


def _letters_in(text: str, options: Sequence[Option]) -> set[str]:
    """Option letters that stand alone in a text; "a man" and "I think" are words, "A and C" are letters."""
    known = {option.label.upper() for option in options} or set("ABCDEFGHIJ")
    letters: set[str] = set()
    for match in _SINGLE_LETTER.finditer(text):
        letter, following = match.group(1), match.group(2)
        article = letter in "aAI" and following and following.lower() not in _JOINERS
        if not article and letter.upper() in known:
            letters.add(letter.upper())
    return letters
