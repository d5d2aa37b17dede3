"""Rule matching of TempCompass, shared by its own scripts and both harnesses.

A rule either rates an output (right or wrong) or does not apply; the authors then ask GPT-3.5. The share
of outputs that a rule rates is their match-success rate. Source: https://github.com/llyx97/TempCompass.
"""

from __future__ import annotations

from collections.abc import Iterable

from ffr.eval.base import EvalDataError, Kind, Score

_LETTERS = ("A", "B", "C", "D")


def rule_rating(kind: Kind, question: str, answer: str, output: str) -> tuple[bool, str] | None:
    """Whether an output is right by the rules, and what of it they read; None if no rule applies.

    Args:
        kind: `choice` (multi-choice), `yes_no`, `match` (caption matching); a `caption` has no rule.
        question: As in the official file, options included.
        answer: As in the official file (`B. a dog`, `yes`, `Option 2: a dog runs.`).
        output: What the model said; not stripped here.

    Raises:
        EvalDataError: If the options of a caption matching question have no `name: sentence` form.
    """
    if kind == "choice":
        return _choice(answer, output)
    if kind == "yes_no":
        said = next((word for word in ("yes", "no") if output.lower().startswith(word)), None)
        return None if said is None else (said == answer, said)
    if kind == "match":
        return _match(question, answer, output)
    return None


def match_success_rate(scores: Iterable[Score]) -> float:
    """Share of outputs in [0, 1] that a rule could rate; 0 for no scores."""
    rated = [score.note != "needs_judge" for score in scores]
    return sum(rated) / len(rated) if rated else 0.0


def _choice(answer: str, output: str) -> tuple[bool, str] | None:
    if output == answer:
        return True, answer[:1]
    if output in _LETTERS or output[:2] in {f"{c}{end}" for c in _LETTERS for end in ".)"}:
        return output[0] == answer[:1], output[0]
    return None


def _match(question: str, answer: str, output: str) -> tuple[bool, str] | None:
    options = question.split("\n")[1:]
    if not all(": " in option for option in options):
        raise EvalDataError(
            f"tempcompass: field 'question' has a line that is no 'name: sentence' ({question!r:.120}); "
            "give the row as the official file has it"
        )
    names = [option.split(": ")[0] for option in options]
    short = [_short_name(name) for name in names]
    said: str | None = None
    if output in options:
        said = output
    for option in options:
        sentence = option.split(": ")[1]
        if sentence == output or (") " in output and sentence == output.split(") ")[1]):
            said = sentence
    for name in (*names, *short):
        if name in (output, output.replace(".", "")):
            said = name
    if said is None:
        return None
    head = answer.split(": ")[0]
    right = (answer, answer.split(":")[0], *answer.split(": ")[1:2], *head.split()[1:2])
    return said in right, said


def _short_name(name: str) -> str:
    for word in ("Sentence ", "Option ", "Caption "):
        name = name.replace(word, "")
    return name
