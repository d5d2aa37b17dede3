"""Options inside sentences: what follows "the answer is", and an option's text within a short reply.

`mcq.read_choice` reads an answer that is nothing but an option; here words may follow ("B, because ...") or
stand around it. A letter is read only where it can be no word: the article "a" and the pronoun "I" never are.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from ffr.find.verify.mcq import Choice, normalise, read_choice
from ffr.find.verify.number import read_number
from ffr.types import Option

_FILLER: Final = r"(?:the|it|this|that|is|be|to|as|option|choice|letter|answer|number|clearly|likely)"
_LEAD: Final = re.compile(rf"^[\W_]*(?:{_FILLER}\b[\W_]*){{0,4}}(?<![\w'])([A-Za-z])(?![\w'])", re.IGNORECASE)
_DRESS: Final = re.compile(r"^\s*(?:[.):\]},;*\"'$-]|\\|$)")
_REASON: Final = re.compile(
    r"^\s*(?:(?:because|since|as|for|due|based|given|which|where|with|according|in\s+this)\b|\()",
    re.IGNORECASE,
)
_JOINED: Final = re.compile(
    r"^[\s.):\]},*\"'$]*(?:,|/|&|\+|-|and\b|or\b|nor\b|to\b)[\s(\[*\"']*(?:or\s+|and\s+)?(?:option\s+|choice\s+)?[(\[]?"
    r"([A-Za-z])(?![\w'])",
    re.IGNORECASE,
)
_NEGATION: Final = re.compile(
    r"\b(?:not|no|never|neither|nor|without|rather\s+than|instead\s+of|unlike|except|cannot|"
    r"would|could|might|if|whether|incorrect|wrong|ruled\s+out|other\s+(?:options|choices))\b|n't\b",
    re.IGNORECASE,
)
_NUMERIC: Final = re.compile(r"\s*[\d.,]+\s*")
_SENTENCE: Final = re.compile(r"(?<=[.!?;])\s+|\n+")
_MAX_TAIL_CHARS: Final = 400


def sentences(text: str) -> list[str]:
    """Sentences and lines of a text, blank ones left out; a lone "B." stays with what follows it."""
    parts: list[str] = []
    for piece in _SENTENCE.split(text):
        if parts and re.fullmatch(r"[\W_]*[A-Za-z0-9]{1,2}[.)]", parts[-1]):
            parts[-1] += " " + piece
        elif piece.strip():
            parts.append(piece)
    return [part.strip() for part in parts]


def read_statement(tail: str, options: Sequence[Option]) -> Choice:
    """Read the option named by what follows "the answer is", or by the start of a reply.

    Args:
        tail: The words after the announcement; only the first 400 characters are read.
        options: The question's options.

    Returns:
        The choice; none if the tail names several options, negates one or names none.
    """
    tail = tail[:_MAX_TAIL_CHARS].strip()
    if re.match(r"^[\W_]*(?:not|neither|none\s+of\s+(?:these|them|the\s+options))\b", tail, re.IGNORECASE):
        named = read_choice(tail, options)
        return named if named.rule == "mcq.text" else Choice(None, "mcq.negated", "it says what is not right")
    whole = read_choice(tail, options)
    if whole.label or whole.rule == "mcq.unknown_letter":
        return whole
    lead = read_lead(tail, options)
    if lead.label or lead.rule != "mcq.no_option":
        return lead
    for line in sentences(tail)[:1]:
        named = read_choice(line, options)
        return named if named.label else contained_choice(line, options)
    return whole


def read_lead(text: str, options: Sequence[Option], *, filler: bool = True) -> Choice:
    """The letter at the start of a text, where it stands as an answer: "B.", "B because", "(B) a dog. The".

    Args:
        text: An answer with words after it.
        options: The question's options.
        filler: Whether a few words like "option" or "it is" may come first.

    Returns:
        The choice; none where the letter may be a word, another letter follows ("B or C"), or the text
        after it is another option's.
    """
    match = _LEAD.match(text) if filler else re.match(r"^[\W_]*([A-Za-z])(?![\w'])", text)
    if not match:
        return Choice(None, "mcq.no_option", "no letter at the start")
    letter, after = match[1], text[match.end() :]
    label = letter.upper()
    joined = _JOINED.match(after)
    if joined and letter.isupper() and joined[1].isupper() and joined[1] != label:
        return Choice(None, "mcq.ambiguous", "the answer names several options")
    if not _DRESS.match(after) and (letter.islower() or not _REASON.match(after)):
        return Choice(None, "mcq.no_option", "the letter is part of a sentence")
    known = {option.label.upper() for option in options}
    if known and label not in known:
        return Choice(None, "mcq.unknown_letter", f"there is no option {label}")
    if joined and joined[1].upper() != label and joined[1] not in "ai":
        return Choice(None, "mcq.ambiguous", "the answer names several options")
    first = normalise(sentences(after.lstrip(" .):]},-*"))[0] if after.strip(" .):]},-*") else "")
    others = [o.label for o in options if first and normalise(o.text) == first]
    if others and label not in others:
        return Choice(None, "mcq.ambiguous", f"letter {label} with the text of option {others[0]}")
    return Choice(label, "mcq.leading_letter")


def contained_choice(text: str, options: Sequence[Option]) -> Choice:
    """The one option whose text stands in a sentence that neither negates nor supposes anything.

    Args:
        text: One sentence.
        options: The question's options.

    Returns:
        The choice; none if no option's text is there, or those of several. An option that is part of a
        longer one that is there ("slow" in "very slow") does not count.
    """
    words = f" {_bare(text)} "
    by_text = {option.label: f" {_bare(option.text)} " for option in options}
    present = {label: part for label, part in by_text.items() if len(part) > 3 and part in words}
    if any(map(_NUMERIC.fullmatch, by_text.values())):
        # A number among words is an answer only if the sentence states just that one; 10 is 10.0.
        value = read_number(text).value
        for label, part in by_text.items():
            if _NUMERIC.fullmatch(part):
                present.pop(label, None)
                if value is not None and read_number(part).value == value:
                    present[label] = part
    longest = {
        label: part
        for label, part in present.items()
        if not any(part != other and part in other for other in present.values())
    }
    if not longest:
        return Choice(None, "mcq.no_option", "no option's text is in the sentence")
    if len(longest) > 1:
        return Choice(None, "mcq.ambiguous", f"the sentence holds options {', '.join(longest)}")
    label, part = longest.popitem()
    if _NEGATION.search(words.replace(part, " ")):
        return Choice(None, "mcq.negated", "the sentence negates or supposes something")
    return Choice(label, "mcq.text_inside")


def _bare(text: str) -> str:
    """Words alone, for comparison of runs of words."""
    return " ".join(re.findall(r"[^\W_]+(?:[.'][^\W_]+)*", normalise(text)))
