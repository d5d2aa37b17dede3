"""Rule-based verifiers: from a completion to a score, FFR eq. 4 (arXiv 2604.16243).

Two profiles. `video_r1_strict` gives the released reward to the bit, oddities included ("B." is wrong,
5 and "5.0" differ). `robust` reads answers as a person would and says why a score is not 1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ffr.config import FindConfig
from ffr.find.verify.format import first_answer, last_answer, robust_format, strict_format
from ffr.find.verify.grounding import merge_spans, read_spans, temporal_iou
from ffr.find.verify.mcq import read_choice
from ffr.find.verify.number import read_number, relative_score, same_number, strict_float
from ffr.find.verify.text import fold_words, ocr_score, rouge_mean
from ffr.types import ProblemType, Sample, Verdict

__all__ = [
    "PROFILES",
    "merge_spans",
    "read_spans",
    "temporal_iou",
    "thresholds_from",
    "verify",
]


@dataclass(frozen=True, slots=True)
class Score:
    """What one rule says of one answer.

    Example:
        >>> Score(1.0, "mcq.exact").value
        1.0
    """

    value: float
    rule: str
    reason: str = ""


Rule = Callable[[Sample, str], Score]


def thresholds_from(cfg: FindConfig) -> Mapping[ProblemType, float]:
    """Score from which a rollout counts as right, per problem type (eq. 4).

    Args:
        cfg: The find section of the configuration.

    Returns:
        1 for multiple choice and numbers, the configured values for the graded types.
    """
    return {
        ProblemType.MULTIPLE_CHOICE: 1.0,
        ProblemType.NUMERICAL: 1.0,
        ProblemType.FREE_FORM: cfg.free_form_threshold,
        ProblemType.OCR: cfg.ocr_threshold,
        ProblemType.REGRESSION: cfg.regression_threshold,
    }


_DEFAULT_THRESHOLDS = thresholds_from(FindConfig())


def verify(
    sample: Sample,
    text: str,
    *,
    profile: str = "robust",
    thresholds: Mapping[ProblemType, float] | None = None,
) -> Verdict:
    """Score one completion against the gold answer; no text makes it raise.

    Args:
        sample: The question with its gold answer.
        text: The completion, thinking and answer tags included.
        profile: `robust` or `video_r1_strict`.
        thresholds: Score per problem type from which z = 1; those of `FindConfig()` by default.

    Returns:
        Score in [0, 1], z, what was extracted, the rule that decided and the format reward.

    Raises:
        ValueError: The profile does not exist (a mistake of the caller, never of a completion).
    """
    if profile not in PROFILES:
        raise ValueError(f"unknown verifier profile {profile!r}; use one of {', '.join(PROFILES)}")
    strict = profile == "video_r1_strict"
    answer = first_answer(text) if strict else last_answer(text)
    format_score = strict_format(text) if strict else robust_format(text)
    if answer is None:
        score = Score(0.0, "extract.none", "no complete <answer>...</answer> in the completion")
    else:
        score = PROFILES[profile][sample.problem_type](sample, answer)
    limit = (_DEFAULT_THRESHOLDS if thresholds is None else thresholds).get(sample.problem_type, 1.0)
    return Verdict(
        score=score.value,
        correct=score.value >= limit,
        extracted=answer or "",
        rule=score.rule,
        format_score=format_score,
        reason=score.reason,
    )


def _strict_mcq(sample: Sample, answer: str) -> Score:
    same = answer == sample.answer.strip()
    return Score(float(same), "mcq.exact", "" if same else "not the same string as the gold letter")


def _strict_number(sample: Sample, answer: str) -> Score:
    gold = sample.answer.strip()
    if any(mark in gold for mark in ".,") != any(mark in answer for mark in ".,"):
        return Score(0.0, "number.decimal_mismatch", "only one of gold and answer has a point or comma")
    want, got = strict_float(gold), strict_float(answer)
    if want is None or got is None:
        return Score(0.0, "number.unparsable", "not a plain number")
    same = round(want, 2) == round(got, 2)
    return Score(float(same), "number.rounded", "" if same else "another number")


def _strict_ocr(sample: Sample, answer: str) -> Score:
    return Score(ocr_score(sample.answer.strip(), answer), "ocr.wer")


def _strict_free_form(sample: Sample, answer: str) -> Score:
    return Score(rouge_mean(sample.answer.strip(), answer), "text.rouge")


def _strict_regression(sample: Sample, answer: str) -> Score:
    want, got = strict_float(sample.answer.strip()), strict_float(answer)
    if want is None or got is None:
        return Score(0.0, "regression.unparsable", "not a plain number")
    return Score(relative_score(want, got), "regression.relative_error")


def _robust_mcq(sample: Sample, answer: str) -> Score:
    choice = read_choice(answer, sample.options)
    if choice.label is None:
        return Score(0.0, choice.rule, choice.reason)
    gold = sample.answer.strip()
    gold_label = gold.upper() if len(gold) == 1 else read_choice(gold, sample.options).label
    if choice.label == gold_label:
        return Score(1.0, choice.rule)
    return Score(0.0, choice.rule, f"the answer is option {choice.label}, which is wrong")


def _robust_number(sample: Sample, answer: str) -> Score:
    gold, got = read_number(sample.answer), read_number(answer)
    if gold.value is None:
        same = fold_words(sample.answer) == fold_words(answer)
        return Score(float(same), "number.as_text", "" if same else "the gold answer is no number")
    if got.value is None:
        return Score(0.0, "number.unparsable", got.reason)
    same = same_number(gold, got)
    return Score(float(same), "number.value", "" if same else f"{got.value:g} is not the gold number")


def _robust_regression(sample: Sample, answer: str) -> Score:
    gold, got = read_number(sample.answer), read_number(answer)
    if gold.value is None or got.value is None:
        return Score(0.0, "regression.unparsable", got.reason or "the gold answer is no number")
    if same_number(gold, got):
        return Score(1.0, "regression.equal")
    value = relative_score(gold.value, got.value)
    return Score(value, "regression.relative_error", "" if value == 1.0 else "off by a relative error")


def _robust_ocr(sample: Sample, answer: str) -> Score:
    gold = fold_words(sample.answer)
    if not gold:  # a gold text of punctuation only
        return _strict_ocr(sample, answer)
    value = ocr_score(gold, fold_words(answer))
    return Score(value, "ocr.folded_wer", "" if value == 1.0 else "words differ from the gold text")


def _robust_free_form(sample: Sample, answer: str) -> Score:
    gold = fold_words(sample.answer)
    if gold and gold == fold_words(answer):
        return Score(1.0, "text.exact")
    value = rouge_mean(sample.answer, answer, skip_empty_bigrams=True)
    return Score(value, "text.rouge", "" if value == 1.0 else "wording differs from the gold answer")


PROFILES: Mapping[str, Mapping[ProblemType, Rule]] = {
    "robust": {
        ProblemType.MULTIPLE_CHOICE: _robust_mcq,
        ProblemType.NUMERICAL: _robust_number,
        ProblemType.FREE_FORM: _robust_free_form,
        ProblemType.OCR: _robust_ocr,
        ProblemType.REGRESSION: _robust_regression,
    },
    "video_r1_strict": {
        ProblemType.MULTIPLE_CHOICE: _strict_mcq,
        ProblemType.NUMERICAL: _strict_number,
        ProblemType.FREE_FORM: _strict_free_form,
        ProblemType.OCR: _strict_ocr,
        ProblemType.REGRESSION: _strict_regression,
    },
}
"""Rule of each problem type, per profile."""
