"""The profile `lmms_eval`: golden scores executed on the package; hostile outputs; linear patterns."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ffr.eval.base import EvalDataError, Target
from ffr.eval.benchmarks import PUBLIC
from ffr.eval.scorers import mmmu, score
from ffr.eval.scorers.lmms_eval import score_lmms_eval, strip_reasoning
from ffr.eval.scorers.lmms_numbers import first_number
from ffr.eval.scorers.shared import NO_TASK

TEXTS = ("a wooden spoon", "the red cup", "a blue box", "the door", "an apple")
LINES = [f"{letter}. {text}" for letter, text in zip("ABCDE", TEXTS, strict=True)]
CHOICES = dict(zip("ABCDE", TEXTS, strict=True))
GOLD_B = {
    "mmvu": {
        "id": "1",
        "question": "q",
        "question_type": "multiple-choice",
        "choices": CHOICES,
        "answer": "B",
    },
    "vsi_bench": {
        "question_type": "object_rel_distance",
        "question": "q",
        "options": LINES[:4],
        "ground_truth": "B",
    },
    "video_mmmu": {
        "id": "validation_Art_1",
        "question": "q",
        "question_type": "multiple-choice",
        "options": list(TEXTS),
        "answer": "B",
    },
    "video_holmes": {
        "video ID": "v",
        "Question": "q",
        "Question Type": "SR",
        "Options": CHOICES | {"F": "nobody"},
        "Answer": "B",
    },
    "longvideobench": {"id": "v_0", "question": "q", "candidates": list(TEXTS), "correct_choice": 1},
    "lvbench": {"uid": "1", "question": "q\n(A) a\n(B) b\n(C) c\n(D) d", "answer": "B"},
    "mvbench": {"question": "q", "candidates": list(TEXTS[:4]), "answer": TEXTS[1]},
    "tempcompass": {"question": "q\n" + "\n".join(LINES[:4]), "answer": LINES[1], "dim": "action"},
}
VSI_NUMBER = {
    "question_type": "object_counting",
    "question": "How many?",
    "options": None,
    "ground_truth": "10",
}
HOSTILE = {
    "nulls": "\0" * 50_000,
    "digits": "1" * 100_000,
    "digits and a letter": "1" * 50_000 + "x" + "-" * 50_000,
    "open tags": "<think>" * 14_000,
    "closed tags": "<think></think>" * 6_000,
    "answer tags": "<answer>" * 12_000,
    "answers A": "<answer>A" * 11_000,
    "stars": "*" * 100_000,
    "blanks": "answer" + " " * 99_000 + "x\ny",
    "item and blanks": "a." + " " * 99_000 + "x\ny",
    "brackets": "[" * 50_000 + "]" * 50_000,
    "minus signs": "[" + "-" * 99_000 + "1]",
    "big O": "O(" * 50_000,
    "hundreds": "hundred " * 12_000,
    "dots": "." * 100_000,
    "other alphabets": "\u7b54\u6848\u662f \u0410 \U0001f600 \u202e \ud800" * 5_000,
    "commas": "1,234" * 20_000,
}


def lmms(benchmark, output, record=None):
    return score(benchmark, record or GOLD_B[benchmark], output, profile="lmms_eval")


# Rows and columns of the table in reference/benchmarks.md, section 3, gold B; `judge`, `random` are notes.
@pytest.mark.parametrize(
    ("output", "expected"),
    [
        ("B", "1 1 1 1 1 1 1 1"),
        ("B. the red cup", "1 1 1 1 1 1 1 1"),
        ("<think>It is red.</think><answer>B</answer>", "1 0 1 random 1 1 1 judge"),
        ("First, a man opens a box. Final Answer: B", "1 0 1 1 0 1 0 judge"),
        ("<think>First, a man opens", "0 0 0 random random 0 0 judge"),
        ("", "0 0 0 random random 0 0 judge"),
    ],
)
def test_styles_of_output_score_as_the_package_scores_them(output, expected):
    said = []
    for benchmark in PUBLIC:
        result = lmms(benchmark, output)
        note = {"random_in_harness": "random", "needs_judge": "judge"}.get(result.note)
        said.append(note or str(int(result.value)))
        assert (result.rule == "none") == (result.extracted == ""), benchmark
    assert " ".join(said) == expected


def test_an_empty_output_leaves_the_averages_of_mvbench_and_of_open_videommmu_only():
    assert lmms("mvbench", " ").note == "dropped_by_harness"
    assert lmms("lvbench", " ").note == ""
    open_row = {
        "id": "validation_Art_1",
        "question": "q",
        "options": [],
        "answer": "4",
        "question_type": "open",
    }
    assert lmms("video_mmmu", "", open_row).note == "dropped_by_harness"
    assert lmms("video_mmmu", "API Error", open_row).note == "dropped_by_harness"
    assert lmms("video_mmmu", "", GOLD_B["video_mmmu"]).note == ""


# pred, MRA for gold 10: executed on the official expression (reference/benchmarks.md, section 2.2).
@pytest.mark.parametrize(
    ("output", "value"),
    [("10", 1.0), ("10.5", 1.0), ("11", 0.9), ("9", 0.9), ("12", 0.6), ("15", 0.1), ("5", 0.1), ("16", 0.0)],
)
def test_numbers_score_the_authors_accuracy(output, value):
    assert lmms("vsi_bench", output, VSI_NUMBER).value == value


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("2,500", 2.0),
        ("2 or 3", 2.0),
        ("One apple, room 2", 1.0),
        ("twenty-one", 21.0),
        ("three hundred and twenty-one", 321.0),
        ("two thousand and six", 2006.0),
        ("hundred", 100.0),
        ("there and here", None),
        ("one and a half", 1.0),
        ("1-3", 1.0),
        ("", None),
    ],
)
def test_the_first_number_in_digits_or_words(text, number):
    assert first_number(text) == number


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("<think>a</think> B", "B"),
        ("a</think>b</think> C", "C"),
        ("<think>a", "<think>a"),
        ("</think>a<think>", "</think>a<think>"),
        ("<analysis>x</analysis>B", "B"),
        ("<thinking>x</thinking>B", "<thinking>x</thinking>B"),
        ("<think>a<think>b</think>c</think>", ""),
        ("<THINK>a</THINK>", "<THINK>a</THINK>"),
    ],
)
def test_thoughts_are_cut_out_as_its_default_tags_do(text, left):
    assert strip_reasoning(text) == left


def test_the_tags_of_section_0_leave_the_bare_answer():
    tags = (("<think>", "<answer>"), ("</answer>", "</answer>"))
    assert strip_reasoning("<think>so</think><answer>B</answer>", tags) == "B"


def test_authors_rows_without_a_question_type_count_as_choices_only_in_their_tracks():
    row = {k: v for k, v in GOLD_B["video_mmmu"].items() if k != "question_type"}
    assert lmms("video_mmmu", "(B) the red cup", row).rule == "open"
    assert lmms("video_mmmu", "(B) the red cup", row | {"track": "Perception"}).rule == "parentheses"
    assert (
        lmms("video_mmmu", "(B) the red cup", row | {"question_type": None, "track": "Adaptation"}).value == 0
    )


def test_a_benchmark_without_a_task_says_so():
    result = score_lmms_eval("microworld", Target("choice", "B"), {}, "B")
    assert (result.value, result.rule, result.note) == (0.0, "none", NO_TASK)


def test_a_malformed_caption_matching_row_names_the_field():
    row = {
        "question": "Which?\nOption 1: a dog\nnothing",
        "answer": "Option 1: a dog",
        "task": "caption_matching",
    }
    with pytest.raises(EvalDataError, match=r"tempcompass.*question.*official file"):
        score_lmms_eval("tempcompass", Target("match", row["answer"]), row, "1")


@pytest.mark.parametrize("profile", ["lmms_eval", "vlmevalkit"])
@pytest.mark.parametrize("output", HOSTILE.values(), ids=HOSTILE)
def test_hostile_outputs_get_a_score_in_linear_time(profile, output):
    # The suite's timeout is the bound: a quadratic pattern takes minutes on these.
    open_mmvu = GOLD_B["mmvu"] | {"question_type": "open-ended", "answer": "O(n^2)", "choices": {}}
    open_mmmu = {"id": "v", "question": "q", "options": [], "answer": "4", "question_type": "open"}
    rows = [*GOLD_B.items(), ("vsi_bench", VSI_NUMBER), ("mmvu", open_mmvu), ("video_mmmu", open_mmmu)]
    for benchmark, record in rows:
        result = score(benchmark, record, output, profile=profile)
        assert 0.0 <= result.value <= 1.0
        assert len(result.extracted) <= 200


# MMMU's own patterns, quadratic in the length of a run of digits; ours must find the same.
PLAIN_PATTERNS = (
    r"-?\b\d{1,3}(?:,\d{3})+\b",
    r"-?\d+(?:\.\d+)?[eE][+-]?\d+",
    r"-?(?:\d+\.\d+|\.\d+|\d+\b)(?![eE][+-]?\d+)(?![,\d])",
)


@given(st.text(st.sampled_from("0123456789.,eE+- xX_\u0663"), max_size=24))
def test_numbers_are_those_of_the_plain_patterns(text):
    assert mmmu.numbers(text) == [n for pattern in PLAIN_PATTERNS for n in re.findall(pattern, text)]


@pytest.mark.parametrize(
    ("gold", "output", "right"),
    [
        ("4", "4 or 5 isomers", True),
        ("12.97", "The total is 12.971 g", True),
        ("A", "The answer is A", True),
        ("A", "Apples", False),
        ("1,200", "= 1200", True),
        ("x", "so = 3", False),
    ],
)
def test_open_answers_by_mmmus_rules(gold, output, right):
    assert (mmmu.open_match(gold, mmmu.open_candidates(output)) is not None) is right
