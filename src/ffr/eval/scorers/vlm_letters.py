"""Finders of an option letter as VLMEvalKit has them, one per family of data sets.

Each returns the letter, empty if there is none; where several rules may fire, with the rule's name. The
patterns are written so that 100,000 characters of blanks, stars or unclosed tags take linear time; what
they accept is the same.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

_NONE = ("", "none")
_TAIL_CHARS, _TAIL_LINES = 800, 6

# --- VSI-Bench (`spatial_bench/matching_func.py`) ---
ZERO_WIDTH = re.compile("[\u200b\u200c\u200d\ufeff]")
ANSWER_END = re.compile(r"<\s*/\s*answer\s*>", re.IGNORECASE)
THINK_END = re.compile(r"</\s*think\s*>", re.IGNORECASE)
THINK_START = re.compile(r"<\s*think\s*>", re.IGNORECASE)
_ANSWER_LETTER = re.compile(r"<\s*answer\b[^>]*>\s*([A-J])", re.IGNORECASE)
_BEFORE_END = tuple(
    re.compile(rf"(?<![A-Za-z])([A-F])\s*[)\]}}\uff09\u3011]?\s*</\s*{tag}\s*>", re.IGNORECASE)
    for tag in ("answer", "think")
)
_OPTION_LINE = re.compile(r"[*_>\-\s]*(?:option|\u9009\u9879)\s+[A-J]\s*[:\uff1a]", re.IGNORECASE)
_MARKS = r"[*_`\uff08\uff09\[\]\u3010\u3011()]*"
_LONE_LINE = re.compile(rf"[>*_`\uff08\uff09\[\]\u3010\u3011()]*\s*([A-Fa-f])\s*{_MARKS}")
_LABELLED_LINE = re.compile(r"([A-F])\s*[.\uff0e:\uff1a)\]\u3011\u3001-]\s+", re.IGNORECASE)
_TIGHT = r".,:;!?)\]\u3011\u300b\u300d\u300f\uff0c\u3002\uff1b\u3001\uff1a\uff09"
_INLINE = re.compile(rf"(?<![A-Za-z])([A-F])\s*[*_`\uff09\]}})]*(?=$|[\s{_TIGHT}])")
_PHRASE = re.compile(
    r"(?:final ?answer|the ?answer ?is|answer(?: ?is)?|correct ?answer|\u7b54\u6848|\u6700\u7ec8\u7b54\u6848"
    r"|\u7ed3\u8bba|\u6240\u4ee5|\u56e0\u6b64|\u6211\u9009(?:\u62e9)?|\u9009\u62e9|\u9009)"
    r" ?[:\uff1a>\uff1d=]? ?[(\[{\uff08\u3010]? ?([A-F]) ?[)\]}\uff09\u3011]?(?:\b|[.)\u3001\u3002])",
    re.IGNORECASE,
)
_STANDING_ALONE = re.compile(r"(?<![A-Za-z])[A-F](?![A-Za-z])")


def spatial_letter(output: str) -> tuple[str, str]:
    """The letter of VSI-Bench's choices: in `<answer>`, before its end, in the last lines, after a phrase.

    The last resort is the only capital A to F that stands alone in the text.
    """
    text = ZERO_WIDTH.sub("", output.strip())
    closing = _last_end(ANSWER_END, text)
    block = _ANSWER_LETTER.search(text[:closing]) if closing else None
    if block:
        return block[1].upper(), "answer_tag.letter"
    tail = text[-_TAIL_CHARS:]
    for pattern in _BEFORE_END:
        match = pattern.search(tail)
        if match:
            return match[1].upper(), "before_closing_tag"
    for segment, rule in ((after_thoughts(text), "last_lines"), (tail, "last_lines_of_tail")):
        letter = _of_lines(segment)
        if letter:
            return letter, rule
    match = _PHRASE.search(re.sub(r"\s+", " ", text))
    if match:
        return match[1].upper(), "phrase"
    kept = "\n".join(line for line in text.splitlines() if not _OPTION_LINE.match(line))
    letters = set(_STANDING_ALONE.findall(kept))
    return (letters.pop(), "only_letter") if len(letters) == 1 else _NONE


def after_thoughts(text: str) -> str:
    """What stands behind the last `</think>`, else behind the last `<think>`, else all."""
    return text[_last_end(THINK_END, text) or _last_end(THINK_START, text) or 0 :].strip()


def _last_end(pattern: re.Pattern[str], text: str) -> int | None:
    end = None
    for match in pattern.finditer(text):
        end = match.end()
    return end


def _of_lines(segment: str) -> str:
    """Of the last six lines, the last first: a lone letter, `B. ...`, or the only letter in a line."""
    for line in reversed([line.strip() for line in segment.splitlines()[-_TAIL_LINES:]]):
        if not line or _OPTION_LINE.match(line):
            continue
        match = _LONE_LINE.fullmatch(line) or _LABELLED_LINE.match(line)
        if match:
            return match[1].upper()
        letters = set(_INLINE.findall(line))
        if len(letters) == 1:
            return letters.pop()
    return ""


# --- MVBench (`matching_util.can_infer`) ---
_REFUSALS = (
    "Sorry, I can't help with images of people yet.",
    "I can't process this file.",
    "I'm sorry, but without the image provided",
    "Cannot determine the answer",
)
_TO_BLANKS = str.maketrans(dict.fromkeys(".()[],:;!*#{}", " "))


def inferred(output: str, options: Mapping[str, str]) -> tuple[str, str]:
    """The only option letter among the words, in the last four; else the only option whose text occurs.

    A refusal, or the word Z, is the letter Z: no option.
    """
    if any(refusal in output for refusal in _REFUSALS):
        return "Z", "refusal"
    words = output.translate(_TO_BLANKS).split()
    present = set(words)
    labels = [label for label in options if label in present]
    if len(labels) == 1 and words.index(labels[0]) > len(words) - 5:
        return labels[0], "only_letter"
    if not labels and "Z" in present:
        return "Z", "only_letter"
    lower = output.lower()
    if len(lower) <= 2 * sum(map(len, options.values())):
        labels = [label for label, option in options.items() if option.lower() in lower]
        if len(labels) == 1:
            return labels[0], "option_text"
    return _NONE
