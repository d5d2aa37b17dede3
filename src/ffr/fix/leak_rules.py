"""The lexical layers of the leak gate: each reads one field's text and says what it gives away, or nothing."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from ffr.fix.leak_clauses import Clause, split_clauses
from ffr.fix.leak_target import Target
from ffr.fix.leak_text import Category, content, fold, lexicon, stem, stems, strip_references, tokens

_NUMBER = re.compile(r"^\d+(?:[.:]\d+)*$")
_NEUTRAL_WEIGHT: Final = 0.4
"""Of a word that instructions use anyway; a word that only the answer brings in weighs 1."""
_NAMED: Final = 0.5
_WH: Final = frozenset({"whether", "if", "which", "what", "how", "where", "when", "who", "why"})


@dataclass(frozen=True, slots=True)
class Passage:
    """One text field of a patch, prepared once for all layers.

    Example:
        >>> make_passage("guidance", "Watch the ball.", target).field  # doctest: +SKIP
        'guidance'
    """

    field: str
    raw: str
    folded: str
    plain: str
    """Without pointers and set phrases."""
    words: tuple[str, ...]
    clauses: tuple[Clause, ...]
    is_marker: bool


def make_passage(field: str, raw: str, target: Target) -> Passage:
    """Prepare one field.

    Args:
        field: Its name in the report.
        raw: Its text.
        target: The question.

    Returns:
        The passage.
    """
    folded = fold(raw)
    plain = strip_references(folded, counted=target.question_stems, keep_times=target.keep_times)
    return Passage(
        field=field,
        raw=raw,
        folded=folded,
        plain=plain,
        words=tuple(tokens(plain)),
        clauses=split_clauses(plain),
        is_marker=field.startswith("temporal"),
    )


def _near(stems_wanted: frozenset[str]) -> frozenset[str]:
    clusters = lexicon().clusters
    return stems_wanted.union(*(clusters.get(item, frozenset()) for item in stems_wanted))


def _mention(mark: frozenset[str], said: frozenset[str], target: Target) -> float:
    """How much of an option (or the gold answer) is said, 0..1; a telling word alone is enough."""
    if not target.listed:
        mark = mark - target.question_stems or mark
        said = said - target.question_stems
    neutral = lexicon().neutral_stems | lexicon().imperatives
    weights = {item: _NEUTRAL_WEIGHT if item in neutral else 1.0 for item in mark}
    hit = [
        item for item in mark if item in said or lexicon().clusters.get(item, frozenset()) & said - neutral
    ]
    total = sum(weights.values())
    if not hit or total == 0:
        return 0.0
    if any(weights[item] == 1.0 and len(item) > 1 for item in hit):
        return max(_NAMED, sum(weights[item] for item in hit) / total)
    return sum(weights[item] for item in hit) / total


def names_option(passage: Passage, target: Target) -> str:
    """An option is named, so that it is chosen or ruled out; naming all of them alike is allowed."""
    if len(target.options) < 2:
        return ""
    said = _said(passage, target)
    scores = [_mention(mark, said, target) for mark in target.options]
    named = [index for index, score in enumerate(scores) if score >= _NAMED]
    if not named:
        return ""
    if len(named) == len(scores):
        states = any(clause.states for clause in passage.clauses)
        return "names every option in a statement" if states else ""
    return f"names {len(named)} of {len(scores)} options"


def _said(passage: Passage, target: Target) -> frozenset[str]:
    """Stems said about the video; instruction words in open questions ("which", "whether") are not."""
    single = frozenset[str]().union(*(mark for mark in (*target.options, target.gold) if len(mark) == 1))
    neutral = lexicon().neutral_stems
    said: set[str] = set()
    for clause in passage.clauses:
        open_clause = bool(set(clause.words) & _WH)
        verb = stem(clause.words[0]) if clause.words[0] in lexicon().imperatives else ""
        for word in clause.words:
            item = stem(word)
            if item in single and item in neutral and (open_clause or item == verb):
                continue
            if word in lexicon().function and item not in single:
                continue
            said.add(item)
    weak = {
        "a",
        "an",
        "the",
        "of",
        "to",
        "is",
        "it",
        "and",
        "in",
        "on",
        "at",
        "by",
        "with",
        "for",
        "no",
        "not",
        "do",
    }
    return frozenset(said - weak)


def says_gold(passage: Passage, target: Target) -> str:
    """The gold answer's words, their inflections, synonyms or near spellings."""
    said = _said(passage, target)
    if target.gold and _mention(target.gold, said, target) >= _NAMED and not _all_named(said, target):
        return "says words of the gold answer"
    rare = [item for item in target.gold if len(item) >= 4 and item not in lexicon().neutral_stems]
    known = lexicon().neutral | lexicon().function | target.question
    for word in passage.words:
        if len(word) < 5 or word in known or stem(word) in lexicon().neutral_stems or target.allows(word):
            continue
        if any(_one_edit(stem(word), item) or (len(item) >= 5 and item in word) for item in rare):
            return "a near spelling of the gold answer"
    return ""


