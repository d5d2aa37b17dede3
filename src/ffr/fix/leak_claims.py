"""Layers of the leak gate that read claims: amounts, yes and no, orders, causes, and plain statements."""

from __future__ import annotations

import re
from typing import Final

from ffr.fix.leak_clauses import Clause
from ffr.fix.leak_remarks import only_viewing, only_warns
from ffr.fix.leak_rules import Passage
from ffr.fix.leak_target import Target
from ffr.fix.leak_text import amount, content, lexicon, pattern, stem, stems

_NUMBER = re.compile(r"^\d+(?:[.:]\d+)*$")
_ORDINAL_FORM = re.compile(r"^(?:\w+teen|\w+ty|\w+th|\d+(?:st|nd|rd|th))$")
_COMPARED: Final = frozenset(
    {"lower", "higher", "extra", "beyond", "sides", "legs", "wheels", "fingers", "toes"}
)
"""Words that are about an amount only in some phrases (`patterns.sizing`)."""
_GOLD_AMOUNT: Final = "the gold amount"
MAX_UNKNOWN: Final = 4
"""Words of one instruction that neither the question nor the usual vocabulary of instructions has."""


def says_number(passage: Passage, target: Target) -> str:
    """A number, a bound or a comparison of amounts where the answer is a number."""
    if not target.numeric:
        return ""
    reasons: list[str] = []
    for word, following in zip(passage.words, (*passage.words, "")[1:], strict=True):
        if word in target.question and not target.listed and not _NUMBER.match(word):
            continue
        reason = _number_word(word, following, passage, target)
        if reason == _GOLD_AMOUNT:
            return reason
        reasons.append(reason)
    if pattern("bound").search(passage.plain):
        return "a bound on the amount"
    return next(filter(None, reasons), "")


def _number_word(word: str, following: str, passage: Passage, target: Target) -> str:
    lists = lexicon().lists
    generic = following in lists["generic_nouns"] and stem(following) not in target.question_stems
    if word == "two" and generic:  # "the moment at which two objects meet"
        return ""
    if _NUMBER.match(word) or word in lists["numbers"]:
        told = amount(word)
        return _GOLD_AMOUNT if told is not None and told == target.amounts[0] else "a number word or digit"
    if _ORDINAL_FORM.match(word) and word.rstrip("th") in lists["numbers"]:
        return "a number word"
    if word in lists["ordinals"] and following and stem(following) in stems(content(sorted(target.question))):
        return "an ordinal of what is counted"
    if word == "both" and not generic and following not in lexicon().lists["pairs"]:
        if "two" in target.question and stem(following) not in {"com", "ar"}:
            return ""  # the question has told that there are two
        return "'both' is a number"
    if word in _COMPARED and not pattern("sizing").search(passage.plain):
        return ""
    return "an amount is compared or computed" if word in lists["number_cues"] else ""


def says_polarity(passage: Passage, target: Target) -> str:
    """Yes, no, or the question's own sentence asserted or denied."""
    if not target.polar:
        return ""
    if pattern("polar_word").search(passage.plain):
        return "a word that answers yes or no"
    for clause in passage.clauses:
        words = set(clause.words)
        if _harmless(clause, target):
            continue
        if words & lexicon().lists["wh"] or words & {"may", "might", "could", "can"}:
            continue
        text = " ".join(clause.words)
        topical = bool(stems(content(clause.words)) & target.question_stems)
        instructs = clause.words[0] in lexicon().imperatives and "that" not in words
        claims = pattern("polar_claim").search(text)
        if topical and claims and not (instructs and not pattern("polar_strong").search(text)):
            return "asserts or denies what is asked"
        if topical and clause.states and not pattern("exempt").search(text):
            return "asserts or denies what is asked"
    return ""


def says_order(passage: Passage, target: Target) -> str:
    """The order of the events that the question asks to order."""
    if not target.ordered or passage.is_marker:
        return ""
    topic = frozenset[str]().union(target.question_stems, *target.options)
    for clause in passage.clauses:
        linked = lexicon().lists["links"] & set(clause.words)
        linked = linked if target.listed else linked - target.question
        if (
            clause.states
            and linked
            and any(stem(w) in topic for w in content(clause.words) if w not in linked)
        ):
            return "states an order of events"
    return ""


