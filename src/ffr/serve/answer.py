"""The `NAME:answer` alias: the student thinks, the harness that asked for a letter gets a letter.

The scorers of lmms-eval and VLMEvalKit read a bare `B`, `yes`, `Option 2` or `12.5` without fault and stumble
over thoughts and tags (docs/results/agreement.md). So the question gets the instruction that the student was
trained with, and of what it says the answer goes to `content` and the rest to `reasoning_content`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

from ffr.eval.base import Kind, Target
from ffr.eval.scorers.robust import score_robust
from ffr.types import Option

Style = Literal["video_r1", "brief", "none"]

INSTRUCTIONS: Final[dict[str, str]] = {
    "video_r1": (
        "Think about this question step by step before you answer, even where it asks for a direct answer. "
        "Give your reasoning between the <think> </think> tags, and then your final answer between the "
        "<answer> </answer> tags."
    ),
    "brief": "Think in <think></think>, answer in <answer></answer>.",
    "none": "",
}
"""Appended to the question by style: the student's own words are those of its training prompt."""
_WITHIN: Final[dict[str, str]] = {
    "choice": "Give only the single option letter within the <answer> </answer> tags.",
    "match": "Give only the name of the option, such as {name}, within the <answer> </answer> tags.",
    "yes_no": "Give only yes or no within the <answer> </answer> tags.",
    "number": "Give only the number within the <answer> </answer> tags.",
    "open": "Give your answer as text within the <answer> </answer> tags.",
}
NO_ANSWER: Final = "unanswered"
"""Content where the student gave no answer. Not empty: harnesses leave empty outputs out of their averages.
No word that a scorer could take for a letter, a number, yes or no."""

_TAGS: Final = re.compile(r"</?\s*(?:think|answer)\s*>", re.IGNORECASE)
_ANSWER: Final = re.compile(r"<\s*answer\s*>.*?(?:</\s*answer\s*>|\Z)", re.IGNORECASE | re.DOTALL)
_LETTERED: Final = re.compile(r"^[ \t]*(?:\(([A-Z])\)|([A-Z])[.):])[ \t]+(.*)$", re.MULTILINE)
_INLINE: Final = re.compile(r"['\"]?\b([A-Z])['\"]?\s*:\s*")
_NAMED: Final = re.compile(
    r"^[ \t]*((?:Option|Sentence|Caption|Description) (?:\d{1,2}|[A-Z])):(.*)$", re.MULTILINE
)
_YES_NO: Final = re.compile(r"\byes or no\b|\byes/no\b", re.IGNORECASE)
_MEASURED: Final = re.compile(
    r"\bhow many\b|\b(?:one|a|the) (?:float |single )?number\b|\bin (?:square )?(?:centi)?met(?:er|re)s\b",
    re.IGNORECASE,
)
_THOUSANDS: Final = re.compile(r"[-+]?\d{1,3}(?:,\d{3})+(?:\.\d+)?")
_MAX_READ_CHARS: Final = 100_000


@dataclass(frozen=True, slots=True)
class Said:
    """A completion in two parts.

    Example:
        >>> Said(answer="B", thoughts="It glows.", rule="answer_tag.letter").answer
        'B'
    """

    answer: str
    thoughts: str
    rule: str
    """Which rule found the answer; `none` if it is `NO_ANSWER`."""


def asked_for(question: str) -> Target:
    r"""What form of answer a question's text asks for, with its options.

    Options are lines `A. ...`, `(A) ...`, `A) ...` or `A: ...` in alphabetical order (the last such run), one
    line `{'A': '...', 'B': '...'}`, or lines `Option 1: ...` (`Sentence A`, `Caption A`).

    Example:
        >>> asked_for("Which?\nA. a dog\nB. a cat").options[1].text
        'a cat'
        >>> asked_for("Is it red? Please answer yes or no:").kind
        'yes_no'
    """
    text = question[-_MAX_READ_CHARS:]
    named = [Option(m[1], m[2].strip()) for m in _NAMED.finditer(text)]
    if len(named) > 1:
        return Target("match", "", tuple(named))
    lettered = _run([(m[1] or m[2], m[3].strip()) for m in _LETTERED.finditer(text)]) or _inline(text)
    if lettered:
        return Target("choice", "", lettered)
    kind: Kind = "open"
    if _YES_NO.search(text):
        kind = "yes_no"
    elif _MEASURED.search(text):
        kind = "number"
    return Target(kind, "")


def _run(found: Sequence[tuple[str, str]]) -> tuple[Option, ...]:
    """The last run of labels A, B, C ...; empty if there is none of two or more."""
    runs: list[list[Option]] = []
    for label, text in found:
        if label == "A":
            runs.append([])
        if runs and label == chr(ord("A") + len(runs[-1])):
            runs[-1].append(Option(label, text))
    return next((tuple(run) for run in reversed(runs) if len(run) > 1), ())


def _inline(text: str) -> tuple[Option, ...]:
    """Options of one line, `{A: a dog, B: a cat}`."""
    for line in reversed(text.split("\n")):
        marks = list(_INLINE.finditer(line))
        ends = [*(mark.start() for mark in marks[1:]), len(line)][: len(marks)]
        texts = [
            line[m.end() : end].partition("}")[0].strip(" ,'\"{.") for m, end in zip(marks, ends, strict=True)
        ]
        options = _run([(mark[1], words) for mark, words in zip(marks, texts, strict=True)])
        if options:
            return options
    return ()


def with_instruction(question: str, style: Style) -> str:
    r"""The question and how to answer it; unchanged where it asks for the tags itself.

    Example:
        >>> with_instruction("Which?", "brief")
        'Which?\nThink in <think></think>, answer in <answer></answer>.'
    """
    words = INSTRUCTIONS[style]
    if not words or "<answer>" in question:
        return question
    if style == "video_r1":
        target = asked_for(question)
        name = target.options[0].label if target.options else ""
        words += " " + _WITHIN[target.kind].format(name=name)
    return f"{question.rstrip()}\n{words}"


def bare_answer(question: str, text: str, thoughts: str = "") -> Said:
    r"""The answer of a completion as a scorer reads it best: letter, name of an option, yes or no, words.

    Args:
        question: As it was asked; it tells the form and the options.
        text: What the student wrote.
        thoughts: What a server kept apart already.

    Returns:
        The answer, or `NO_ANSWER` where none can be found (a completion that ends within its thoughts).

    Example:
        >>> bare_answer("Which?\nA. a dog\nB. a cat", "<think>Hm.</think><answer>(B) a cat</answer>").answer
        'B'
    """
    target = asked_for(question)
    # As VSI-Bench: a length in other units than the question's is converted.
    benchmark = "vsi_bench" if target.kind == "number" else ""
    found = score_robust(benchmark, target, {"question": question}, text)
    if found.failed and target.kind == "number":
        found = score_robust("", Target("open", ""), {}, text)
    answer = found.extracted.strip()
    if target.kind == "open" and _THOUSANDS.fullmatch(answer):
        answer = answer.replace(",", "")
    if found.failed or not answer:
        return Said(NO_ANSWER, thoughts or _without_tags(text), "none")
    return Said(answer, thoughts or _thoughts(text, answer), found.rule)


def _thoughts(text: str, answer: str) -> str:
    """All that was said besides the answer's tag; nothing where only the answer was said."""
    rest = _without_tags(_ANSWER.sub("", text))
    return "" if rest == answer else rest


def _without_tags(text: str) -> str:
    return _TAGS.sub("", text).strip()
