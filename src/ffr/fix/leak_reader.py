"""The reader: what the rules cannot place, weighed by how people word leaks and hints.

Rules know the answer's words; they do not know whether "a waiter blocks the view" or "it is heavier than it
looks" helps to answer. What tells the two apart is mostly the *wording*: who states what of the thing that
is asked for. So the reader takes the subject matter out of a patch (a word of the gold answer becomes
`GOLD`, of another option `OPTION`, of the question `ASKED`, a rare word `THING` with its ending) and weighs
what is left, together with the rules that were hit, by a logistic model. One sentence is enough to give an
answer away, however much good advice stands around it, so the model adds two things up: the signs of the
patch as a whole, and those of its *loudest* sentence or marker (a smooth maximum). Its weights are data
(`leak_reader.json`), fitted by `scripts/train_leak_reader.py` to the labelled patches of several authors;
how it does on the patches of an author it has not seen, and what it cannot see (an answer that is narrated in
plain words of the scene), is in docs/results/leaks.md. Deterministic, no model server, no torch.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from itertools import combinations
from typing import Any, Final

from ffr.fix.leak_clauses import Clause
from ffr.fix.leak_kin import kin_signs
from ffr.fix.leak_rules import Passage
from ffr.fix.leak_target import Target
from ffr.fix.leak_text import amount, lexicon, stem

MAX_LENGTH: Final = 3
"""Longest run of words that is one sign."""
MAX_PARTS: Final = 40
"""Sentences of a patch that are looked at one by one; the rest counts as one."""
MAX_AMOUNTS: Final = 8
"""Amounts of a text that are added up."""
_SENTENCE: Final = re.compile(r"(?<=[.;!?])\s+|\n|(?<=,)\s+(?=(?:so|but|because|while|as|and then|should) )")
_QUOTED: Final = re.compile(r"'[^']*'")
_ENDINGS: Final = ("ing", "ed", "ly", "less", "ness", "est", "er", "s")
_KINDS: Final = ("numeric", "polar", "ordered", "causal", "listed", "binary")
_NUMBER = re.compile(r"^\d")
_BOTH: Final = "temporal_markers+guidance"
_OWN_CLASS: Final = frozenset({"EQUAL", "OTHER", "GOLD", "OPTION", "NUMBER", "AMOUNT"})
_UNREADABLE: Final = ("rules:", "clauses:", "order:")
"""Signs about the patch as a whole that are no reason."""
_NEGATIONS: Final = frozenset("not no never none nobody nothing neither nor without".split())
_CLASSES: Final = (
    ("VIEW", ("viewing",)),
    ("FILM", ("film",)),
    ("PERSON", ("persons", "male", "female")),
    ("PLACE", ("place_prepositions", "where")),
    ("LINK", ("links",)),
    ("ARTICLE", ("articles", "openers")),
)
"""Classes of words and the lists of the lexicon that make them up, in order of precedence."""


Hit = tuple[str, str]
"""A rule layer and its reason."""


@dataclass(frozen=True, slots=True)
class Part:
    """One sentence of the guidance, or one marker, with the layers that it hits by itself.

    Example:
        >>> Part(passage, (("number", "a number word or digit"),)).hits  # doctest: +SKIP
        (('number', 'a number word or digit'),)
    """

    passage: Passage
    hits: tuple[Hit, ...]


@dataclass(frozen=True, slots=True)
class Signs:
    """What the reader sees of a patch.

    Example:
        >>> Signs(frozenset({"rule:gold"}), (frozenset({"S:clause"}),)).whole
        frozenset({'rule:gold'})
    """

    whole: frozenset[str]
    """Of the patch as a whole."""
    parts: tuple[frozenset[str], ...]
    """Of each sentence and marker."""


@dataclass(frozen=True, slots=True)
class Reader:
    """A fitted reader.

    Example:
        >>> model = Reader(0.0, 0.5, {"rule:gold": 1.0}, {"S:clause": 2.0}, frozenset())
        >>> model.score(Signs(frozenset({"rule:gold"}), (frozenset({"S:clause"}),)))
        3.0
    """

    bias: float
    threshold: float
    """A patch whose score is above it leaks."""
    weights: Mapping[str, float]
    """By sign of the whole; unknown signs weigh nothing."""
    part_weights: Mapping[str, float]
    """By sign of a sentence or marker."""
    usual: frozenset[str]
    """Words that stay themselves: frequent in patches on different questions."""

    def score(self, signs: Signs) -> float:
        """Log-odds that a patch with these signs leaks, as fitted on a balanced set.

        Bias + the weights of the whole + log of the sum over parts of exp(the weights of the part).
        """
        loud = [_sum(self.part_weights, part) for part in signs.parts]
        top = max(loud, default=0.0)
        loudest = top + math.log(sum(math.exp(one - top) for one in loud)) if loud else 0.0
        return self.bias + _sum(self.weights, signs.whole) + loudest

    def loudest(self, signs: Signs) -> int:
        """Which part speaks most for a leak; -1 without parts."""
        loud = [_sum(self.part_weights, part) for part in signs.parts]
        return loud.index(max(loud)) if loud else -1

    def strongest(self, signs: Signs, num: int = 3) -> list[str]:
        """The signs that speak most for a leak and that a person can read, strongest first."""
        weights = {sign: self.weights.get(sign, 0.0) for sign in signs.whole}
        if signs.parts:
            for sign in signs.parts[self.loudest(signs)]:
                weights[sign] = weights.get(sign, 0.0) + self.part_weights.get(sign, 0.0)
        known = [(w, sign) for sign, w in weights.items() if not sign.startswith(_UNREADABLE)]
        return [sign for weight, sign in sorted(known, reverse=True)[:num] if weight > 0]


@lru_cache(maxsize=1)
def reader() -> Reader:
    """The shipped reader, read once."""
    raw: dict[str, Any] = json.loads(
        resources.files("ffr.fix").joinpath("leak_reader.json").read_text("ascii")
    )
    usual = frozenset(raw["usual"].split())
    return Reader(raw["bias"], raw["threshold"], raw["weights"], raw["part_weights"], usual)


def split_sentences(text: str) -> list[str]:
    """Sentences of a text, and what follows a comma and a conjunction; at most `MAX_PARTS`.

    Example:
        >>> split_sentences("Watch the hand. It is empty, so look again; then wait.")
        ['Watch the hand.', 'It is empty,', 'so look again;', 'then wait.']
    """
    found = [part.strip() for part in _SENTENCE.split(text) if part and part.strip()]
    return [*found[: MAX_PARTS - 1], " ".join(found[MAX_PARTS - 1 :])] if len(found) > MAX_PARTS else found


def signs_of(
    passages: Sequence[Passage],
    parts: Sequence[Part],
    target: Target,
    hits: Iterable[Hit],
    usual: frozenset[str],
) -> Signs:
    """What the reader sees of a patch.

    Args:
        passages: The patch's text fields.
        parts: Its sentences and markers.
        target: The question.
        hits: The rule layers that the patch hits, and why.
        usual: Words that stay themselves.

    Returns:
        For the whole and for each part: rule hits; runs of one to three words of each clause without their
        subject matter, as roles and as word classes, marked `S` (states something) or `I` (instructs, asks,
        points); how many options are named.
    """
    each = tuple(_signs([part.passage], target, part.hits, usual) for part in parts)
    return Signs(_signs(passages, target, hits, usual), each)


def _signs(
    passages: Sequence[Passage], target: Target, hits: Iterable[Hit], usual: frozenset[str]
) -> frozenset[str]:
    found = dict(hits)
    rules = sorted(found)
    kinds = [name for name in _KINDS if getattr(target, name)] + ["choice" if target.options else "open"]
    signs = {f"rule:{name}" for name in rules} | {f"rules:{min(3, len(rules))}"}
    # Without what it quotes: "names 1 of 4 options" and "names every option" say opposite things.
    signs |= {f"why:{name}: {_QUOTED.sub('...', reason)}" for name, reason in found.items()}
    signs |= {f"{kind}&rule:{name}" for kind in kinds for name in rules}
    for passage in passages:
        if passage.field == _BOTH:
            continue
        for clause in passage.clauses:
            signs |= _clause_signs(clause, passage.is_marker, target, usual)
        if not passage.is_marker:
            signs |= _shape(passage, target)
    return frozenset(signs | _sums(passages, target))


def _sums(passages: Sequence[Passage], target: Target) -> set[str]:
    """Whether amounts that are told make the gold amount: "two before the cut and three after it"."""
    gold = target.amounts[0] if target.numeric else None
    clauses = (clause for one in passages if one.field != _BOTH for clause in one.clauses)
    words = (word for clause in clauses for word in clause.words)
    told = [value for word in words if (value := amount(word)) is not None][:MAX_AMOUNTS]
    if gold is None or len(told) < 2:
        return set()
    pairs = list(combinations(told, 2))
    signs = {"sum:all"} if sum(told) == gold else set[str]()
    signs |= {"sum:pair"} if any(a + b == gold for a, b in pairs) else set()
    signs |= {"sum:product"} if any(a * b == gold for a, b in pairs) else set()
    return signs | ({"sum:difference"} if any(abs(a - b) == gold for a, b in pairs) else set())


def _sum(weights: Mapping[str, float], signs: Iterable[str]) -> float:
    return sum(weights.get(sign, 0.0) for sign in sorted(signs))


def tells_nothing(passages: Sequence[Passage], target: Target) -> bool:
    """True if every word is of the question or of any instruction: "look at these frames again with care"."""
    known = lexicon().neutral_stems | target.question_stems
    return all(
        word in lexicon().function or word in lexicon().imperatives or stem(word) in known
        for passage in passages
        for word in passage.words
    )


def _clause_signs(clause: Clause, is_marker: bool, target: Target, usual: frozenset[str]) -> set[str]:
    kind = ("marker" if is_marker else "") + ("S" if clause.states else "I")
    roles = [role(word, target, usual) for word in clause.words]
    classes = [word_class(word, name, target) for word, name in zip(clause.words, roles, strict=True)]
    signs = {f"{kind}:clause"}
    for length, words in _runs(["^", *roles, "$"]):
        signs.add(f"{kind}:{words}")
        if length < MAX_LENGTH:
            signs.add(words)
    signs |= {f"class {kind}:{words}" for _, words in _runs(["^", *classes, "$"])}
    signs |= {f"kin {kind}:{how}" for how in kin_signs(clause.words, target)}
    unknown = sum(name.startswith("THING") for name in roles)
    signs.add(f"{kind}:things={min(unknown, 5)}")
    return signs


def _runs(words: Sequence[str]) -> Iterable[tuple[int, str]]:
    for length in range(1, MAX_LENGTH + 1):
        for start in range(len(words) - length + 1):
            yield length, " ".join(words[start : start + length])


def _shape(passage: Passage, target: Target) -> set[str]:
    """How many options the guidance names, the right one among them or not, and how it is built."""
    told = "S" if any(clause.states for clause in passage.clauses) else "I"
    order = "".join("S" if clause.states else "I" for clause in passage.clauses)
    signs = {f"order:{order[:6]}", f"clauses:{min(len(order), 8)}"}
    if target.options:
        said = {stem(word) for word in passage.words}
        named = sum(bool(mark & said) for mark in target.options)
        amount = "all" if named == len(target.options) else str(min(named, 2))
        signs.add(f"named:{amount}:{'gold' if target.gold & said else 'other'}:{told}")
    return signs


def role(word: str, target: Target, usual: frozenset[str]) -> str:
    """A word without its subject matter.

    Args:
        word: A folded word.
        target: The question.
        usual: Words that stay themselves.

    Returns:
        `EQUAL` (the gold amount), `OTHER` (another option's), `GOLD`, `OPTION`, `NUMBER`, `AMOUNT` (a number
        in words), a usual word (with `/ASKED` if the question has it), or `ASKED` or `THING` with the
        word's ending.
    """
    lex = lexicon()
    item = stem(word)
    told = amount(word) if target.numeric else None
    if told is not None and told == target.amounts[0]:
        return "EQUAL"
    if told is not None and told in target.amounts[1]:
        return "OTHER"
    if word not in lex.function:
        if item in target.gold:
            return "GOLD"
        if item in target.guarded:
            return "OPTION"
    if _NUMBER.match(word):
        return "NUMBER"
    if word in lex.lists["numbers"]:
        return "AMOUNT"
    asked = item in target.question_stems
    if word in usual or word in lex.function:
        return f"{word}/ASKED" if asked and word not in lex.function else word
    return ("ASKED" if asked else "THING") + _ending(word)


def _ending(word: str) -> str:
    ending = next((end for end in _ENDINGS if word.endswith(end)), "")
    return f"-{ending}" if ending else ""


def word_class(word: str, name: str, target: Target) -> str:
    """The class of a word: its role where that is about the answer or a number, else by word list."""
    if name in _OWN_CLASS:
        return name
    lex = lexicon()
    if word in _NEGATIONS or word.endswith("n't"):
        return "NOT"
    for listed in ("wh", "be", "aux"):
        if word in lex.lists[listed]:
            return listed.upper()
    item = stem(word)
    if item in target.question_stems and word not in lex.function:
        return "ASKED"
    for listed, group in _CLASSES:
        if any(word in lex.lists[one] for one in group):
            return listed
    if word in lex.imperatives:
        return "VERB"
    if word in lex.function:
        return "FUNCTION"
    return "NEUTRAL" if item in lex.neutral_stems else f"THING{_ending(word)}"
