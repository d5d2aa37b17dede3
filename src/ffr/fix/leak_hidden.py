"""Layers for answers that are hinted at or hidden: letters, riddles, other languages, encodings."""

from __future__ import annotations

import base64
import binascii
import codecs
import re
import unicodedata
from collections.abc import Iterable
from itertools import pairwise
from typing import Final

from ffr.fix.leak_kin import thesaurus
from ffr.fix.leak_remarks import is_remark
from ffr.fix.leak_rules import Passage
from ffr.fix.leak_target import Target
from ffr.fix.leak_text import fold, lexicon, pattern, pattern_pairs, stem, tokens


def cue(passage: Passage, target: Target) -> str:
    """Phrases that point at an option, spell the answer, or paraphrase it."""
    for expression, reason in pattern_pairs("cues"):
        hit = expression.search(passage.plain)
        if hit and not _asked(hit.group(), target) and not _measures(hit.group(), target):
            return reason
    return _single_frame(passage, target)


def _single_frame(passage: Passage, target: Target) -> str:
    """'Exactly in frame 7' pins the answer down as a range of one frame does."""
    for sentence in re.split(r"[.;!?]", passage.folded):
        words = tokens(sentence)
        if not words or not pattern("single_frame").search(sentence):
            continue
        if is_remark(words, target.question_stems) or pattern("poor_view").search(sentence):
            continue  # "you stopped at frame 9", "in frame 6 it is covered": what to look past
        states = words[0] not in lexicon().imperatives and words[0] not in lexicon().lists["subordinate"]
        if states or {"exactly", "precisely", "only"} & set(words):
            return "points at a single frame"
    return ""


_MEASURE = re.compile(r"^(colou?r|shade|hue|tone|shape|size|number|count) of\b")


def _measures(phrase: str, target: Target) -> bool:
    """'The size of a tile' paraphrases a size, but is a help where a distance is asked for."""
    measure = _MEASURE.match(phrase)
    if not measure:
        return False
    names = {category.name for category in target.categories}
    if target.numeric:
        names |= {"number", "count"}
    return measure[1] not in names and measure[1] not in target.question


def _asked(phrase: str, target: Target) -> bool:
    """The question itself speaks of letters, opposites or colours of things."""
    words = [word for word in tokens(phrase) if word not in lexicon().function]
    return bool(words) and all(word in target.question for word in words)


def option_letter(passage: Passage, target: Target) -> str:
    """A lone option letter, in any dress."""
    if not target.labels:
        return ""
    text = unicodedata.normalize("NFKC", passage.raw)
    for match in re.finditer(r"(?<![\w'])([A-Za-z])(?![\w']|\.\w)", text):
        letter = match.group(1)
        if letter.casefold() not in target.labels or letter.casefold() in target.question - {"a"}:
            continue
        after = text[match.end() : match.end() + 3]
        if (
            letter in "aA"
            and re.match(r"\s+\w", after)
            and not re.match(r"\s+(?:is|or|an)\b", text[match.end() :][:5])
        ):
            continue
        if letter in "aA" and not re.match(r"\s*(?:[).,:;!?\]\"']|$|is\b|or\b|and\b)", text[match.end() :]):
            continue
        return "names an option's letter"
    if pattern("letter_words").search(passage.folded):
        return "names an option's letter"
    nato = set(passage.words) & lexicon().lists["nato"] - target.question
    return "names an option's letter" if nato else ""


def place_in_list(passage: Passage, target: Target) -> str:
    """An option pointed at by its label or its place: 'option A', 'the third of the listed ones'."""
    if not target.labels:
        return ""
    text = unicodedata.normalize("NFKC", passage.raw)
    if pattern("labelled_option").search(text) or pattern("placed_option").search(passage.folded):
        return "points at an option by its place"
    return ""


def other_language(passage: Passage, target: Target) -> str:
    """Words of another language, or letters of another script, that the question does not use."""
    for char in unicodedata.normalize("NFKC", passage.raw):
        foreign = char.isalpha() and not unicodedata.name(char, "").startswith("LATIN")
        if foreign and not any(fold(char) in word for word in target.question):
            return "letters of another script"
    words = [word for word in tokens(passage.folded) if word not in target.question]
    lists = lexicon().lists
    plain = lexicon().neutral | lexicon().function
    if any(word in lists["foreign_answers"] and word not in plain for word in words):
        return "an answer word of another language"
    if len({word for word in words if word in lists["foreign_function"] and word not in plain}) >= 2:
        return "words of another language"
    return ""


def strange_characters(passage: Passage, target: Target) -> str:
    """Characters that a person does not see or reads as letters: zero-width, look-alikes, emoji."""
    for char in passage.raw:
        category = unicodedata.category(char)
        if category in {"Cc", "Cf", "Cs", "Co", "Cn"} and char not in "\n\t\r":
            return f"hidden character U+{ord(char):04X}"
        if category in {"So", "No", "Nl", "Sk"} and char not in "\u00b0^`\u00b4\u00a8":
            return f"symbol U+{ord(char):04X}"
        if category == "Sm" and char not in "+<=>|~\u00b1\u00d7\u2264\u2265":
            return f"symbol U+{ord(char):04X}"
        if category.startswith("L") and unicodedata.normalize("NFKC", char) != char and ord(char) > 0x2000:
            return f"look-alike character U+{ord(char):04X}"
    for word in re.findall(r"\w+", passage.raw):
        scripts = {unicodedata.name(char, "?").split()[0] for char in word if char.isalpha()}
        if len(scripts) > 1:
            return "mixed alphabets in one word"
    if target.numeric and _ARITHMETIC.search(passage.plain):
        return "arithmetic signs"
    return ""


