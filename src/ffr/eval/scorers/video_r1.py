"""Video-R1's evaluation script: the first answer tag (else the whole text), compared as strings.

`B.` and `(B)` are wrong for B, 360 and 360.0 differ, free-form and OCR answers always score 0: that is the
comparison behind the published tables of Video-R1 (arXiv 2503.21776), VideoRFT and FFR (arXiv 2604.16243).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from ffr.eval.base import Score, Target
from ffr.eval.scorers.shared import found, nothing
from ffr.eval.scorers.vsi import strict_mra
from ffr.find.verify import PROFILES
from ffr.find.verify.format import first_answer
from ffr.find.verify.number import strict_float
from ffr.types import ProblemType, Sample

NOT_IN_VIDEO_R1: Final = "not_in_video_r1"
"""Their files hold no such question; the type that comes nearest decides."""
NO_TAG: Final = "no_answer_tag"
_SHORT_CHARS: Final = 32
_RULES: Final = PROFILES["video_r1_strict"]


def score_video_r1(benchmark: str, target: Target, record: Mapping[str, Any], output: str) -> Score:
    """The score of Video-R1's `reward_fn` in its evaluation, to the bit.

    Args:
        benchmark: Decides what a number is: `regression` for VSI-Bench, else `numerical`.
        target: The gold answer.
        record: Read for `problem_type` where it is a row of Video-R1's own.
        output: The model's whole text.

    Returns:
        The score. Without a tag the whole text is the answer; if that is more than a few characters and
        wrong, nothing was extracted.
    """
    kind, note = problem_type(benchmark, target)
    if benchmark in ("video_r1", "microworld"):
        kind, note = ProblemType(str(record.get("problem_type", kind))), ""
    tagged = first_answer(output)
    answer = tagged or output
    value = _value(kind, target.answer, answer.strip())
    if not tagged and value == 0.0 and len(answer.strip()) > _SHORT_CHARS:
        return nothing(note or NO_TAG)
    where = "answer_tag" if tagged else "whole"
    return found(value, answer, f"{where}.{kind.name.lower()}", note) if answer.strip() else nothing(note)


def problem_type(benchmark: str, target: Target) -> tuple[ProblemType, str]:
    """What Video-R1's files call such a question, and a note where they hold none."""
    if target.kind == "choice":
        return ProblemType.MULTIPLE_CHOICE, ""
    if target.kind == "number":
        return (ProblemType.REGRESSION if benchmark == "vsi_bench" else ProblemType.NUMERICAL), ""
    if target.kind in ("yes_no", "match"):
        return ProblemType.MULTIPLE_CHOICE, NOT_IN_VIDEO_R1
    if benchmark == "video_mmmu":
        # Their copy of the open questions: 18 numerical ones, and 2 whose gold is a letter.
        if len(target.answer.strip()) == 1 and target.answer.strip().isalpha():
            return ProblemType.MULTIPLE_CHOICE, ""
        if strict_float(target.answer) is not None:
            return ProblemType.NUMERICAL, ""
    return ProblemType.FREE_FORM, NOT_IN_VIDEO_R1


def _value(kind: ProblemType, gold: str, answer: str) -> float:
    if kind in (ProblemType.FREE_FORM, ProblemType.OCR):
        return 0.0
    if kind is ProblemType.REGRESSION:
        want, got = strict_float(gold.strip()), strict_float(answer)
        return 0.0 if want is None or got is None else strict_mra(got, want)
    sample = Sample("", "", gold, kind, Path())
    return _RULES[kind](sample, answer).value