def _all_named(said: frozenset[str], target: Target) -> bool:
    return len(target.options) > 1 and all(_mention(mark, said, target) >= _NAMED for mark in target.options)


def _one_edit(left: str, right: str) -> bool:
    """Edit distance 1 or an adjacent swap, with the same first letter, on words of five letters or more."""
    if min(len(left), len(right)) < 5 or left[0] != right[0] or abs(len(left) - len(right)) > 1:
        return False
    start = 0
    while start < min(len(left), len(right)) and left[start] == right[start]:
        start += 1
    end = 0
    while end < min(len(left), len(right)) - start and left[-1 - end] == right[-1 - end]:
        end += 1
    middle = (left[start : len(left) - end], right[start : len(right) - end])
    return max(map(len, middle)) <= 1 or (len(middle[0]) == 2 and middle[0] == middle[1][::-1])


def says_number(passage: Passage, target: Target) -> str:
    """A number, a bound or a comparison of amounts where the answer is a number."""
    if not target.numeric:
        return ""
    numbers, cues = lexicon().lists["numbers"], lexicon().lists["number_cues"]
    # "One" is a pronoun more often than a number; it counts only beside something countable.
    for index, word in enumerate(passage.words):
        if word in target.question and not target.listed and not _NUMBER.match(word):
            continue
        if _NUMBER.match(word) or word in numbers:
            return "a number word or digit"
        if re.fullmatch(r"(?:\w+teen|\w+ty|\w+th|\d+(?:st|nd|rd|th))", word) and word.rstrip("th") in numbers:
            return "a number word"
        if word == "both" and "frame" not in passage.plain[passage.plain.find("both") :][:30]:
            return "'both' is a number"
        if word in cues and not (word in {"sides", "beyond", "lower", "higher", "extra"} and index == 0):
            if word in {"lower", "higher", "extra", "beyond", "sides", "legs", "wheels", "fingers", "toes"}:
                if not _SIZING.search(passage.plain):
                    continue
            return "an amount is compared or computed"
    if _BOUND.search(passage.plain):
        return "a bound on the amount"
    return ""


_SIZING = re.compile(
    r"\b(?:number|count|total|answer|amount|estimate|guess|value|result)\b[^.;]{0,30}\b(?:lower|higher)\b|\b(?:lower|higher) (?:than|number|count|total)\b"
    r"|\b(?:an?|the|one) (?:\w+ )?extra\b|\bnumber of (?:legs|wheels|fingers|toes|sides)\b|\b(?:sides|legs|wheels|fingers|toes) (?:of|on|in) (?:a|an|one|your)\b|\bbeyond (?:one|two|three|that)\b"
)
_BOUND = re.compile(
    r"\b(?:more|less|fewer|greater|smaller|larger|bigger) than\b(?! (?:a frame|in )|once)|\bat (?:least|most)\b|\bno (?:more|less|fewer)\b"
    r"|\btoo (?:many|few|high|low|large|small)\b|\b(?:one|an?|some|any)other (?:one|object|person)\b(?! is\b)"
    r"|\boff by\b|\b(?:one|a few|some) (?:more|fewer|less|too|off|short)\b|\byou (?:have |may have |might have |probably )?(?:missed|skipped|forgot|overlooked|left out|counted)\b(?! (?:the same|frames|the (?:moment|frames|part|event|range)))"
    r"|\b(?:bigger|smaller|larger|greater|higher|lower|more|fewer|less) than (?:you|your|that|what)\b"
    r"|\b(?:only|just) (?:one|a single)\b|\bone (?:object|person|item|man|woman|is|of them|alone|remains)\b|\bthe only\b|\bis (?:just )?one\b|\bare there any at all\b"
    r"|\b(?:are|is|were|was) (?:several|many|few|plenty|lots|a lot|none|no)\b|\bbetween (?:one|two|three|four|five|six|seven|eight|nine|ten)\b"
    r"|\byou can count (?:them )?on (?:one|a) hand\b|\bevery finger\b|\ball by itself\b"
)


def says_field_word(passage: Passage, target: Target) -> str:
    """A word of the field that the answer lies in: another colour, a direction, an animal."""
    lex = lexicon()
    for category in target.categories:
        for clause in passage.clauses:
            for index, word in enumerate(clause.words):
                if target.allows(word) or (index == 0 and word in lex.imperatives):
                    continue
                if _is_field_word(word, category, clause, target):
                    return f"a word of the answer's field ({category.name})"
    return ""


_DIRECTIONS: Final = frozenset(
    {"horizontal", "vertical", "depth", "rel_order", "abs_order", "middle", "change", "same", "enter"}
)
_GENDER: Final = {
    "masculine": frozenset({"he", "him", "his"}),
    "feminine": frozenset({"she", "her", "hers"}),
}


