"""What a scorer needs of a row: the hub's variants of the official shapes, and malformed records."""

import pytest

from ffr.eval.base import EvalDataError
from ffr.eval.benchmarks import BENCHMARKS, get_benchmark
from ffr.types import Option

MALFORMED = [
    ("mmvu", {"question": "q", "choices": {"A": "x"}, "question_type": "multiple-choice"}, "answer"),
    ("mmvu", {"question": "q", "choices": {"A": "x"}, "answer": "C"}, "answer"),
    ("mmvu", {"question": "q", "question_type": "essay", "answer": "C"}, "question_type"),
    (
        "vsi_bench",
        {"question": "q", "question_type": "object_counting", "ground_truth": "many"},
        "ground_truth",
    ),
    ("vsi_bench", {"question": "q", "question_type": "route_planning", "ground_truth": "A"}, "ground_truth"),
    ("vsi_bench", {"question": "q", "question_type": "dancing", "ground_truth": "4"}, "question_type"),
    ("video_mmmu", {"id": "a", "question": "q", "options": "A. x", "answer": "A"}, "options"),
    ("video_mmmu", {"id": "a", "question": "q", "options": []}, "answer"),
    ("video_holmes", {"Question": "q", "Options": {"AB": "x"}, "Answer": "A"}, "Options"),
    (
        "video_holmes",
        {"Question": "q", "Options": {"A": "x"}, "Question Type": "XX", "Answer": "A"},
        "Question Type",
    ),
    ("longvideobench", {"question": "q", "candidates": ["x", "y"], "correct_choice": 2}, "correct_choice"),
    ("longvideobench", {"question": "q", "candidates": ["x", "y"]}, "correct_choice"),
    ("longvideobench", {"question": "q", "correct_choice": 0}, "candidates"),
    ("lvbench", {"question": "no options", "answer": "A", "question_type": []}, "question"),
    ("lvbench", {"question": "q\n(A) x\n(B) y", "answer": "E", "question_type": []}, "answer"),
    ("mvbench", {"question": "q", "candidates": ["x", "y"], "answer": "z"}, "answer"),
    ("mvbench", {"question": "q", "answer": "z"}, "candidates"),
    ("tempcompass", {"question": "q", "answer": "maybe", "task": "yes_no"}, "answer"),
    ("tempcompass", {"question": "q", "answer": "A. x", "task": "dance"}, "task"),
    ("tempcompass", {"question": "q", "answer": "A. x"}, "question"),
    ("video_r1", {"problem": "q", "problem_type": "poem", "solution": "x"}, "problem_type"),
    ("video_r1", {"problem": "q", "problem_type": "numerical", "solution": "<answer> </answer>"}, "solution"),
    (
        "microworld",
        {"problem": "q", "problem_type": "multiple choice", "options": ["x"], "solution": "B"},
        "solution",
    ),
]


@pytest.mark.parametrize(("name", "record", "field"), MALFORMED)
def test_a_malformed_record_names_its_field(name, record, field):
    with pytest.raises(EvalDataError, match=rf"{name}: field '{field}'"):
        get_benchmark(name).target(record)


@pytest.mark.parametrize("name", BENCHMARKS)
@pytest.mark.parametrize("record", [{}, {"answer": None}, [], "text", None, {"question": 7, "answer": True}])
def test_any_other_record_is_an_error_of_ours(name, record):
    with pytest.raises(EvalDataError, match=name):
        get_benchmark(name).target(record)


AB = (Option("A", "x"), Option("B", "y"))
HUB_SHAPES = [
    # lmms-eval's mirrors fill absent letters of an object with nulls
    (
        "mmvu",
        {
            "question": "q",
            "question_type": "multiple-choice",
            "choices": {"A": "x", "B": "y", "C": None},
            "answer": "B",
        },
        "choice",
        "B",
        AB,
    ),
    (
        "mmvu",
        {
            "question": "q",
            "question_type": "open-ended",
            "choices": dict.fromkeys("ABCDE", ""),
            "answer": "Dolly",
        },
        "open",
        "Dolly",
        (),
    ),
    (
        "vsi_bench",
        {"question": "q", "question_type": "object_counting", "options": None, "ground_truth": 4},
        "number",
        "4",
        (),
    ),
    ("vsi_bench", {"question": "q", "options": ["A. x", "B. y"], "ground_truth": "B"}, "choice", "B", AB),
    (
        "video_mmmu",
        {"id": "a", "question": "q", "options": ["x", "y"], "answer": "A", "question_type": "None"},
        "choice",
        "A",
        AB,
    ),
    (
        "video_holmes",
        {"Question": "q", "Options": {"B": "y", "A": "x", "F": None}, "Answer": "B"},
        "choice",
        "B",
        AB,
    ),
    (
        "longvideobench",
        {"question": "q", "option0": "x", "option1": "y", "option2": "N/A", "correct_choice": 1},
        "choice",
        "B",
        AB,
    ),
    (
        "lvbench",
        {"question": "q", "options": ["x", "y"], "answer": "A", "video_path": "a.mp4"},
        "choice",
        "A",
        AB,
    ),
    ("mvbench", {"question": "q", "candidates": ["x", "y"], "answer": " Y "}, "choice", "B", AB),
    (
        "tempcompass",
        {"video_id": "1", "question": "q\nA. x\nB. y", "answer": "B. y", "dim": "speed"},
        "choice",
        "B",
        AB,
    ),
    ("tempcompass", {"question": "q\nA. x\nB. y", "gt-answer": "B. y", "rating": 1}, "choice", "B", AB),
    ("tempcompass", {"video_id": "1", "question": "q", "answer": "Yes", "dim": "speed"}, "yes_no", "yes", ()),
    (
        "tempcompass",
        {"question": "q\nCaption A: x\nCaption B: y", "answer": "Caption B: y"},
        "match",
        "Caption B: y",
        (Option("Caption A", "x"), Option("Caption B", "y")),
    ),
    (
        "tempcompass",
        {"question": "q", "answer": "x", "mc_question": "w\nA. x\nB. y", "mc_answer": "A. x"},
        "caption",
        "A. x",
        AB,
    ),
    (
        "video_r1",
        {"problem": "q", "problem_type": "regression", "options": None, "solution": "<answer>1.5</answer>"},
        "number",
        "1.5",
        (),
    ),
    (
        "video_r1",
        {
            "problem": "q\nOptions:\nA. x\nB. y",
            "problem_type": "multiple choice",
            "solution": "<answer>B</answer>",
        },
        "choice",
        "B",
        AB,
    ),
]


@pytest.mark.parametrize(("name", "record", "kind", "answer", "options"), HUB_SHAPES)
def test_targets_of_the_hubs_shapes(name, record, kind, answer, options):
    target = get_benchmark(name).target(record)
    assert (target.kind, target.answer, target.options) == (kind, answer, options)


def test_a_broken_gold_of_video_mmmu_has_its_answers_apart():
    target = get_benchmark("video_mmmu").target(
        {"id": "a", "question": "q", "options": [], "answer": "['24/7', '3.429', '3.43]"}
    )
    assert target.answer == "['24/7', '3.429', '3.43]"
    assert target.accepted == ("24/7", "3.429", "3.43")
    listed = get_benchmark("video_mmmu").target({"question": "q", "options": [], "answer": ["5", "five"]})
    assert (listed.answer, listed.accepted) == ("5", ("five",))


def test_options_may_have_several_lines():
    question = "A. b.?\n(A) first\nline\n(B) second"
    target = get_benchmark("lvbench").target({"question": question, "answer": "B"})
    assert target.options == (Option("A", "first\nline"), Option("B", "second"))
