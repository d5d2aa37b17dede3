"""Words that give an answer away in other words: synonyms, kinds and telltales.

`leak_kin.txt` is a thesaurus written for this gate, a line for each word that answers questions about videos:

    harmonica: mouthorgan | instrument | mouth, blow, reed, lips, blues

The words after the colon mean the same, name the kind, or betray the thing (its parts, its traces, what is
done with it). From it comes, for one question, which words speak for the gold answer and which for other
options; words that speak for several options, or that the question uses itself, speak for none.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from typing import Final

from ffr.fix.leak_target import Target
from ffr.fix.leak_text import lexicon, stem, stems

RELATIONS: Final = ("same", "kind", "tell")
"""In order of weight: a word keeps the first that fits."""


@dataclass(frozen=True, slots=True)
class Kin:
    """Words that speak for an answer of one question.

    Example:
        >>> Kin({"rim": "tell"}, {"sail": "tell"}).gold["rim"]
        'tell'
    """

    gold: Mapping[str, str]
    """By stem: how it is related to the gold answer."""
    other: Mapping[str, str]
    """By stem: how it is related to another option."""


@lru_cache(maxsize=1)
def thesaurus() -> Mapping[str, Mapping[str, str]]:
    """By stem of a word: the stems it is related to, and how; read once, both ways round."""
    text = resources.files("ffr.fix").joinpath("leak_kin.txt").read_text("ascii")
    out: dict[str, dict[str, str]] = {}
    for line in text.splitlines():
        head, _, rest = line.partition(":")
        if not rest or line.startswith("#"):
            continue
        heads = _stems([head])
        for relation, words in zip(RELATIONS, rest.split("|"), strict=True):
            for item in _stems(words.split(",")):
                for one in heads - {item}:
                    _relate(out, one, item, relation)
                    _relate(out, item, one, relation)
    return out


def _stems(words: Iterable[str]) -> frozenset[str]:
    said = frozenset(part for word in words for part in word.strip().replace("-", " ").split())
    return stems(said - lexicon().function)


def _relate(out: dict[str, dict[str, str]], one: str, other: str, relation: str) -> None:
    known = out.setdefault(one, {})
    known[other] = min(known.get(other, relation), relation, key=RELATIONS.index)


@lru_cache(maxsize=4096)
def kin_of(target: Target) -> Kin:
    """The words that speak for an answer of this question.

    Args:
        target: The question.

    Returns:
        Stems with their relation; none for answers that are numbers.
    """
    if target.numeric:
        return Kin({}, {})
    gold = _related(target.gold - target.common, target)
    others = [_related(mark - target.common, target) for mark in target.options if mark != target.gold]
    count: dict[str, int] = {}
    for found in (gold, *others):
        for item in found:
            count[item] = count.get(item, 0) + 1
    alone = {item for item, num in count.items() if num == 1}
    other = {item: how for found in others for item, how in found.items() if item in alone}
    return Kin({item: how for item, how in gold.items() if item in alone}, other)


def _related(mark: Iterable[str], target: Target) -> dict[str, str]:
    known, out = thesaurus(), dict[str, str]()
    for one in sorted(mark):
        for item, how in known.get(one, {}).items():
            if item not in target.question_stems and item not in target.guarded:
                out[item] = min(out.get(item, how), how, key=RELATIONS.index)
    return out


def kin_signs(words: Iterable[str], target: Target) -> set[str]:
    """How a clause speaks for the gold answer or another option: `gold:tell`, `gold:tell alone`, ...

    Args:
        words: Its folded words.
        target: The question.

    Returns:
        Signs for the reader; none where no word is related to an answer.
    """
    kin = kin_of(target)
    if not kin.gold and not kin.other:
        return set()
    said = {stem(word) for word in words}
    gold = {kin.gold[item] for item in said if item in kin.gold}
    other = {kin.other[item] for item in said if item in kin.other}
    signs = {f"gold:{how}" for how in gold} | {f"other:{how}" for how in other}
    if gold and not other:
        signs |= {f"gold:{how} alone" for how in gold}
    if sum(item in kin.gold for item in said) > 1:
        signs.add("gold:several")
    return signs
