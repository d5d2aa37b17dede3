"""Text handling of the leak gate: folding, words, stems, clauses, and what carries no meaning.

Everything here is language-neutral machinery over `leak_lexicon.json`; no rule about answers.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
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
        stems = frozenset(stem(word) for word in line.split())
        for member in stems:
            clusters[member] = clusters.get(member, frozenset()) | stems
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
    names = (
        "foreign_function",
        "foreign_answers",
        "numbers",
        "number_cues",
        "nato",
        "factive",
        "generic_verbs",
    )
    return Lexicon(
        function=frozenset(raw["function"].split()),
        imperatives=frozenset(raw["imperatives"].split()),
        neutral=neutral,
        neutral_stems=frozenset(stem(word) for word in neutral),
        categories=categories,
        clusters=clusters,
        lists={name: frozenset(raw[name].split()) for name in names},
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


# A patch says where to look in numbers; these are pointers and never answers. A number that goes on to
# count something ("frames 5-8, 3 balls") is not part of the pointer.
_ENDS = r"(?=\s*[\])]?\s*(?:$|[.,;:\-)\]&]|(?:and|to|or|through|for|when|where|while|as|in|again|frames?|once|before|after)\b))"
_FRAME_REFERENCE = re.compile(
    r"\b(?:key[\s-]*)?frames?(?:\s+(?:numbers?|nos?\.?|ranges?|interval|window|indices|segment))?\s*"
    r"(?:from\s+|between\s+|within\s+)?[\[(]?\s*#?\d+[\])]?"
    r"(?:\s*(?:-|to|through|until|till|\.\.+)\s*(?:frames?\s*)?#?\d+\s*[\])]?"
    rf"|\s*(?:,\s*and|,|and|or|/|&)\s*(?:frames?\s*)?[\[(]?#?\d+{_ENDS}\s*[\])]?)*"
)
_BRACKETS = re.compile(
    r"[\[(]\s*\d+(?:\.\d+)?\s*(?:,|-|to|\.\.+)\s*\d+(?:\.\d+)?(?:\s*,\s*\d+(?:\.\d+)?){0,2}\s*[\])]"
)
_TIME_REFERENCE = re.compile(
    r"\b(?:t\s*=\s*)?\d+(?:\.\d+)?\s*(?:(?:-|to|and)\s*\d+(?:\.\d+)?\s*)?(?:s|sec|secs|seconds?|ms)\b"
    r"|\bseconds?\s+\d+(?:\.\d+)?(?:\s*(?:-|to|and|through)\s*\d+(?:\.\d+)?)?"
    r"|\b\d{1,2}:\d{2}(?:\s*(?:-|to|and)\s*\d{1,2}:\d{2})?"
)
_RANGE_WORDS = re.compile(
    r"\b(?:two|three|four|five|six|several|a few|few|multiple|many|both|numerous|a couple of)\s+"
    r"(?:(?:consecutive|adjacent|successive|neighbou?ring|listed|given|marked|key|selected|highlighted|"
    r"different|separate|identified|indicated|relevant|suggested|frame)\s+)*"
    r"(frames|ranges|intervals|segments|windows|clips|views|regions|times|passes|moments|events|shots|crops|boxes|sides|ends)\b"
)
_IDIOMS: Final = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (
            r"\b(?:just |shortly |right |immediately |directly )?before and (?:right |just |shortly |immediately )?after\b",
            " around ",
        ),
        (r"\bbefore (?:you )?(?:answer|decid|conclud|choos|respond|settl|draw|judg|comm|mak)\w*\b", " "),
        (r"\bafter (?:that|this|checking|looking|watching|reviewing)\b", " "),
        (r"\bright (?=before|after|when|as|at|around|where|then|there|away|now)", " "),
        (
            r"\b(?:all )?right\b(?= answer| conclusion| moment| place| time| object| part| region| frames?)",
            " ",
        ),
        (
            r"\bat first (?:glance|sight|look)\b|\bfirst of all\b|\bin the first place\b|\blast but not least\b",
            " ",
        ),
        (
            r"\bfirst impression\w*\b|\bsecond (?:look|time|pass|glance|thought)\w*\b|\bonce (?:again|more)\b",
            " ",
        ),
        (r"\bone (?:by one|another|at a time|after another|after the other)\b|\bone more time\b", " "),
        (
            r"\b(?:which|that|this|the (?:wrong|right|same|correct|relevant)|each|every|any|either|a different) one\b",
            " ",
        ),
        (r"\bno[- ]one\b|\bat once\b|\b(?:only|just|exactly) once\b|\bonce (?:only|per|each|for|in)\b", " "),
        (
            r"\b(?:from )?(?:the )?(?:very )?(?:start|beginning) (?:to|until|till|through(?: to)?) (?:the )?(?:very )?(?:end|finish)\b",
            " ",
        ),
        (
            r"\b(?:a |one |yet )?closer (?:look|attention|inspection)\b|\bclose (?:attention|look|up|watch|eye)\b|\bup close\b|\bclose-up\b",
            " ",
        ),
        (
            r"\b(?:frame|moment|step) (?:by|after) (?:frame|moment|step)\b|\bstep by step\b|\bside by side\b|\bback to back\b",
            " ",
        ),
        (
            r"\b(?:look|go|come|think|trace|refer|step|rewind|check) back(?:wards?)?(?: (?:to|at|through|over|from))?\b",
            " ",
        ),
        (
            r"\b(?:end|wind|speed|slow|set|follow|pick|sum|build|break|narrow|write|note|put|look|calm)(?:s|ed|ing)? (?:up|down)\b",
            " ",
        ),
        (
            r"\bbefore jumping\b|\bkeep(?:ing)? up\b|\bup to\b|\bmake up\b|\bon top of\b|\bover time\b|\bas far as\b|\bso far\b",
            " ",
        ),
        (
            r"\b(?:no|nothing|none) (?:object|person|one|frame|item|part|instance)?\s*(?:is|are|gets?) (?:missed|skipped|overlooked|left out)\b",
            " ",
        ),
        (
            r"\bwithout (?:missing|skipping|double|counting|guess|assum|relying|jump)\w*\b|\bdouble[- ]?(?:check|count)\w*\b",
            " ",
        ),
        (r"\b(?:count\w*|listed|tallied)\b[^.;]{0,40}\btwice\b|\btwice\b[^.;]{0,20}\bcount\w*", " count "),
        (
            r"\b(?:every|each) single\b|\bno single\b|\bnot (?:a|one) single\b|\ba single (?:frame|glance|moment|view|look|image)\b",
            " ",
        ),
        (
            r"\b(?:more|less) (?:than (?:a|one) (?:frame|glance|moment|look)|careful\w*|slow\w*|clear\w*|close\w*|attention|precise\w*|attentive\w*|relevant|likely|important|thorough\w*)\b",
            " ",
        ),
        (
            r"\b(?:once|one|two|both) (?:more )?(?:end|side|edge)s? of (?:the|this|that|each) (?:range|interval|window|clip|segment)\b",
            " ",
        ),
        (r"\b(?:left|right|upper|lower|top|bottom)[- ]?(?:hand)? (?:out|over|off)\b", " "),
        (
            r"\bturn(?:s|ed|ing)? (?:your |the )?(?:attention )?(?:to|out)\b|\bpoint(?:s|ed|ing)? out\b|\bfind out\b|\bfigure out\b",
            " ",
        ),
        (r"\b(?:as|too|so|very|how) many\b|\bhow (?:much|often)\b|\bat least once\b|\bin half\b", " "),
        (r"\bthe other (?:frames?|objects?|items?|people|parts?|regions?)\b", " others "),
        (r"\bopen (?:mind|question)\w*\b|\bmind (?:open)\b|\bclear (?:view|picture|cut)\b", " "),
        (r"\b(?:in|into|to) (?:full|short|order|fact|turn|mind)\b", " "),
        (
            r"\btrue (?=order|state|cause|answer|number|motion|position|shape|colou?r|direction)|\byes/no\b|\byes or no\b",
            " ",
        ),
        (
            r"\b(?:the )?same (?=object|person|item|region|time|frame|moment|place|spot|range|scene|clip|question|way|area|subject|element|window|part|point|thing)",
            " ",
        ),
        (
            r"\bdifferent (?=frame|angle|time|moment|view|part|region|point|range|stage|object|item|person)",
            " ",
        ),
    )
)


def strip_references(folded: str, *, counted: frozenset[str] = frozenset(), keep_times: bool = False) -> str:
    """Take pointers and set phrases out, so that what is left is what the patch says.

    "Frames 3 to 5", "[13, 17]" and "at 2.5 s" point; "before and after", "first of all" and "close
    attention" are instruction idioms. An answer stated in words survives.

    Args:
        folded: Text from `fold`.
        counted: Stems of the question: "two times" is no idiom where times are counted.
        keep_times: Leave times in, for questions whose options are times or frame numbers.

    Returns:
        The remaining text.
    """
    if not keep_times:
        folded = _TIME_REFERENCE.sub(" ", _BRACKETS.sub(" ", _FRAME_REFERENCE.sub(" frames ", folded)))
    folded = _RANGE_WORDS.sub(lambda hit: hit[0] if stem(hit[1]) in counted else " frames ", folded)
    for pattern, replacement in _IDIOMS:
        folded = pattern.sub(replacement, folded)
    return folded
