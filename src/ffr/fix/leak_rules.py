"""Layers of the leak gate that look for the answer's own words: options, gold answer, and their field."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from ffr.fix.leak_clauses import Clause, split_clauses
from ffr.fix.leak_target import Target
from ffr.fix.leak_text import MAX_CHARS, Category, fold, lexicon, stem, stems, strip_references, tokens

_NUMBER = re.compile(r"^\d+(?:[.:]\d+)*$")
_NEUTRAL_WEIGHT: Final = 0.4
"""Of a word that instructions use anyway; a word that only the answer brings in weighs 1."""
_NAMED: Final = 0.5
_ALL_USUAL: Final = 0.67
"""Share of an option that everyday words alone must cover to name it."""


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
    plain = strip_references(
        folded, counted=target.question_stems, guarded=target.guarded, keep_times=target.keep_times
    )
    return Passage(
        field=field,
        raw=raw[:MAX_CHARS],
        folded=folded,
        plain=plain,
        words=tuple(tokens(plain)),
        clauses=split_clauses(plain, target.question_stems),
        is_marker=field.startswith("temporal"),
    )


def _mention(mark: frozenset[str], said: frozenset[str], target: Target) -> float:
    """How much of an option (or the gold answer) is said, 0..1; a telling word alone is enough."""
    if not target.listed:
        mark = mark - target.question_stems or mark
        said = said - target.question_stems
    neutral = (
        lexicon().neutral_stems | lexicon().imperatives | stems(lexicon().lists["places"]) | target.common
    )
    weights = {item: _NEUTRAL_WEIGHT if item in neutral else 1.0 for item in mark}
    hit = [
        item for item in mark if item in said or lexicon().clusters.get(item, frozenset()) & said - neutral
    ]
    total = sum(weights.values())
    if not hit or total == 0:
        return 0.0
    if any(weights[item] == 1.0 and len(item) > 1 for item in hit):
        return max(_NAMED, sum(weights[item] for item in hit) / total)
    share = sum(weights[item] for item in hit) / total
    return share if share >= _ALL_USUAL else 0.0


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
    """Stems said about the video; an instruction's own words ("check whether it moves") are left out."""
    lex = lexicon()
    single = frozenset[str]().union(*(mark for mark in (*target.options, target.gold) if len(mark) == 1))
    said: set[str] = set()
    for clause in passage.clauses:
        asking = bool(set(clause.words) & lex.lists["wh"])
        verb = stem(clause.words[0]) if clause.words[0] in lex.imperatives else ""
        telling = clause.states or passage.is_marker
        for word in clause.words:
            item = stem(word)
            usual = item in lex.neutral_stems
            if (
                usual
                and item in single
                and (asking or item == verb or (item in target.wordy and not telling))
            ):
                continue
            if word in lex.function and item not in target.guarded:
                continue
            said.add(item)
    return frozenset(said - lex.lists["light"])


def says_gold(passage: Passage, target: Target) -> str:
    """The gold answer's words, their inflections, synonyms or near spellings."""
    said = _said(passage, target)
    if target.gold and _mention(target.gold, said, target) >= _NAMED and not _all_named(said, target):
        return "says words of the gold answer"
    if _all_named(said, target):
        return ""
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


_DIRECTIONS: Final = frozenset(
    {
        "horizontal",
        "vertical",
        "height",
        "depth",
        "rel_order",
        "abs_order",
        "middle",
        "change",
        "same",
        "enter",
    }
)
"""Fields whose words are also everyday function words."""


def says_field_word(passage: Passage, target: Target) -> str:
    """A word of the field that the answer lies in: another colour, a direction, an animal."""
    if not target.categories:
        return ""
    told = any(clause.states for clause in passage.clauses)
    balanced = not told and _all_named(_said(passage, target), target)  # "compare the red and the blue cube"
    for category in target.categories:
        for clause in passage.clauses:
            for index, word in enumerate(clause.words):
                if target.allows(word) or (index == 0 and word in lexicon().imperatives):
                    continue
                if balanced and stem(word) in target.guarded:
                    continue
                if _alternative(clause, index, category, target):
                    continue
                if _is_field_word(word, category, clause, target):
                    return f"a word of the answer's field ({category.name})"
    return ""


def _alternative(clause: Clause, index: int, category: Category, target: Target) -> bool:
    """'Track whether it moves up or down' where the question leaves just these two."""
    words = clause.words
    if clause.states or not (not target.options or target.binary or target.listed):
        return False
    field = category.words | category.soft
    ahead = words[index : index + 3]
    behind = words[max(0, index - 2) : index + 1]
    return any(
        len(three) == 3 and three[1] == "or" and three[0] in field and three[2] in field
        for three in (ahead, behind)
    ) and bool(set(words[:index]) & lexicon().lists["wh"])


def _is_field_word(word: str, category: Category, clause: Clause, target: Target) -> bool:
    lex = lexicon()
    if category.name == "people" and word in {"he", "him", "his", "she", "her", "hers"}:
        known = lex.lists["male"] if word in lex.lists["male"] else lex.lists["female"]
        return not target.question & known
    if word in category.soft:
        return clause.states
    if word in category.cues:
        return clause.states or (word not in lex.neutral and word not in lex.lists["places"])
    if word not in category.words:
        return False
    if category.name in _DIRECTIONS:
        return True
    if word in lex.function or word in lex.imperatives:
        return False
    return clause.states or (word not in lex.neutral and word not in lex.lists["places"])
