"""Layers for answers that are hinted at or hidden: letters, riddles, other languages, encodings."""

from __future__ import annotations

import base64
import binascii
import codecs
import re
import unicodedata
from collections.abc import Iterable
from typing import Final

from ffr.fix.leak_rules import Passage
from ffr.fix.leak_target import Target
from ffr.fix.leak_text import fold, lexicon, stem, tokens

_ORDINAL = (
    r"first|second|third|fourth|fifth|sixth|last|final|middle|penultimate|top|bottom|remaining|other|former|latter|"
    r"shortest|longest|1st|2nd|3rd|4th|5th|one|two|three|four|only|correct|right|wrong|true|false|best|obvious|most|least|outer|inner|odd|even|initial"
)
_CUES: Final = tuple(
    (re.compile(pattern), reason)
    for pattern, reason in (
        (
            r"\b(?:answer|solution|truth|result|reply)s?\s*(?:is|are|was|=|:|equals|should be|must be|would be|will be|has to be|turns out)"
            r"(?!\s*(?:not |only |clearly |best |most |easily |directly |already |fully |there |also )*"
            r"(?:visible|found|located|shown|determined|in\b|within|clear|obvious|given|decided|based|seen|apparent|revealed|hidden|"
            r"easier|there|available|at\b|near|somewhere|during|what|where|how|whichever|the one|consistent|supported|about|to be found|right there|observable|grounded|something))",
            "says what the answer is",
        ),
        (
            r"\b(?:correct|right|true|proper|gold|ground[- ]truth) (?:option|choice|answer|alternative|letter|label|response) (?:is|=|:|being|lies (?:at|in) (?:the )?position)",
            "says what the answer is",
        ),
        (
            rf"\b(?:{_ORDINAL})(?:[- ]listed)?(?:\s+(?:two|three|four|remaining|of|the|listed|given|possible|multiple|from|four|and))*\s+(?:options?|choices?|alternatives?|candidates?|letters?|of the (?:options|choices|list))\b(?! (?:against|with the))",
            "points at an option by its place",
        ),
        (
            r"\b(?:options?|choices?|alternatives?|candidates?|list) (?:number |no\.? |#)?(?:[a-h]\b(?! (?:man|person|time))|\d|one|two|three|four|five|i{1,3}\b|iv\b)",
            "points at an option by its label",
        ),
        (
            r"\b(?:option|choice|alternative|candidate|answer)s? (?:that|with|containing|starting|ending|beginning|mentioning|listed|placed|in (?:the )?(?:first|second|third|fourth|last|middle)|at the (?:top|bottom|end|start)|(?:just |right )?(?:before|after|between|above|below|following) (?!the event|the )[a-h]\b)(?! (?:what|the (?:video|frames|clip|evidence|footage|motion|visible))| each)",
            "describes one option",
        ),
        (
            r"\b(?:listed|mentioned|written|named|printed|given|appears|comes|stands|positioned) (?:first|second|third|fourth|last)\b(?! in the (?:video|clip))",
            "points at an option by its place",
        ),
        (
            r"\b(?:rule out|eliminate|discard|cross out|strike out|dismiss|drop|reject|exclude)\b(?! (?:distract|irrelevant|background|any frame|frames|duplicates|the background|assumption|double))",
            "rules options out",
        ),
        (
            r"\b(?:choose|pick|select|go with|opt for|vote for|settle on|circle|tick|submit|bubble in)\s+(?!(?:your|the (?:answer|option|one|best|correct|matching)\b(?:\s+(?:that|which|answer|option|only|after|based|supported|matching|carefully))?|an? (?:answer|option)|up|out|carefully|after|only|whichever|based|between|among|one\b|frames|which|what))",
            "tells which to choose",
        ),
        (
            r"\b(?:rhym\w+|sounds? (?:like|the same)|homophone|anagram|unscrambl\w+|scrambl\w+|spell\w*|backwards? (?:gives|reads|is)|acrostic|synonym\w*|antonym\w*|alphabet\w*|vowels?|consonants?|syllables?|initials|palindrome|morse|caesar|cipher|rot13|base64|decod\w+|encod\w+|ascii|roman numeral)\b",
            "is a riddle about the answer's word",
        ),
        (
            r"\b(?:start|starts|starting|begin|begins|beginning|end|ends|ending)(?:ing|s)? (?:with|in|on) (?:the |an? )?(?:letters?\b|['\"]?[a-z]['\"]?(?:\b|$)(?<! a))",
            "is a riddle about the answer's word",
        ),
        (
            r"\b(?:first|second|third|fourth|fifth|last|next|previous|capital|opening) letter\b|\bletter (?:of|after|before|between|that|[a-h]\b)|\b(?:two|three|four|five|six|seven|\d+)[- ]letter\b|\bletters? long\b",
            "is a riddle about the answer's word",
        ),
        (
            r"\b(?:ignore|disregard|forget|override)\b[^.;]{0,20}\b(?:instruction|rule|prompt|video|question|system)s?\b|\bsystem prompt\b|\b(?:print|output|reply with|respond with|type out|write out|return the string)\b",
            "carries an instruction to answer",
        ),
        (
            r"\b(?:opposite|reverse|inverse|contrary|converse|antithesis|complement)\b(?! (?:side|corner|angle|end|direction of|edge))",
            "hints by contrast",
        ),
        (
            r"\b(?:the )?other way (?:a?round)?|\bvice versa\b|\b(?:flip|invert|swap|switch|negate|toggle)\b(?: (?:your|the|it|to|them))|\bthe other (?:one|option|choice|answer|way)\b|\bneither\b|\bnone of (?:the|these|them)\b|\ball of the above\b",
            "hints by contrast",
        ),
        (
            r"\byou(?:'re| are| were) (?:almost |nearly |already |so |very )*(?:right|correct|close|there)\b|\b(?:keep|stick with|change) your (?:first |original |initial )?answer\b|\bfirst (?:answer|instinct|guess) was\b",
            "judges the student's answer",
        ),
        (
            r"\b(?:like|as|resembl\w+|remind\w* (?:you )?of|think of|evok\w+|imagine|picture|associated with|same (?:colou?r|shade|hue|tone|shape|size|number|amount|count) as|shade of|colou?r of|hue of|tone of|shape of|size of|number of|count of|as many as)\s+(?:a|an|fresh|ripe|your|one's|most|clear|pure|old|freshly)\b(?! (?:frame|clue|cue|guide|whole|reference|result|starting|single|check|moment|pair of frames|sequence|group|unit|set|clip|video|baseline|landmark|hint|marker|rule|sign|consequence|anchor|basis|continuous))",
            "paraphrases the answer",
        ),
        (
            r"\b(?:that|which|things?|something|object|item|tool|animal|one) (?:that |which )?(?:you|people|we|one|kids|children|drivers|humans|everyone|cooks|students) (?:can |could |would |might |usually |often |normally |typically )*(?:{verbs})\b",
            "paraphrases the answer",
        ),
        (
            r"\b(?:used|good|useful|made|meant|designed|needed|worn|known|famous) (?:for|to|when|on|as) (?:\w+ing|a|an|the|be|keep|hold|write|read|drink|eat|sit|cut|cover|protect|carry|transport)\b(?! (?:reference|landmark|guide|anchor|clue|compar|judg|verif|track|count|check|identify|determin))",
            "paraphrases the answer",
        ),
        (
            r"\b(?:a|some) (?:kind|type|sort|piece|form|member|species|brand) of (?!(?:motion|movement|action|event|interaction|contact|change|object|item|cue|clue|evidence|transition|gesture|error|relation|material|feature))",
            "paraphrases the answer",
        ),
        (
            r"\b(?:look for|search for|spot|find|expect|see|notice|identify|locate|watch for|seek) (?:something|someone|somebody|anything) (?!(?:in|that|which|has|is|being|happen|chang|mov|at|near|else|occur|appear|relevant|new|different|unusual|about|with|you|between))",
            "describes the answer",
        ),
    )
)
_LETTER_WORDS = re.compile(
    r"\b(?:bee|cee|dee|gee|letter|vitamin|grade|plan|exhibit|hepatitis|section|case) [a-h]\b|^(?:bee|cee|dee)[.!]?$|\b(?:option|choose|pick|select|choice|answer)\W+(?:bee|cee|see|dee|ay|eff)\b"
)