def _is_field_word(word: str, category: Category, clause: Clause, target: Target) -> bool:
    if category.name == "people" and word in _GENDER["masculine"] | _GENDER["feminine"]:
        return _reveals_gender(word, target)
    if word in category.soft:
        return clause.states
    if word in category.cues:
        return word not in lexicon().neutral or clause.states
    if word not in category.words:
        return False
    if category.name in _DIRECTIONS:
        return True
    return word not in lexicon().function and word not in lexicon().imperatives


def _reveals_gender(word: str, target: Target) -> bool:
    male = {"man", "boy", "he", "his", "him", "father", "son", "brother", "husband", "guy", "men", "boys"}
    female = {"woman", "girl", "she", "her", "mother", "daughter", "sister", "wife", "lady", "women", "girls"}
    known = male if word in _GENDER["masculine"] else female
    return not target.question & known


def says_polarity(passage: Passage, target: Target) -> str:
    """Yes, no, or the question's own sentence asserted or denied."""
    if not target.polar:
        return ""
    if re.search(
        r"\b(?:yes|yeah|nope|indeed|affirmative|negative|certainly|definitely|of course|in fact)\b",
        passage.plain,
    ):
        return "a word that answers yes or no"
    if re.search(
        r"(?:^|[.;:!?]\s*)no\b(?=\s*(?:[,.;:!]|$|it|he|she|they|the))|\b(?:say|is|answer) no\b", passage.plain
    ):
        return "a word that answers yes or no"
    if re.search(r"\b(?:is|are|was|were)? ?(?:true|false)(?:ly)?\b", passage.plain):
        return "a word that answers yes or no"
    for clause in passage.clauses:
        words = set(clause.words)
        if words & _WH or any(w in {"may", "might", "could", "can"} for w in clause.words):
            continue
        if (
            words
            & {
                "never",
                "fails",
                "fail",
                "failed",
                "manages",
                "succeeds",
                "actually",
                "really",
                "remains",
                "stays",
                "without",
                "doesn't",
                "didn't",
                "isn't",
                "wasn't",
                "aren't",
                "does",
                "did",
            }
            and (stems(content(clause.words)) & target.question_stems)
            and not (
                clause.words[0] in lexicon().imperatives
                and "that" not in words
                and not words & {"never", "gap", "remains"}
            )
        ):
            return "asserts or denies what is asked"
        if clause.states and len(stems(content(clause.words)) & target.question_stems) >= 2:
            return "asserts or denies what is asked"
    if re.search(
        r"\b(?:gap|distance|space) (?:that )?(?:remains|stays|is left)\b|\bremaining (?:gap|distance|space)\b",
        passage.plain,
    ):
        return "asserts or denies what is asked"
    return ""


def says_order(passage: Passage, target: Target) -> str:
    """The order of the events that the question asks to order."""
    if not target.ordered:
        return ""
    for clause in passage.clauses:
        words = list(clause.words)
        known = [
            word
            for word in content(words)
            if stem(word) in target.question_stems or any(stem(word) in m for m in target.options)
        ]
        linked = {
            "before",
            "after",
            "then",
            "followed",
            "precedes",
            "follows",
            "preceded",
            "preceding",
            "first",
            "earlier",
            "later",
            "prior",
            "once",
            "until",
            "next",
            "last",
        } & set(words)
        if clause.states and linked and len(set(known) - linked) >= 1:
            return "states an order of events"
    return ""


def states_content(passage: Passage, target: Target) -> str:
    """A statement about the video in words that neither the question nor an instruction uses."""
    if passage.is_marker:
        return ""
    lex = lexicon()
    for clause in passage.clauses:
        if not clause.states:
            continue
        if target.causal and set(clause.words) & {"because", "due", "caused", "causes", "makes", "made"}:
            return "states a cause"
        for word in content(clause.words):
            if word in lex.neutral or stem(word) in lex.neutral_stems or word in lex.imperatives:
                continue
            if word in target.question or stem(word) in target.question_stems or _NUMBER.match(word):
                continue
            return "states what is in the video"
    return ""


def cause_said(passage: Passage, target: Target) -> str:
    """'Because' and its like in the answer to a question for a cause."""
    if target.causal and re.search(
        r"\b(?:because|due to|caused by|thanks to|as a result of|owing to)\b", passage.plain
    ):
        if not re.search(r"\b(?:not|don't|never)\b[^.;]{0,40}\bbecause\b", passage.plain):
            return "states a cause"
    return ""


LEXICAL: Final = (
    ("option", names_option),
    ("gold", says_gold),
    ("number", says_number),
    ("field", says_field_word),
    ("polarity", says_polarity),
    ("order", says_order),
    ("statement", states_content),
    ("cause", cause_said),
)
"""Layers that read the text of one field, in the order of the report."""


def run_layer(index: int, passages: Sequence[Passage], target: Target) -> tuple[str, str]:
    """First hit of one lexical layer over all fields.

    Args:
        index: Position in `LEXICAL`.
        passages: The patch's fields.
        target: The question.

    Returns:
        (field, reason), both empty when nothing leaks.
    """
    for passage in passages:
        reason = LEXICAL[index][1](passage, target)
        if reason:
            return passage.field, reason
    return "", ""
