"""Both verifier profiles: golden tables, agreement with plain reference code, and hostile texts."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ffr.config import FindConfig
from ffr.find import thresholds_from, verify
from ffr.find.verify import read_spans, temporal_iou
from ffr.find.verify.format import first_answer, robust_format, strict_format
from ffr.find.verify.text import common_length, edit_distance, rouge_mean
from ffr.types import Option, ProblemType, Sample

HERE = Path(__file__).parent
STRICT = json.loads((HERE / "strict_cases.json").read_text())
ROBUST = json.loads((HERE / "robust_cases.json").read_text())
OPTIONS = (Option("A", "red"), Option("B", "dark blue"), Option("C", "the cube"), Option("D", "a sphere"))


def make_sample(kind: str, gold: str) -> Sample:
    options = OPTIONS if kind == "multiple choice" else ()
    return Sample("t/1", "Which one?", gold, ProblemType(kind), Path("clip.mp4"), options)


def wrap(answer: str) -> str:
    return f"<think>look</think><answer>{answer}</answer>"


@pytest.mark.parametrize(("kind", "gold", "answer", "score"), STRICT["cases"])
def test_strict_golden(kind: str, gold: str, answer: str, score: float) -> None:
    verdict = verify(make_sample(kind, gold), wrap(answer), profile="video_r1_strict")
    assert verdict.score == pytest.approx(score, abs=1e-9)
    assert verdict.format_score == 1.0


@pytest.mark.parametrize(("text", "score"), STRICT["format"])
def test_strict_format_golden(text: str, score: float) -> None:
    assert strict_format(text) == score


@pytest.mark.parametrize(("kind", "gold", "answer", "score", "rule"), ROBUST["cases"])
def test_robust_golden(kind: str, gold: str, answer: str, score: float, rule: str) -> None:
    verdict = verify(make_sample(kind, gold), wrap(answer))
    assert (verdict.score, verdict.rule) == (pytest.approx(score, abs=1e-6), rule)
    assert bool(verdict.reason) == (verdict.score < 1.0)


def test_first_and_last_answer() -> None:
    text = "<answer>A</answer> no, wait <ANSWER> B </ANSWER> and <answer>C"
    assert verify(make_sample("multiple choice", "A"), text, profile="video_r1_strict").score == 1.0
    verdict = verify(make_sample("multiple choice", "B"), text)
    assert (verdict.score, verdict.extracted) == (1.0, "B")
    assert verify(make_sample("multiple choice", "B"), "B").rule == "extract.none"


def test_threshold_decides_correct() -> None:
    sample = make_sample("free-form", "the red ball")
    assert verify(sample, wrap("red ball")).correct
    assert not verify(sample, wrap("red ball"), thresholds={ProblemType.FREE_FORM: 0.8}).correct
    assert not verify(sample, wrap("red ball"), thresholds={}).correct  # 1.0 where nothing is said
    limits = thresholds_from(FindConfig(ocr_threshold=0.7))
    assert limits[ProblemType.OCR] == 0.7
    assert limits[ProblemType.MULTIPLE_CHOICE] == limits[ProblemType.NUMERICAL] == 1.0
    assert set(limits) == set(ProblemType)


def test_perfect_regression_is_correct_in_strict() -> None:
    verdict = verify(make_sample("regression", "10"), wrap("10"), profile="video_r1_strict")
    assert verdict.correct and verdict.score < 1.0


def test_unknown_profile_is_the_callers_mistake() -> None:
    with pytest.raises(ValueError, match="video_r1_strict"):
        verify(make_sample("OCR", "x"), "y", profile="strict")


def test_embedded_options_compare_letters() -> None:
    sample = Sample("t/1", "Which?\nA. red\nB. blue", "B", ProblemType.MULTIPLE_CHOICE, Path("c.mp4"))
    assert verify(sample, wrap("(b)")).correct
    assert not verify(sample, wrap("blue")).correct


def test_duplicate_option_texts_are_ambiguous() -> None:
    options = (Option("A", "red"), Option("B", "Red"))
    sample = Sample("t/1", "Which?", "A", ProblemType.MULTIPLE_CHOICE, Path("c.mp4"), options)
    assert verify(sample, wrap("red")).rule == "mcq.ambiguous"
    assert verify(sample, wrap("A")).correct


@pytest.mark.parametrize(
    ("text", "score"),
    [
        (" <think>a</think>\n<answer>B</answer>\n", 1.0),
        ("<think>a</think><answer>A</answer><answer>B</answer>", 0.0),
        ("<think><think>a</think><answer>B</answer>", 0.0),
        ("<answer>B</answer>", 0.0),
    ],
)
def test_robust_format(text: str, score: float) -> None:
    assert robust_format(text) == score


pieces = st.lists(
    st.sampled_from(["<think>", "</think>", "<answer>", "</answer>", " ", "\n", "B", "x", "\u00a0", "\x1c"]),
    max_size=9,
).map("".join)


@settings(max_examples=400, deadline=None)
@given(pieces)
def test_tags_agree_with_the_released_expressions(text: str) -> None:
    pattern = r"<think>.*?</think>\s*<answer>.*?</answer>"
    assert strict_format(text) == float(bool(re.fullmatch(pattern, text, re.DOTALL)))
    match = re.search(r"<answer>\s*(.*?)\s*</answer>", text, re.DOTALL)
    assert first_answer(text) == (match.group(1).strip() if match else "")


def plain_edit_distance(a: list[str], b: list[str]) -> int:
    row = list(range(len(b) + 1))
    for i, left in enumerate(a, 1):
        last, row[0] = row[0], i
        for j, right in enumerate(b, 1):
            last, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, last + (left != right))
    return row[-1]


def plain_lcs(a: list[str], b: list[str]) -> int:
    table = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
    for i, left in enumerate(a):
        for j, right in enumerate(b):
            table[i + 1][j + 1] = table[i][j] + 1 if left == right else max(table[i][j + 1], table[i + 1][j])
    return table[-1][-1]


words = st.lists(st.sampled_from(list("abcd")), max_size=12)


@settings(max_examples=200, deadline=None)
@given(words, words)
def test_bit_parallel_programmes_are_exact(a: list[str], b: list[str]) -> None:
    assert edit_distance(a, b) == plain_edit_distance(a, b)
    assert common_length(a, b) == plain_lcs(a, b)


@settings(max_examples=60, deadline=None)
@given(st.text("ab cdrunsing.\u00e9", max_size=60), st.text("ab cdrunsing.\u00e9", max_size=60))
def test_rouge_agrees_with_rouge_score(reference: str, hypothesis: str) -> None:
    from rouge_score.rouge_scorer import RougeScorer

    scores = RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=True).score(reference, hypothesis)
    expected = sum(score.fmeasure for score in scores.values()) / 3
    assert rouge_mean(reference, hypothesis) == pytest.approx(expected, abs=1e-12)


kinds = st.sampled_from([str(kind) for kind in ProblemType])


@settings(max_examples=300, deadline=None)
@given(
    kinds, st.text(max_size=20), st.text(max_size=80) | pieces, st.sampled_from(["robust", "video_r1_strict"])
)
def test_no_text_raises(kind: str, gold: str, text: str, profile: str) -> None:
    for completion in (text, wrap(text)):
        verdict = verify(make_sample(kind, gold), completion, profile=profile)
        assert 0.0 <= verdict.score <= 1.0
        assert verdict.format_score in (0.0, 1.0)
        assert verdict.rule.count(".") == 1


@pytest.mark.parametrize("profile", ["robust", "video_r1_strict"])
@pytest.mark.parametrize("kind", [str(kind) for kind in ProblemType])
@pytest.mark.timeout(20)
def test_hostile_lengths_end(kind: str, profile: str) -> None:
    texts = [
        "<answer>" * 12_500,
        "<think>" + "</think><answer>" * 6_000,
        "</think>" + " " * 100_000,
        wrap("a" * 100_000),
        wrap("word " * 20_000),
        wrap("1," * 50_000),
        wrap("{" * 100_000),
        wrap("the answer is " * 7_000),
        wrap("(A " * 30_000),
        wrap("\\boxed{" * 14_000),
    ]
    sample = make_sample(kind, "word " * 400)
    results: list[Any] = [verify(sample, text, profile=profile) for text in texts]
    assert all(0.0 <= verdict.score < 1.0 for verdict in results)


def test_spans_and_overlap() -> None:
    assert read_spans("from 3.5 to 7 s, then 1:05-1:10") == ((3.5, 7.0), (65.0, 70.0))
    assert read_spans("nothing here, 7 to 3") == ()
    assert temporal_iou([(0, 4), (2, 6)], [(3, 9)]) == pytest.approx(3 / 9)
    assert temporal_iou([(1, 1)], [(1, 1)]) == 0.0
    assert temporal_iou([(0, float("inf"))], [(0, 1)]) == 0.0