def _cue_patterns() -> tuple[tuple[re.Pattern[str], str], ...]:
    verbs = "|".join(sorted(lexicon().lists["generic_verbs"]))
    return tuple((re.compile(p.pattern.replace("{verbs}", verbs)), reason) for p, reason in _CUES)


def cue(passage: Passage, target: Target) -> str:
    """Phrases that point at an option, spell the answer, or paraphrase it."""
    for pattern, reason in _cue_patterns():
        hit = pattern.search(passage.plain)
        if hit and not _asked(hit.group(), target):
            return reason
    return ""


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
    if _LETTER_WORDS.search(passage.folded):
        return "names an option's letter"
    nato = set(passage.words) & lexicon().lists["nato"] - target.question
    return "names an option's letter" if nato else ""


def other_language(passage: Passage, target: Target) -> str:
    """Words of another language, or letters of another script, that the question does not use."""
    for char in unicodedata.normalize("NFKC", passage.raw):
        if char.isalpha() and not unicodedata.name(char, "").startswith("LATIN"):
            if fold(char) not in target.question and not any(char in word for word in target.question):
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
    if target.numeric and re.search(r"[+<>|~=]|\+\s*1", passage.plain):
        return "arithmetic signs"
    return ""


def hidden_word(passage: Passage, target: Target) -> str:
    """The answer spelled out, split, reversed, shifted, starred out, in leet or as an acrostic."""
    goals = _goals(target)
    for reading in _readings(passage.folded, target):
        if reading in goals or stem(reading) in goals:
            return "an option or the gold answer in disguise"
    for pattern in re.findall(r"\b[a-z]*[*_#]+[a-z*_#]*", passage.folded):
        shape = re.compile("".join("[a-z]+" if c in "*_#" else c for c in re.sub(r"[*_#]+", "*", pattern)))
        if len(pattern) >= 3 and any(shape.fullmatch(goal) for goal in goals):
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
    for left, right in zip(words, words[1:], strict=False):
        if left not in known or right not in known:
            yield left + right
    for word in words:
        if word not in known and word not in target.question:
            yield word[::-1]
            yield codecs.encode(word, "rot13")
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
            if reading.strip() in goals or any(word in goals for word in tokens(reading)):
                return "an encoded answer"
    if re.search(
        r"\b[A-Za-z0-9+/]{2,}={1,2}(?!\w)|\b(?:[01]{6,8}\s*){2,}|(?:[.\-]{1,5} ){3,}|\\u[0-9a-f]{4}|&#\d+|%[0-9a-fA-F]{2}|\b0x[0-9a-f]+",
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
    if any(goal in heads for goal in goals):
        return "an acrostic of the answer"
    for words in sentences:
        initials = "".join(word[0] for word in words)
        if any(
            initials == goal or (len(goal) >= 4 and goal in initials) or initials.startswith(goal)
            for goal in goals
        ):
            return "an acrostic of the answer"
    capitals = "".join(re.findall(r"(?<=\w)[A-Z]|(?<![.!?]\s)(?<!^)\b[A-Z]", passage.raw)).casefold()
    return "capitals that spell the answer" if any(goal in capitals for goal in goals) else ""


HIDDEN: Final = (
    ("letter", option_letter),
    ("cue", cue),
    ("language", other_language),
    ("characters", strange_characters),
    ("disguise", hidden_word),
    ("encoding", encoded),
)
"""Layers about form, in the order of the report."""