_AMOUNT: Final = r"(?:\d|" + "|".join(sorted(lexicon().lists["numbers"])) + r")"
_ARITHMETIC: Final = re.compile(rf"[|~]|[+<>=]\s*\b{_AMOUNT}\b|\b{_AMOUNT}\s*[+<>=]")
"""A sign beside an amount; "no dot = no use" only says what a word is to mean."""


def hidden_word(passage: Passage, target: Target) -> str:
    """The answer spelled out, split, reversed, shifted, starred out, in leet or as an acrostic."""
    goals = _goals(target)
    for reading in _readings(passage.folded, target):
        if reading in goals or stem(reading) in goals:
            return f"'{reading}' in disguise: an option or the gold answer"
    for starred in re.findall(r"\b[a-z]*[*_#]+[a-z*_#]*", passage.folded):
        shape = re.compile("".join("[a-z]+" if c in "*_#" else c for c in re.sub(r"[*_#]+", "*", starred)))
        if len(starred) >= 3 and any(shape.fullmatch(goal) for goal in goals):
            return "a starred-out answer"
    return _acrostic(passage, target)


def _goals(target: Target) -> frozenset[str]:
    """Words that must not be readable: three letters or more, not in the question."""
    words = {word for word in (*target.option_words, *target.answer_texts) if len(word) >= 3}
    if target.numeric:
        words |= {word for word in lexicon().lists["numbers"] if len(word) >= 3}
    return frozenset(word for word in words if not target.allows(word))


def _readings(folded: str, target: Target) -> Iterable[str]:
    """Other ways to read the text: joined letters, joined parts, reversed, rot13, base64, leet."""
    yield from (
        re.sub(r"[^a-z]", "", run)
        for run in re.findall(r"(?<![a-z])(?:[a-z][ .\-_*/,|]{1,3}){2,}[a-z](?![a-z])", folded)
    )
    words = tokens(folded)
    known = lexicon().neutral | lexicon().function | lexicon().imperatives
    for compound in re.findall(r"[a-z]+(?:[-_./][a-z]+)+", folded):
        yield re.sub(r"[^a-z]", "", compound)
    for left, right in pairwise(words):
        if not {left, right} <= known and not {left, right} & target.option_words:
            yield left + right
    for word in words:
        # "net" and "ten" are both words, and a name may be a palindrome: what reads forwards is not turned.
        if word not in known and word not in target.question and stem(word) not in thesaurus():
            yield from {word[::-1], codecs.encode(word, "rot13")} - {word}
    for word in re.findall(r"[a-z]*[0-9@$!|][a-z0-9@$!|]*[a-z]|[a-z][0-9@$!|]+[a-z0-9@$!|]*", folded):
        for one in "il":
            yield word.translate(str.maketrans("013457@$!|8", f"o{one}eastas{one}{one}b"))
    for code in re.findall(r"[A-Za-z0-9+/]{4,}={0,2}", folded):
        yield from _decoded(code)


def _decoded(code: str) -> Iterable[str]:
    """Base64 and hex readings of a folded token (folding lost the case, so all cases are not tried)."""
    try:
        if re.fullmatch(r"(?:[0-9a-f]{2}){3,}", code):
            yield bytes.fromhex(code).decode("ascii").casefold()
        yield base64.b64decode(code + "=" * (-len(code) % 4), validate=True).decode("ascii").casefold()
    except (binascii.Error, UnicodeDecodeError, ValueError):
        return


def encoded(passage: Passage, target: Target) -> str:
    """Base64 in its own letter case, or a long token that is no word."""
    goals = _goals(target) | target.labels
    for code in re.findall(r"[A-Za-z0-9+/]{4,}={0,2}", passage.raw):
        for reading in _decoded(code):
            if reading.strip() in goals or any(word in goals for word in tokens(reading) if len(word) > 1):
                return "an encoded answer"
    if re.search(
        r"\b[A-Za-z0-9+/]{2,}={1,2}(?!\w)|\b(?:[01]{6,8}\s*){2,}|(?:[.\-]{1,5} ){3,}"
        r"|\\u[0-9a-f]{4}|&#\d+|%[0-9a-fA-F]{2}|\b0x[0-9a-f]+",
        passage.raw,
    ):
        return "an encoded answer"
    return ""


def _acrostic(passage: Passage, target: Target) -> str:
    """Initials of sentences or of successive words that spell an option or the gold answer."""
    goals = {text for text in target.answer_texts if len(text) >= 3 and text.isalpha()} | {
        g for g in _goals(target) if len(g) >= 3
    }
    sentences = [tokens(part) for part in re.split(r"[.;:!?,\n]+", passage.folded)]
    heads = "".join(words[0][0] for words in sentences if words)
    # Six sentences hold a given three-letter word now and then; all number words are goals.
    if any(goal == heads or (len(goal) >= 4 and not target.numeric and goal in heads) for goal in goals):
        return "an acrostic of the answer"
    for words in sentences:
        initials = "".join(word[0] for word in words)
        if target.numeric:  # with all number words as goals, "the runner is out" would spell "trio"
            if initials in goals:
                return "an acrostic of the answer"
            continue
        if any(
            initials == goal or (len(goal) >= 4 and goal in initials) or initials.startswith(goal)
            for goal in goals
        ):
            return "an acrostic of the answer"
    capitals = "".join(re.findall(r"(?<=\w)[A-Z]|(?<![.!?]\s)(?<!^)\b[A-Z]", passage.raw)).casefold()
    return "capitals that spell the answer" if any(goal in capitals for goal in goals) else ""


HIDDEN: Final = (
    ("letter", option_letter),
    ("place", place_in_list),
    ("cue", cue),
    ("language", other_language),
    ("characters", strange_characters),
    ("disguise", hidden_word),
    ("encoding", encoded),
)
"""Layers about form, in the order of the report."""
