"""Scores as VLMEvalKit gives them by its rules alone (`exact_matching`, no judge), item by item.

Its video runs keep the thoughts in the prediction, so the rules read the whole text. Where people commonly
run it with a judge (TempCompass after its rules) the note is `needs_judge`; captions can't be scored there
without one. MMVU and LVBench have no task in it. Rules as in the repository in August 2026.

Source: https://github.com/open-compass/VLMEvalKit, `vlmeval/dataset/`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from ffr.eval.base import Score, Target
from ffr.eval.benchmarks.fields import Fields, as_list
from ffr.eval.scorers import mmmu, tempcompass, vlm_letters
from ffr.eval.scorers.mmmu_choice import video_mmmu_letter
from ffr.eval.scorers.official import score_official
from ffr.eval.scorers.shared import DROPPED, NEEDS_JUDGE, NO_TASK, found, nothing
from ffr.eval.scorers.vlm_numbers import spatial_number
from ffr.eval.scorers.vsi import official_mra

API_FAILURE = "Failed to obtain answer via API."
COUNTED_RIGHT = "counted_right_by_harness"

_PREFIXES = (  # two pairs are one string each, for want of a comma between them
    *("The best answer is", "The correct answer is", "The answer is", "The answer"),
    *("The best option isThe correct option is", "Best answer:Best option:", "Answer:", "Option:"),
)

_Rules = Callable[[Target, Fields, str], Score]


def score_vlmevalkit(benchmark: str, target: Target, record: Mapping[str, Any], output: str) -> Score:
    """The score of one output as VLMEvalKit's data set for this benchmark computes it.

    Args:
        benchmark: A benchmark; without a data set there the value is 0 with the note `no_task_in_harness`.
        target: The record's meaning.
        record: An official row.
        output: What the model said, thoughts included.

    Raises:
        EvalDataError: If the record lacks what the rules read.
    """
    rules = _RULES.get(benchmark)
    return nothing(NO_TASK) if rules is None else rules(target, Fields(benchmark, record), output)


def _vsi_bench(target: Target, row: Fields, output: str) -> Score:
    if target.kind == "choice":
        letter, rule = vlm_letters.spatial_letter(output)
        return found(float(letter == target.answer), letter, rule)
    number, rule = spatial_number(output)
    if number is None:
        return nothing()
    return found(official_mra(number, float(target.answer)), f"{number:g}", rule)


def _video_mmmu(target: Target, row: Fields, output: str) -> Score:
    said = output.rpartition("Answer:")[2].strip()
    if said in ("", mmmu.API_ERROR):
        return nothing(DROPPED)
    kind = row.get("question_type")
    if kind is None and row.get("track") in ("Perception", "Comprehension"):
        kind = "multiple-choice"
    golds = [str(gold) for gold in as_list(row.get("answer")) or [row.text("answer")]]
    if kind == "multiple-choice":
        texts = row.texts("options")
        options = {chr(ord("A") + i): text for i, text in enumerate(texts)}
        letter, rule = video_mmmu_letter(said, options)
        return found(float(letter in golds), letter, rule)
    match = mmmu.open_match(golds, mmmu.open_candidates(said) or ())
    return found(float(match is not None), said if match is None else str(match), "open")


def _video_holmes(target: Target, row: Fields, output: str) -> Score:
    start = output.find("<answer>")
    if start < 0 or "</answer>" not in output[start:]:
        return nothing()
    return score_official("video_holmes", target, row.record, output)  # the authors' rule, tags required


def _longvideobench(target: Target, row: Fields, output: str) -> Score:
    text = output.strip()
    for prefix in _PREFIXES:
        text = text.replace(prefix, "")
    match = re.search("[ABCDE]", text)
    letter = match[0] if match else ""
    return found(float(letter == target.answer), letter, "first_capital")


def _mvbench(target: Target, row: Fields, output: str) -> Score:
    if API_FAILURE in output or not output:  # scored -1 or left empty, and both are true there
        return Score(1.0, "", "none", COUNTED_RIGHT)
    options = {option.label: option.text for option in target.options}
    first, gold = output.lower().split(" ")[0], f"({target.answer.lower()})"
    if first.replace(".", "") in gold or gold in first:
        return Score(1.0, target.answer, "first_word")
    letter, rule = vlm_letters.inferred(output, options)
    return found(float(letter == target.answer), letter, rule)


def _tempcompass(target: Target, row: Fields, output: str) -> Score:
    question = "" if target.kind == "caption" else row.text("question")
    rated = tempcompass.rule_rating(target.kind, question, row.text("answer", default=""), output)
    if rated is None:
        return nothing(NEEDS_JUDGE)
    return found(float(rated[0]), rated[1], "whole_text" if target.kind == "match" else "start")


_RULES: dict[str, _Rules] = {
    "vsi_bench": _vsi_bench,
    "video_mmmu": _video_mmmu,
    "video_holmes": _video_holmes,
    "longvideobench": _longvideobench,
    "mvbench": _mvbench,
    "tempcompass": _tempcompass,
}
