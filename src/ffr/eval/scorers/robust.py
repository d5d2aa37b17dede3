"""The profile of our own: an output read as a person would read it, by rules alone.

The most explicit passage decides: a complete answer tag, an open one, a box, the last announcement ("the
answer is"), then a line or a reply that is nothing but an answer. Thoughts are not read unless nothing
follows them. The article "a" is never a letter, nothing is drawn at random, hedging ("B or C") and a
truncated thought are no answer: `none`, wrong and counted.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Final

from ffr.eval.base import Score, Target
from ffr.eval.scorers.final import Parts, take_apart
from ffr.eval.scorers.robust_choice import choose
from ffr.eval.scorers.robust_number import number_in
from ffr.eval.scorers.shared import NEEDS_JUDGE, found, nothing
from ffr.eval.scorers.vsi import official_mra, unit_factor
from ffr.find.verify.number import read_number, same_number
from ffr.find.verify.statement import sentences
from ffr.find.verify.text import fold_words
from ffr.types import Option

_LETTERS: Final = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_YES_NO: Final = re.compile(
    r"^[\W_]*(?:it\s+is\s+|is\s+|that\s+is\s+)?(yes|no|true|false)\b(?!\s*(?:/|or\b)\s*(?:yes|no|true|false)\b)"
    r"(?=[\s]*(?:[^\w\s]|$|it\b|he\b|she\b|they\b|there\b|this\b|that\b|the\b|i\b|we\b|because\b|as\b|since\b))",
    re.IGNORECASE,
)
_QUESTION_FIELDS: Final = ("question", "problem", "Question")
_OPEN_WORDS: Final = 30
_EXTRA_WORDS: Final = 3
_HEDGES: Final = re.compile(r"\b(?:or|not|nor|and|no|without)\b|[/?]|n't\b")
_ARTICLES: Final = re.compile(r"\b(?:a|an|the)\b ?")


def score_robust(benchmark: str, target: Target, record: Mapping[str, Any], output: str) -> Score:
    """Score what an output settles on.

    Args:
        benchmark: Name; numbers of VSI-Bench get mean relative accuracy.
        target: Kind of answer, gold, options.
        record: Read for the question: its unit of length, its option sentences.
        output: The model's whole text.

    Returns:
        The score; `none` iff nothing was extracted.
    """
    return _KINDS[target.kind](benchmark, target, record, take_apart(output))


def _choice(benchmark: str, target: Target, record: Mapping[str, Any], parts: Parts) -> Score:
    label, rule = choose(parts, target.options)
    return found(float(label == target.answer), label, rule) if label else nothing()


def _match(benchmark: str, target: Target, record: Mapping[str, Any], parts: Parts) -> Score:
    """Option sentences: read as options A, B, ... after their names are replaced by these letters."""
    letters = {option.label: _LETTERS[at] for at, option in enumerate(target.options)}
    options = tuple(Option(letters[o.label], o.text) for o in target.options)
    label, rule = choose(_with_letters(parts, letters), options)
    if not label:
        return nothing()
    name = next(name for name, letter in letters.items() if letter == label)
    text = next(o.text for o in target.options if o.label == name)
    right = target.answer.strip() in (name, text, f"{name}: {text}")
    return found(float(right), name, rule)


def _with_letters(parts: Parts, letters: Mapping[str, str]) -> Parts:
    """The parts with "Option 2" written as "Option B", and a bare 2 where it stands alone as "B"."""
    if not letters:
        return parts
    short = {name.split()[-1].upper(): letter for name, letter in letters.items()}
    numbers = "|".join(map(re.escape, short))
    named = re.compile(rf"\b(?:option|sentence|caption|description)\s*({numbers})\b", re.IGNORECASE)
    alone = re.compile(rf"^([\W_]*)({numbers})([\W_]*)$", re.IGNORECASE)

    def rename(text: str) -> str:
        text = named.sub(lambda m: short[m[1].upper()], text)
        return "\n".join(
            alone.sub(lambda m: f"{m[1]}{short[m[2].upper()]}{m[3]}", line) for line in text.split("\n")
        )

    return parts.map(rename)


def _number(benchmark: str, target: Target, record: Mapping[str, Any], parts: Parts) -> Score:
    number, passage, rule = number_in(parts)
    if number is None or number.value is None:
        return nothing()
    gold = read_number(target.answer)
    if benchmark == "vsi_bench" or target.task == "regression":
        question = next((str(record[name]) for name in _QUESTION_FIELDS if record.get(name)), "")
        value = number.value * unit_factor(question, passage)
        score = 0.0 if gold.value is None else official_mra(value, gold.value)
        return found(score, f"{value:.10g}", rule)
    return found(float(same_number(gold, number)), f"{number.value:.10g}", rule)


def _yes_no(benchmark: str, target: Target, record: Mapping[str, Any], parts: Parts) -> Score:
    places = [*parts.explicit, *(p for p in parts.announced if p.closing or not parts.unfinished)]
    texts = [(passage.text, passage.rule) for passage in places]
    if not parts.unfinished:
        said = sentences(parts.body) or [""]
        texts += [(parts.body, "whole"), (parts.body.split("\n")[-1], "line"), (said[-1], "conclusion")]
    texts += [(passage.text, passage.rule) for passage in parts.spare]
    for text, rule in texts:
        match = _YES_NO.match(text)
        if match:
            said = {"true": "yes", "false": "no"}.get(match[1].lower(), match[1].lower())
            return found(float(said == target.answer), said, f"{rule}.yes_no")
        if rule == "answer_tag":
            break
    return nothing()


def _open(benchmark: str, target: Target, record: Mapping[str, Any], parts: Parts) -> Score:
    text, rule = _short_answer(parts)
    if not text:
        return nothing(NEEDS_JUDGE if parts.body and not parts.unfinished else "")
    for gold in (target.answer, *target.accepted):
        how = _equal(gold, text)
        if how:
            return found(1.0, text, f"{rule}.{how}")
    return found(0.0, text, f"{rule}.other", NEEDS_JUDGE)


def _short_answer(parts: Parts) -> tuple[str, str]:
    """The free words an output answers with, and where they stand; both empty if there are none."""
    for passage in parts.explicit:
        return passage.text, passage.rule
    for passage in parts.announced:
        if not parts.unfinished or passage.closing:
            return re.split(r"(?<=[a-z)])[.;]\s", passage.text)[0], passage.rule
    if not parts.unfinished:
        lines = parts.body.split("\n")
        for line, rule in ((parts.body, "whole"), (lines[-1], "line"), (lines[0], "line")):
            if "\n" not in line and 0 < len(line.split()) <= _OPEN_WORDS:
                return line, rule
    return next(((p.text, p.rule) for p in parts.spare), ("", ""))


def _equal(gold: str, answer: str) -> str:
    """How an open answer equals a gold one; empty if it does not."""
    want, got = (_ARTICLES.sub("", fold_words(text)).strip() for text in (gold, answer))
    if not want or not got:
        return ""
    if want == got:
        return "equal"
    wanted = read_number(gold)
    if wanted.value is not None and re.fullmatch(r"\W*[\d.,]+\W*", gold):
        return "number" if same_number(wanted, read_number(answer)) else ""
    extra = len(got.split()) - len(want.split())
    inside = f" {want} " in f" {got} " and len(want) > 2
    return "holds_gold" if inside and extra <= _EXTRA_WORDS and not _HEDGES.search(got) else ""


def _caption(benchmark: str, target: Target, record: Mapping[str, Any], parts: Parts) -> Score:
    """A caption is not right or wrong by itself: the authors' judge answers a question from it."""
    text = next((passage.text for passage in parts.explicit), "" if parts.unfinished else parts.body)
    return found(0.0, text, "caption", NEEDS_JUDGE) if text else nothing()


_KINDS: Final[Mapping[str, Callable[[str, Target, Mapping[str, Any], Parts], Score]]] = {
    "choice": _choice,
    "match": _match,
    "number": _number,
    "yes_no": _yes_no,
    "open": _open,
    "caption": _caption,
}
