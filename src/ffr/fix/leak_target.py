"""What a patch must not say: the option and gold words of one question, and the fields they lie in."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

from ffr.fix.leak_text import Category, amount, content, fold, lexicon, stem, stems, tokens
from ffr.types import ProblemType, Sample

_POLAR_START = re.compile(r"^(?:is|are|was|were|does|do|did|has|have|had|can|could|will|would)\b")
_COUNTS = re.compile(
    r"\bhow (?:many|much|often|long|old|tall|heavy|far|fast|big)\b|\bnumber of\b|\bwhat number\b|\bcount\b"
)
_TIME_LIKE = re.compile(r"\d+:\d{2}|\d\s*(?:s|sec|seconds?)\b|\bframes?\s*\d|\bseconds?\b")
_NUMBER = re.compile(r"^\d+(?:[.:]\d+)*$")
_PERMUTATION = re.compile(r"^\W*\w(?:\W+\w)+\W*$")
_ORDER = re.compile(
    r"\b(?:first|last|before|after|order|sequence|earlier|later|then|next|second|third|final)\b"
)


@dataclass(frozen=True, slots=True)
class Target:
    """One question from the gate's point of view.

    Example:
        >>> Target(**fields).numeric  # doctest: +SKIP
        False
    """

    question: frozenset[str]
    """Words of the question."""
    question_stems: frozenset[str]
    labels: frozenset[str]
    """Lower-case option letters; empty for open questions."""
    gold_label: str
    guarded: frozenset[str]
    """Stems of all options and the gold answer."""
    gold: frozenset[str]
    """Stems that carry the gold answer."""
    options: tuple[frozenset[str], ...]
    """Per option, the stems that set it apart from the others."""
    option_words: frozenset[str]
    """All content words of options and gold, unstemmed, two characters or more."""
    answer_texts: tuple[str, ...]
    """Option texts (or the gold answer), folded, letters only."""
    categories: tuple[Category, ...]
    """Fields of words that the answer lies in."""
    numeric: bool
    amounts: tuple[float | None, frozenset[float]]
    """The gold amount and those of the other options, where the answer is a number."""
    polar: bool
    binary: bool
    listed: bool
    """The question itself lists the choices, so its words single one out."""
    wordy: frozenset[str]
    """The one telling stem of options that have several words: it tells only where something is stated."""
    common: frozenset[str]
    """Stems that half of the options share: the topic, not the answer."""
    ordered: bool
    """The question asks for an order of events."""
    causal: bool
    keep_times: bool

    def allows(self, word: str) -> bool:
        """True if the question itself uses the word and does not offer it as a choice."""
        if word not in self.question and stem(word) not in self.question_stems:
            return False
        if not self.listed:
            return True
        return not any(stem(word) in option for option in self.options)


@lru_cache(maxsize=256)
def make_target(sample_key: tuple[str, str, ProblemType, tuple[tuple[str, str], ...]]) -> Target:
    """Analyse a question once; patches of its whole group share the result.

    Args:
        sample_key: Question, gold answer, problem type and (label, text) of each option.

    Returns:
        The target.
    """
    question_text, answer, problem_type, options = sample_key
    question = fold(question_text)
    question_words = tokens(question)
    texts = [fold(text) for _, text in options]
    given = answer.strip(" ().").casefold()
    gold_text = next((fold(text) for label, text in options if label.casefold() == given), fold(answer))
    marks = _signatures(texts)
    gold_marks = _gold_signature(gold_text, marks, texts, stems(question_words))
    answers = texts or [gold_text]
    words = frozenset(word for text in answers for word in tokens(text))
    numeric = _is_numeric(problem_type, question, answers)
    question_stems = stems(question_words)
    polar = bool(words & {"yes", "no", "true", "false"}) and len(answers) <= 4 and not numeric
    return Target(
        question=frozenset(question_words),
        question_stems=question_stems,
        labels=frozenset(label.casefold() for label, _ in options),
        gold_label=given if options else "",
        guarded=frozenset[str]().union(*marks, gold_marks),
        gold=gold_marks,
        options=tuple(marks),
        option_words=frozenset(word for word in content(sorted(words)) if len(word) > 1),
        answer_texts=tuple(re.sub(r"[^a-z0-9]", "", text) for text in answers),
        categories=_categories_in_play(question, answers, gold_text, marks, gold_marks),
        numeric=numeric,
        amounts=_amounts(gold_text, texts) if numeric else (None, frozenset()),
        polar=polar or (bool(_POLAR_START.match(question)) and " or " not in question and not options),
        binary=len(options) == 2,
        listed=_lists_choices(question_words, marks),
        wordy=frozenset(
            item
            for mark, text in zip(marks, texts, strict=True)
            if len(mark) == 1 and len(tokens(text)) > 2
            for item in mark
        ),
        common=frozenset(
            item for mark in marks for item in mark if 2 * sum(item in m for m in marks) >= max(4, len(marks))
        ),
        ordered=bool(_ORDER.search(question)) or bool(words & {"before", "after", "first", "last", "then"}),
        causal=bool(re.search(r"\bwhy\b|\bcause|\breason|\bhow come\b|\bmakes?\b", question)),
        keep_times=any(_TIME_LIKE.search(text) for text in answers)
        or bool(re.search(r"\b(?:what|which) frame", question)),
    )


def target_of(sample: Sample) -> Target:
    """The target of a sample.

    Args:
        sample: A question with its gold answer and options.

    Returns:
        Its analysis, cached.
    """
    options = tuple((option.label, option.text) for option in sample.options)
    return make_target((sample.question, sample.answer, sample.problem_type, options))


def _amounts(gold: str, texts: list[str]) -> tuple[float | None, frozenset[float]]:
    def first(text: str) -> float | None:
        return next(
            (found for found in map(amount, re.findall(r"[a-z]+|\d+(?:\.\d+)?", text)) if found is not None),
            None,
        )

    right = first(gold)
    others = {found for text in texts if text != gold and (found := first(text)) is not None}
    return right, frozenset(others - {right} if right is not None else others)


def _signatures(texts: list[str]) -> list[frozenset[str]]:
    """Stems of each option that not all options share; whole words where nothing else is left."""
    full = [stems(tokens(text)) for text in texts]
    shared: frozenset[str] = full[0].intersection(*full[1:]) if len(full) > 1 else frozenset[str]()
    marks: list[frozenset[str]] = []
    for text, everything in zip(texts, full, strict=True):
        meaningful = stems(signature_words(tokens(text))) - shared
        marks.append(meaningful or everything - shared)
    return marks


def _gold_signature(
    gold: str, marks: list[frozenset[str]], texts: list[str], question_stems: frozenset[str]
) -> frozenset[str]:
    if texts:
        found = [mark for mark, text in zip(marks, texts, strict=True) if text == gold]
        return found[0] if found else frozenset[str]()
    words = tokens(gold)
    return (stems(signature_words(words)) - question_stems) or stems(content(words)) or stems(words)


def signature_words(words: list[str]) -> list[str]:
    """Content words, and the prepositions that tell one place from another."""
    function = lexicon().function
    return [word for word in words if word not in function or word in lexicon().lists["where"]]


def _is_numeric(problem_type: ProblemType, question: str, answers: list[str]) -> bool:
    if problem_type in {ProblemType.NUMERICAL, ProblemType.REGRESSION}:
        return True
    if _COUNTS.search(question):
        return True
    if len(answers) > 1 and all(_PERMUTATION.match(text) for text in answers):
        return False  # "2-3-1": an order of steps
    numbers = lexicon().lists["numbers"] - {
        "few",
        "several",
        "half",
        "double",
        "pair",
        "couple",
        "nil",
        "none",
        "single",
    }
    carrying = [any(_NUMBER.match(word) or word in numbers for word in tokens(text)) for text in answers]
    return sum(carrying) * 2 > len(answers)


def _categories_in_play(
    question: str, answers: list[str], gold: str, marks: list[frozenset[str]], gold_marks: frozenset[str]
) -> tuple[Category, ...]:
    """Fields that the question asks for, or that set options (or the gold answer) apart."""
    distinguishing = frozenset[str]().union(*marks, gold_marks)
    chosen: list[Category] = []
    for category in lexicon().categories:
        asked = bool(category.asks and category.asks.search(question))
        if asked and not marks:
            asked = category.name in _ASKABLE or bool(_members(category, tokens(gold), distinguishing))
        members = [_members(category, tokens(text), distinguishing) for text in answers]
        if (asked and (not marks or any(members))) or _enough(members):
            chosen.append(category)
    names = {category.name for category in chosen}
    if names & {"horizontal", "height", "depth"} and "middle" not in names:
        chosen += [
            c
            for c in lexicon().categories
            if c.name == "middle" and any(_members(c, tokens(t), distinguishing) for t in answers)
        ]
    return tuple(chosen)


_ASKABLE = frozenset(
    {"colour", "horizontal", "vertical", "depth", "animal", "shape", "material", "size", "weather", "emotion"}
)
"""Fields that a question names; the others are only hinted at by it."""


def _members(category: Category, words: list[str], distinguishing: frozenset[str]) -> frozenset[str]:
    known = (
        category.words | category.soft
        if category.name in {"vertical", "height", "rel_order", "abs_order"}
        else category.words
    )
    return frozenset(word for word in words if word in known and stem(word) in distinguishing)


def _enough(members: list[frozenset[str]]) -> bool:
    """One member in one long option does not make a field; different ones in half of the options do."""
    hits = [found for found in members if found]
    several = len(frozenset[str]().union(*members)) > 1 or len(members) <= 2
    return bool(hits) and several and len(hits) * 2 >= len(members)


def _lists_choices(question_words: list[str], marks: list[frozenset[str]]) -> bool:
    present = stems(question_words)
    return len(marks) > 1 and sum(bool(mark) and mark <= present for mark in marks) >= 2
