"""Where in an output the final answer stands: tags, boxes, announcements, and what is left after thinking.

Nothing here knows what kind of answer is asked for; `robust` reads the passages by kind, most explicit first.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

from ffr.find.verify.format import last_answer
from ffr.find.verify.statement import sentences
from ffr.find.verify.text import plain_text

HEAD_CHARS: Final = 4_000
TAIL_CHARS: Final = 16_000
"""Of a longer text only the start and the end are read: an answer stands at one of them."""
MAX_PASSAGE_CHARS: Final = 400

_THOUGHT: Final = r"(?:think|thinking|thought|thoughts|reasoning|analysis|reflection)"
_OPEN_THOUGHT: Final = re.compile(rf"<{_THOUGHT}>|<\|begin_of_thought\|>", re.IGNORECASE)
_CLOSE_THOUGHT: Final = re.compile(
    rf"</{_THOUGHT}>|<\|end_of_thought\|>|<\|channel\|>\s*final\s*<\|message\|>", re.IGNORECASE
)
_ANSWER_TAG: Final = re.compile(r"</?\s*answer\s*>", re.IGNORECASE)
_SPECIAL: Final = re.compile(
    r"<\|[a-z_]{1,20}\|>|</?s>|<eos>|<end_of_turn>|</?(?:b|i|strong|em|p|br|final|solution|summary)\s*/?>",
    re.IGNORECASE,
)
_CONTROL: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]+")
_MARKDOWN: Final = re.compile(r"\*\*|__|`+|^[ \t]*(?:#{1,6}|>|[-*\u2022])[ \t]+", re.MULTILINE)
_MAX_ANNOUNCED: Final = 40
_BOXED: Final = "\\boxed"
_ENDS: Final = tuple(".!)]}\"'")

_NOUN: Final = r"(?:answer|ans|choice|option|conclusion|prediction)"
_IS: Final = (
    r"(?:(?:is|are|was|would\s+be|should\s+be|must\s+be|will\s+be|could\s+be|might\s+be|may\s+be|"
    r"seems?\s+to\s+be|appears?\s+to\s+be|remains)\b\s*[:=]?|[:=]|->|=>|\u2192)"
)
_ABROAD: Final = (
    r"\u7b54\u6848(?:\u5e94\u8be5|\u5e94\u5f53|\u5e94)?(?:\u662f|\u4e3a|:)|\u6545?\u9009(?:\u62e9)?\s*:?(?=\s*[(]?[A-Z])|"
    r"\u7b54\u3048\u306f|\uc815\ub2f5\uc740|\b(?:respuesta|r\u00e9ponse|antwort|resposta|risposta|\u043e\u0442\u0432\u0435\u0442)"
    r"(?:\s+(?:correcta|correta|corretta|correcte|final))?\s*(?:est?\b|ist\b|lautet\b|\u00e9\b|\u00e8\b|:|-)\s*:?"
)
_ANNOUNCED: Final = re.compile(
    rf"\b{_NOUN}\b[\"')\]]*(?:\s+(?:to|for|of)\s+(?:the|this|that)\s+(?:\w+\s+)?question)?"
    rf"(?:\s+(?:here|then|therefore|thus|now))?\s*{_IS}"
    r"(?:\s*(?:most\s+likely|likely|probably|therefore|thus|clearly|then|indeed|definitely))?\s*[:,]?"
    r"|\b(?:best|better|correct|right|suitable|accurate)\s+(?:\w+\s+)?(?:answer|option|choice|caption|sentence|"
    r"description|match)\b(?:\s+\w+){0,7}?\s*(?:\bis\b\s*:?|:)"
    r"|\b(?:i|we)(?:'d|'ll|\s+(?:would|will|must|can|should))?\s+(?:choose|select|pick|go\s+(?:with|for)|"
    r"answer|conclude|opt\s+for|guess)\b(?:\s+that)?(?:\s+(?:it\s+is|it's|the\s+answer\s+is))?\s*[:,]?"
    r"|\b(?:corresponds?\s+to|match(?:es)?(?:\s+with)?|leads?\s+to|points?\s+to|aligns?\s+with|which\s+is|"
    rf"this\s+is)\s+(?=(?:option|choice|answer)\s)|{_ABROAD}",
    re.IGNORECASE,
)
_APPROVED: Final = re.compile(
    r"(?:\b(?i:option|choice|answer|letter)\s+)?(?<![\w'])[(\[\"']?([A-Z]|\d)"
    r"(?:[)\]\"'.:]{1,2}(?:[ \t][^.\n]{1,200}?)?)?,?[ \t]+(?:is|seems|appears|would\s+be|must\s+be)[ \t]+"
    r"(?:to\s+be\s+)?(?:definitely|clearly|indeed|therefore|thus)?[ \t]*(?:the\s+|a\s+)?"
    r"(?:only\s+|single\s+|most\s+|more\s+)?(?:correct|right|best|better|accurate|suitable|appropriate|answer)\b"
    r"|\b(?i:option|choice|sentence|caption|description)\s+([A-Z]|\d)[ \t]+(?:best[ \t]+|better[ \t]+)?"
    r"(?:captures|matches|describes|fits|represents|reflects|aligns)\b"
)
_DOUBT: Final = re.compile(
    r"\b(?:if|whether|unless|suppose|assuming|why)\b[^.!?\n]*$|(?:\bnot|n't)\s+(?:\w+\s+){0,3}$",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Passage:
    """A place where an answer was announced.

    Example:
        >>> Passage("B", "answer_tag").text
        'B'
    """

    text: str
    rule: str
    closing: bool = False
    """Whether the output says no more after this, and ends as a sentence does."""


@dataclass(frozen=True, slots=True)
class Parts:
    """An output taken apart.

    Example:
        >>> take_apart("<think>Hm.</think><answer>B</answer>").explicit[0].text
        'B'
    """

    body: str
    """What follows the thoughts, without markup; the thoughts themselves if nothing does."""
    unfinished: bool
    """Whether the output ends within its thoughts: only explicit announcements count then."""
    explicit: tuple[Passage, ...]
    """Tag, box; each is final where it is not empty."""
    announced: tuple[Passage, ...]
    """Tails of announcements, the last one first."""
    spare: tuple[Passage, ...]
    """A tag within the thoughts: read when nothing else is."""

    def map(self, change: Callable[[str], str]) -> Parts:
        """The parts with every text changed in the same way."""

        def each(passages: tuple[Passage, ...]) -> tuple[Passage, ...]:
            return tuple(replace(passage, text=change(passage.text)) for passage in passages)

        return Parts(
            change(self.body), self.unfinished, each(self.explicit), each(self.announced), each(self.spare)
        )


def take_apart(output: str) -> Parts:
    """Find the passages of an output that may hold its answer; linear time for any text."""
    text = _CONTROL.sub(" ", output)
    after, unfinished = _after_thoughts(text)
    explicit: list[Passage] = []
    tag = last_answer(after)
    if tag:
        explicit.append(Passage(_clean(tag), "answer_tag"))
    else:
        opened = _open_tag(after)
        if opened:
            explicit.append(Passage(_clean(opened), "open_answer_tag"))
    box = _last_box(after)
    if box:
        explicit.append(Passage(_clean(box), "boxed"))
    body = _clean(_ANSWER_TAG.sub("\n", after))
    inner = last_answer(text) if not tag else None
    spare = (Passage(_clean(inner), "answer_tag_in_thoughts"),) if inner else ()
    return Parts(body, unfinished, tuple(explicit), _announcements(body), spare)


def _after_thoughts(text: str) -> tuple[str, bool]:
    """The text after the last block of thoughts, and whether it ends inside one."""
    closed: re.Match[str] | None = None
    for match in _CLOSE_THOUGHT.finditer(text):
        closed = match
    opened = _OPEN_THOUGHT.search(text, closed.end() if closed else 0)
    if opened:
        before = text[closed.end() if closed else 0 : opened.start()]
        return (before, False) if _says(before) else (text[opened.end() :], True)
    if closed is None:
        return text, False
    after = text[closed.end() :]
    return (after, False) if _says(after) else (_OPEN_THOUGHT.sub("\n", text[: closed.start()]), True)


def _says(text: str) -> bool:
    return bool(_SPECIAL.sub("", _ANSWER_TAG.sub("", text)).strip())


def _open_tag(text: str) -> str:
    """What follows an answer tag that was never closed, or stands before one that was never opened."""
    tags = list(_ANSWER_TAG.finditer(text))
    if not tags:
        return ""
    last = tags[-1]
    if "/" not in last.group():
        cut = re.sub(r"</?\w*\s*$", "", text[last.end() :])  # the output may end within the closing tag
        return cut.strip()[:MAX_PASSAGE_CHARS]
    if len(tags) == 1:
        lines = text[: last.start()].strip().rsplit("\n", 1)
        return lines[-1].strip() if len(lines[-1]) <= MAX_PASSAGE_CHARS else ""
    return ""


def _last_box(text: str) -> str:
    r"""Contents of the last `\boxed{...}`, braces balanced; empty if there is none."""
    start = text.rfind(_BOXED)
    if start < 0:
        return ""
    rest = text[start + len(_BOXED) : start + len(_BOXED) + MAX_PASSAGE_CHARS].lstrip()
    if not rest.startswith("{"):
        return ""
    depth = 0
    for at, mark in enumerate(rest):
        depth += (mark == "{") - (mark == "}")
        if depth == 0:
            return rest[1:at].strip()
    return ""


def _clean(text: str) -> str:
    """Plain characters without markup; the middle of a very long text is left out."""
    if len(text) > HEAD_CHARS + TAIL_CHARS:
        text = f"{text[:HEAD_CHARS]}\n{text[-TAIL_CHARS:]}"
    text = _SPECIAL.sub(" ", plain_text(text))
    text = re.sub(r"[^\S\n]+", " ", _MARKDOWN.sub("", text))
    return re.sub(r" ?\n\s*", "\n", text).strip()


def _announcements(body: str) -> tuple[Passage, ...]:
    found: list[tuple[int, Passage]] = []
    for pattern, rule in ((_ANNOUNCED, "statement"), (_APPROVED, "approved")):
        for match in pattern.finditer(body):
            if _DOUBT.search(body, max(0, match.start() - 60), match.start()):
                continue
            text = (match[1] or match[2]) if rule == "approved" else _tail(body, match.end())
            ended = body[-1:] in _ENDS or "final" in match[0].lower()
            closing = ended and len(sentences(body[match.end() : match.end() + 3 * MAX_PASSAGE_CHARS])) <= 1
            found.append((match.end(), Passage(text, rule, closing)))
    found.sort(key=lambda item: item[0], reverse=True)
    return tuple(passage for _, passage in found[:_MAX_ANNOUNCED] if passage.text)


def _tail(body: str, start: int) -> str:
    """The rest of the line, or the next line where that is empty."""
    lines = body[start : start + 2 * MAX_PASSAGE_CHARS].split("\n")
    for line in lines[:3]:
        if line.strip(" :.*\"'"):
            return line.strip()[:MAX_PASSAGE_CHARS]
    return ""
