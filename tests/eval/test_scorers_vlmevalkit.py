"""The profile `vlmevalkit`: golden scores by its rules without a judge."""

from __future__ import annotations

import pytest

from ffr.eval.scorers import score
from ffr.eval.scorers.shared import NO_TASK
from ffr.eval.scorers.tempcompass import match_success_rate
from ffr.eval.scorers.vlm_letters import inferred, spatial_letter
from ffr.eval.scorers.vlm_numbers import spatial_number

TEXTS = ("a wooden spoon", "the red cup", "a blue box", "the door")
OPTIONS = dict(zip("ABCD", TEXTS, strict=True))
MVBENCH = {"question": "q", "candidates": list(TEXTS), "answer": TEXTS[1]}
HOLMES = {
    "video ID": "v",
    "Question": "q",
    "Question Type": "SR",
    "Options": OPTIONS | {"E": "an apple", "F": "nobody"},
    "Answer": "C",
}
LONG = {"id": "v_0", "question": "q", "candidates": list(TEXTS), "correct_choice": 2}
MMMU = {"id": "1", "question": "q", "question_type": "multiple-choice", "options": list(TEXTS), "answer": "C"}
OPEN = {"id": "1", "question": "q", "question_type": "open", "options": [], "answer": "12.97"}
COUNT = {"question_type": "object_counting", "question": "q", "options": None, "ground_truth": "10"}
MATCH = {
    "question": "Which fits?\nOption 1: The ball grows.\nOption 2: The ball shrinks.",
    "answer": "Option 2: The ball shrinks.",
    "dim": "action",
}


def vlm(benchmark, record, output):
    return score(benchmark, record, output, profile="vlmevalkit")


@pytest.mark.parametrize(
    ("output", "value", "rule"),
    [
        ("B", 1, "first_word"),
        ("(b) the red cup", 1, "first_word"),
        (".", 1, "first_word"),  # nothing is left of it, and nothing is inside "(b)"
        ("It must be B", 1, "only_letter"),
        ("B is what I would say here, I think", 1, "first_word"),
        ("Option B is what I would say here", 0, "none"),  # the letter is not among the last four words
        ("the red cup", 1, "option_text"),
        ("A spoon or B", 0, "none"),
        ("Cannot determine the answer", 0, "refusal"),
        ("A", 0, "only_letter"),
    ],
)
def test_mvbench_takes_the_first_word_else_the_only_letter_or_text(output, value, rule):
    result = vlm("mvbench", MVBENCH, output)
    assert (result.value, result.rule) == (value, rule)


@pytest.mark.parametrize("output", ["", "Failed to obtain answer via API."])
def test_mvbench_counts_missing_and_failed_answers_as_right(output):
    result = vlm("mvbench", MVBENCH, output)
    assert (result.value, result.extracted, result.note) == (1.0, "", "counted_right_by_harness")


@pytest.mark.parametrize(
    ("output", "value", "extracted"),
    [
        ("<answer>C</answer>", 1, "C"),
        ("C", 0, ""),
        ("<answer>C. Deceived by A person</answer>", 0, "A"),
        ("<answer>A</answer> no, <answer> C: the box </answer>", 1, "C"),
        ("<answer>C", 0, ""),
    ],
)
def test_video_holmes_needs_its_tags_and_prefers_earlier_letters(output, value, extracted):
    result = vlm("video_holmes", HOLMES, output)
    assert (result.value, result.extracted) == (value, extracted)


@pytest.mark.parametrize(
    ("output", "value", "extracted"),
    [
        ("Answer: C", 1, "C"),
        ("Best answer: C", 0, "B"),  # this prefix is joined to the next one there
        ("<think>Because</think>C", 0, "B"),
        ("the third", 0, ""),
    ],
)
def test_longvideobench_takes_the_first_capital_and_never_draws(output, value, extracted):
    result = vlm("longvideobench", LONG, output)
    assert (result.value, result.extracted, result.note) == (value, extracted, "")