def states_content(passage: Passage, target: Target) -> str:
    """A statement about the video, or an instruction full of words that only its content explains."""
    if passage.is_marker:
        return ""
    for clause in passage.clauses:
        if clause.states:
            reason = _claim(clause, target)
            if reason:
                return reason
        elif len(_unknown(clause, target, props=True)) >= MAX_UNKNOWN:
            return "describes what is in the video"
    return ""


def _claim(clause: Clause, target: Target) -> str:
    text = " ".join(clause.words)
    if clause.words[0] in lexicon().lists["existential"] and pattern("difference").search(text):
        return "compares amounts"
    if _harmless(clause, target):
        return ""
    exempt = pattern("exempt").search(text)
    if not exempt and clause.words[0] in {"he", "she", "they"}:
        return "says something of the thing asked for"
    if pattern("rule").search(text) and clause.words[0] not in {
        "it",
        "he",
        "she",
        "they",
    }:  # "a bounce needs a contact": a rule for looking
        return ""
    if target.causal and set(clause.words) & {"because", "due", "caused", "causes", "makes", "made"}:
        return "states a cause"
    timed = not (target.polar or target.ordered) and pattern("exempt_time").search(text)
    if not timed and not exempt:
        if pattern("negation").search(text):
            return "denies something about the video"
        if pattern("pronoun_subject").search(text):
            return "says something of the thing asked for"
        if not _generic(clause) and clause.words[0] not in lexicon().lists["existential"]:
            return "says something of what is asked about"
    hedged = pattern("hedge").search(text) is not None
    if _unknown(clause, target, props=hedged) and not _generic(clause):
        return "states what is in the video"
    return ""


def _harmless(clause: Clause, target: Target) -> bool:
    """How well something shows, or that there are several of a kind, where that is not what is asked."""
    topic = target.question_stems
    if not target.numeric and only_warns(clause.words, topic) and "there" not in target.question:
        return True
    if target.polar:
        return False
    placed = "where" in target.question or any(category.name == "depth" for category in target.categories)
    if not placed and pattern("occluder").search(" ".join(clause.words)):
        return True  # what covers it is not what is asked for
    if (
        pattern("legible").search(" ".join(clause.words))
        and not set(map(stem, clause.words)) & target.guarded
    ):
        new = set(_unknown(clause, target, props=True)) - lexicon().lists["viewing"]
        return len(new) <= 1  # what is in the way may have a name
    return not target.listed and only_viewing(clause.words, topic, target.guarded)


def _unknown(clause: Clause, target: Target, *, props: bool) -> list[str]:
    """Words beyond the vocabulary of instructions; with `props`, everyday things in view are usual too."""
    lex = lexicon()
    usual = lex.prop_stems if props else lex.neutral_stems
    return [
        word
        for word in content(clause.words)
        if len(word) > 1
        and stem(word) not in usual
        and stem(word) not in target.question_stems
        and word not in lex.imperatives
        and not _NUMBER.match(word)
    ]


def _generic(clause: Clause) -> bool:
    """'Reflections can distort colours', 'objects far away look smaller': true of any video."""
    first = clause.words[0]
    plural = first.endswith("s") and first in lexicon().neutral and first not in lexicon().function
    definite = set(clause.words) & {"the", "this", "that", "his", "her", "it", "he", "she", "you", "your"}
    if not definite and len(clause.words) > 3 and clause.words[1].endswith("s") and first.isalpha():
        return first not in lexicon().function | lexicon().lists["several"]  # "metal objects reflect ..."
    modal = set(clause.words) & {"can", "may", "might", "could", "often", "sometimes", "usually", "look"}
    return (
        plural
        and bool(modal or not definite)
        and len(clause.words) > 2
        and clause.words[1] not in lexicon().lists["openers"] | {"with", "from"}
    )


def says_cause(passage: Passage, target: Target) -> str:
    """'Because' and its like in the answer to a question for a cause."""
    if not target.causal or not pattern("cause").search(passage.plain):
        return ""
    return "" if pattern("not_cause").search(passage.plain) else "states a cause"
