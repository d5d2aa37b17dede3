"""Text handling of the leak gate: folding, words, stems, clauses, and what carries no meaning.

Everything here is language-neutral machinery over `leak_lexicon.json`; no rule about answers.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache, partial
from importlib import resources
from typing import Any, Final

MAX_CHARS: Final = 2000
"""Per field; the schema layer refuses longer ones anyway."""

_WORD = re.compile(r"[a-z]+(?:'[a-z]+)?|\d+(?:[.:]\d+)*")
_HOMOGLYPHS: Final = str.maketrans(
    "\u0430\u0435\u043e\u0440\u0441\u0445\u0443\u0456\u0455\u0458\u0501\u03bf\u03b1\u03b5\u03b9\u03bd\u03c1\u0432\u043a\u043c\u043d\u0442",
    "aeopcxyisjdoaeivpbkmht",
)
_HOMOGLYPHS_UPPER: Final = str.maketrans(
    "\u0410\u0412\u0421\u0415\u041d\u041a\u041c\u041e\u0420\u0422\u0425\u0391\u0392\u0395\u0397\u0399\u039a\u039c\u039d\u039f\u03a1\u03a4\u03a7",
    "ABCEHKMOPTXABEHIKMNOPTX",
)


@dataclass(frozen=True, slots=True)
class Category:
    """Words of one closed field of answers: colours, directions, animals.

    Example:
        >>> Category("size", None, frozenset({"big"}), frozenset(), frozenset()).name
        'size'
    """

    name: str
    asks: re.Pattern[str] | None
    """Matches questions whose answer lies in the field."""
    words: frozenset[str]
    soft: frozenset[str]
    """Count only where something is stated, not in an instruction."""
    cues: frozenset[str]
    """Things that bring a member to mind: the sky for blue."""


@dataclass(frozen=True, slots=True)
class Lexicon:
    """The word lists, as sets of folded words and of stems.

    Example:
        >>> "look" in lexicon().neutral
        True
    """

    function: frozenset[str]
    imperatives: frozenset[str]
    neutral: frozenset[str]
    neutral_stems: frozenset[str]
    weak_stems: frozenset[str]
    """Neutral stems, imperatives and usual places: naming one of them says little of an option."""
    prop_stems: frozenset[str]
    """Neutral stems and everyday things that an instruction may point at."""
    categories: tuple[Category, ...]
    clusters: dict[str, frozenset[str]]
    """Stem to the stems of its near-synonyms."""
    lists: dict[str, frozenset[str]]
    """Everything else, by name."""


@lru_cache(maxsize=1)
def _raw() -> dict[str, Any]:
    return json.loads(resources.files("ffr.fix").joinpath("leak_lexicon.json").read_text("ascii"))


@lru_cache(maxsize=1)
def lexicon() -> Lexicon:
    """The shipped word lists, read once."""
    raw = _raw()
    clusters: dict[str, frozenset[str]] = {}
    for line in raw["clusters"]:
        group = stems(line.split())
        for member in group:
            clusters[member] = clusters.get(member, frozenset[str]()) | group
    categories = tuple(
        Category(
            name=name,
            asks=re.compile(entry["asks"]) if entry["asks"] else None,
            words=frozenset(entry["words"].split()),
            soft=frozenset(entry["soft"].split()),
            cues=frozenset(entry["cues"].split()),
        )
        for name, entry in raw["categories"].items()
    )
    neutral = frozenset(raw["neutral"].split())
    neutral_stems, places = stems(neutral), stems(raw["places"].split())
    known = {
        "function",
        "imperatives",
        "neutral",
        "categories",
        "clusters",
        "irregular",
        "idioms",
        "cues",
        "patterns",
    }
    return Lexicon(
        function=frozenset(raw["function"].split()),
        imperatives=frozenset(raw["imperatives"].split()),
        neutral=neutral,
        neutral_stems=neutral_stems,
        weak_stems=neutral_stems | frozenset(raw["imperatives"].split()) | places,
        prop_stems=neutral_stems | places | stems(raw["scene"].split()),
        categories=categories,
        clusters=clusters,
        lists={name: frozenset(text.split()) for name, text in raw.items() if name not in known},
    )


def fold(text: str) -> str:
    """Lower-case plain text: NFKC, accents and hidden characters off, look-alike letters mapped to Latin.

    Args:
        text: One field of a patch, or a question.

    Returns:
        The folded text, at most `MAX_CHARS` characters.
    """
    plain = unicodedata.normalize("NFKC", text[:MAX_CHARS])
    plain = plain.replace("\u2019", "'").replace("\u2018", "'")
    for dash in "\u2010\u2011\u2012\u2013\u2014\u2212":
        plain = plain.replace(dash, "-")
    plain = re.sub(r"\bnext to\b", "beside", plain, flags=re.IGNORECASE)
    decomposed = unicodedata.normalize("NFD", plain)
    kept = "".join(c for c in decomposed if unicodedata.category(c) not in {"Mn", "Cf", "Me"})
    return kept.translate(_HOMOGLYPHS_UPPER).casefold().translate(_HOMOGLYPHS)


def tokens(folded: str) -> list[str]:
    """Words and numbers of a folded text; a possessive ending is taken off.

    Args:
        folded: Text from `fold`.

    Returns:
        Tokens in order.
    """
    return [word.removesuffix("'s") for word in _WORD.findall(folded)]


@lru_cache(maxsize=65_536)
def stem(word: str) -> str:
    """A light English stem: plural, tense and adverb endings off, common irregular forms mapped.

    Args:
        word: A folded word.

    Returns:
        The stem; only ever compared with other stems.
    """
    irregular: dict[str, str] = _raw()["irregular"]
    word = irregular.get(word, word)
    if len(word) > 3 and not word[0].isdigit():
        for ending, minimum in (
            ("ing", 3),
            ("ied", 2),
            ("ies", 2),
            ("ed", 3),
            ("es", 3),
            ("s", 3),
            ("ly", 4),
        ):
            if not word.endswith(ending) or len(word) - len(ending) < minimum or word.endswith("ss"):
                continue
            rest = word[: -len(ending)] + ("y" if ending in {"ied", "ies"} else "")
            if ending == "es" and not rest.endswith(("s", "x", "z", "ch", "sh", "o")):
                continue
            if any(vowel in rest for vowel in "aeiouy"):
                word = irregular.get(rest, rest)
                break
    word = word.removesuffix("e") if len(word) > 3 else word
    if len(word) > 3 and word[-1] == word[-2]:
        word = word[:-1]
    return word


_UNITS: Final = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
    "seventeen eighteen nineteen twenty"
).split()
_VALUES: Final = {
    **{word: float(value) for value, word in enumerate(_UNITS)},
    **{
        word: float(10 * (at + 3))
        for at, word in enumerate("thirty forty fifty sixty seventy eighty ninety hundred".split())
    },
    **dict.fromkeys("none nobody nil".split(), 0.0),
    **dict.fromkeys("once single lone sole solo".split(), 1.0),
    **dict.fromkeys("twice both pair couple duo double twin".split(), 2.0),
    **dict.fromkeys("thrice trio triple triplet threesome".split(), 3.0),
    **dict.fromkeys("quartet foursome quadruple".split(), 4.0),
    **{"quintet": 5.0, "sextet": 6.0, "dozen": 12.0},
}


def amount(word: str) -> float | None:
    """The amount that a folded word tells (`7`, `seven`, `trio`); None for other words.

    Example:
        >>> amount("trio"), amount("2.5"), amount("tree")
        (3.0, 2.5, None)
    """
    known = _VALUES.get(word) or _VALUES.get(word.removesuffix("s"))
    if known is not None or word == "zero":
        return known or 0.0
    return float(word) if re.fullmatch(r"\d+(?:\.\d+)?", word) else None


def stems(words: Iterable[str]) -> frozenset[str]:
    """Stems of words.

    Args:
        words: Folded words.

    Returns:
        The set of their stems.
    """
    return frozenset(stem(word) for word in words)


def content(words: Iterable[str]) -> list[str]:
    """Words that carry meaning: everything but function words.

    Args:
        words: Folded words.

    Returns:
        The content words in order.
    """
    function = lexicon().function
    return [word for word in words if word not in function]


@lru_cache(maxsize=32)
def pattern(name: str) -> re.Pattern[str]:
    """A compiled expression of the lexicon's `patterns`.

    Args:
        name: Its key.

    Returns:
        The expression, compiled once.
    """
    return _compiled(_raw()["patterns"][name])


@lru_cache(maxsize=8)
def pattern_pairs(name: str) -> tuple[tuple[re.Pattern[str], str], ...]:
    """Compiled (expression, text) pairs of the lexicon: `idioms` with replacements, `cues` with reasons.

    Args:
        name: `idioms` or `cues`; `{verbs}` in an expression stands for everyday verbs.

    Returns:
        The pairs in order.
    """
    verbs = "|".join(sorted(lexicon().lists["generic_verbs"]))
    return tuple((_compiled(source.replace("{verbs}", verbs)), text) for source, text in _raw()[name])


@lru_cache(maxsize=512)
def _compiled(source: str) -> re.Pattern[str]:
    return re.compile(source)


def _replace_idiom(replacement: str, guarded: frozenset[str], hit: re.Match[str]) -> str:
    # Answers of one word that are part of real instruction idioms ("before and after") stay idioms.
    told = (stems(tokens(hit[0])) & guarded) - lexicon().lists["ordinary"]
    return (
        hit[0]
        if told - lexicon().neutral_stems or len(told) > 1 or told & {"slow", "speed"}
        else hit.expand(replacement)
    )


def strip_references(
    folded: str,
    *,
    counted: frozenset[str] = frozenset(),
    guarded: frozenset[str] = frozenset(),
    keep_times: bool = False,
) -> str:
    """Take pointers and set phrases out, so that what is left is what the patch says.

    "Frames 3 to 5", "[13, 17]" and "at 2.5 s" point; "before and after", "first of all" and "close
    attention" are instruction idioms. An answer stated in words survives.

    Args:
        folded: Text from `fold`.
        counted: Stems of the question: "two times" is no idiom where times are counted.
        guarded: Stems of the answers: "slow down" is no idiom where one of them slows down.
        keep_times: Leave times in, for questions whose options are times or frame numbers.

    Returns:
        The remaining text.
    """
    if not keep_times:
        folded = pattern("frame_reference").sub(" frames ", folded)
        folded = pattern("time_reference").sub(" ", pattern("brackets").sub(" ", folded))
    folded = pattern("range_words").sub(lambda hit: hit[0] if stem(hit[1]) in counted else " frames ", folded)
    for idiom, replacement in pattern_pairs("idioms"):
        folded = idiom.sub(partial(_replace_idiom, replacement, guarded), folded)
    return folded