@pytest.mark.parametrize(
    ("record", "output", "value", "note"),
    [
        (MMMU, "Answer: C", 1, ""),
        (MMMU, "A is wrong.\nAnswer: (C)", 1, ""),
        (MMMU, "<answer>C</answer>", 0, ""),
        (MMMU, "", 0, "dropped_by_harness"),
        (MMMU, "It is C. Answer:", 0, "dropped_by_harness"),
        (OPEN, "Answer: 12.971", 1, ""),
        (OPEN, "Answer: 13", 0, ""),
        (OPEN, "API Error", 0, "dropped_by_harness"),
    ],
)
def test_video_mmmu_reads_behind_the_last_answer_and_drops_empty_ones(record, output, value, note):
    result = vlm("video_mmmu", record, output)
    assert (result.value, result.note) == (value, note)


@pytest.mark.parametrize(
    ("output", "letter", "rule"),
    [
        ("B", "B", "last_lines"),
        ("<think>A, or C</think><answer>B. the cup</answer>", "B", "answer_tag.letter"),
        ("<answer>because</answer>", "B", "answer_tag.letter"),
        ("so it is (C)</answer>", "C", "before_closing_tag"),
        ("A dog? No.\n**D**", "D", "last_lines"),
        ("Option A: a dog\nOption B: a cat\nB) a cat", "B", "last_lines"),
        ("A or B\nthe answer is b because", "B", "phrase"),
        ("\u7b54\u6848\u662fC\u5427", "C", "only_letter"),
        ("the answer is" + " " * 5_000 + "a thing", "A", "phrase"),
        ("no idea", "", "none"),
        ("A B C", "", "none"),
    ],
)
def test_letters_of_vsi_bench(output, letter, rule):
    assert spatial_letter(output) == (letter, rule)


@pytest.mark.parametrize(
    ("output", "number"),
    [
        ("10", 10.0),
        ("<think>3 or 4</think>12 m", 12.0),
        ("<answer>11</answer> 5", 11.0),
        ("between 2 and 12", 12.0),
        ("Seven chairs", 7.0),
        ("twenty-one", -1.0),  # "20-1": the sign belongs to the last number
        ("[4, 5]", 4.0),
        ("[four]", None),
        ("[" + "1," * 9_000 + "]", None),
        ("-1.5e3", -1500.0),
        ("none", None),
    ],
)
def test_numbers_of_vsi_bench(output, number):
    assert spatial_number(output)[0] == number


@pytest.mark.parametrize(("output", "value"), [("12", 0.6), ("11", 0.9), ("3 or 10", 1.0), ("none", 0.0)])
def test_vsi_numbers_score_the_authors_accuracy(output, value):
    assert vlm("vsi_bench", COUNT, output).value == value


def test_tempcompass_rates_by_rules_and_leaves_the_rest_to_a_judge():
    outputs = ("Option 2", "2", "2.", "The ball shrinks.", "1", "option 2", "B", "<answer>Option 2</answer>")
    scores = [vlm("tempcompass", MATCH, output) for output in outputs]
    assert [s.value for s in scores] == [1, 1, 1, 1, 0, 0, 0, 0]
    assert [s.note for s in scores] == [""] * 5 + ["needs_judge"] * 3
    assert match_success_rate(scores) == 5 / 8
    assert match_success_rate([]) == 0.0


@pytest.mark.parametrize("benchmark", ["mmvu", "lvbench"])
def test_benchmarks_it_does_not_have(benchmark):
    records = {
        "mmvu": {"question": "q", "question_type": "multiple-choice", "choices": OPTIONS, "answer": "B"},
        "lvbench": {"question": "q\n(A) a\n(B) b", "answer": "B"},
    }
    assert vlm(benchmark, records[benchmark], "B").note == NO_TASK


def test_a_text_of_twice_all_options_is_not_searched_for_them():
    long = "the red cup " + "x" * 2 * sum(map(len, OPTIONS.values()))
    assert inferred("the red cup", OPTIONS) == ("B", "option_text")
    assert inferred(long, OPTIONS) == ("", "none")
