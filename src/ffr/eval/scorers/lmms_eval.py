"""Scores as lmms-eval 0.7.3 gives them with its defaults, item by item.

Order of events there, and here: blocks of thoughts are cut out (`--reasoning_tags`), the text is stripped,
the task's own rules read it. Its rules are kept with their faults (an article "a" answers A in MMVU and
MVBench; the first capital of "Answer: C" is A in LongVideoBench): `docs/results/lmms_eval_parity.md`
lists them, and a test runs the real package beside this module. Three things are not reproduced but noted:
where it asks a judge the value is 0 and the note `needs_judge`; where it draws a random letter, 0 and
`random_in_harness`; what its averages leave out has the note `dropped_by_harness`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

from ffr.eval.base import EvalDataError, Score, Target
from ffr.eval.benchmarks.fields import as_list
from ffr.eval.scorers import lmms_letters as letters
from ffr.eval.scorers import mmmu, tempcompass
from ffr.eval.scorers.lmms_mmvu import mmvu_choice, mmvu_open, mmvu_subject_counts
from ffr.eval.scorers.lmms_numbers import first_number
from ffr.eval.scorers.shared import DROPPED, MAX_EXTRACTED_CHARS, NEEDS_JUDGE, NO_TASK, RANDOM, found, nothing
from ffr.eval.scorers.vsi import official_mra

VERSION = "0.7.3"
DEFAULT_TAGS = (("<think>", "</think>"), ("<analysis>", "</analysis>"))

_Rules = Callable[[Target, Mapping[str, Any], str], Score]


def score_lmms_eval(benchmark: str, target: Target, record: Mapping[str, Any], output: str) -> Score:
    """The score of one output as lmms-eval's task for this benchmark computes it.

    Args:
        benchmark: One of the eight; for another the value is 0 with the note `no_task_in_harness`.
        target: The record's meaning, used where the record has no field of lmms-eval's `doc`.
        record: An official row, or a `doc` of lmms-eval.
        output: What the model said, thoughts included.

    Raises:
        EvalDataError: If the record lacks what the task reads.
    """
    rules = _RULES.get(benchmark)
    if rules is None:
        return nothing(NO_TASK)
    return rules(target, record, strip_reasoning(output))


def strip_reasoning(text: str, tags: Sequence[tuple[str, str]] = DEFAULT_TAGS) -> str:
    """A text without its thoughts, stripped of blanks; an unclosed block stays.

    A closing tag without an opening one (the template opened it in the prompt) ends the thoughts too.
    """
    for opening, closing in tags:
        while (start := text.find(opening)) >= 0 and (end := text.find(closing, start)) >= 0:
            text = text[:start] + text[end + len(closing) :]
        if opening not in text:
            text = text.rpartition(closing)[2]
    return text.strip()


def _mmvu(target: Target, record: Mapping[str, Any], text: str) -> Score:
    gold = _text("mmvu", record, "answer", default=target.answer)
    kind = record.get("question_type", "multiple-choice" if target.kind == "choice" else "open-ended")
    dropped = "" if mmvu_subject_counts(record) else DROPPED
    if kind == "multiple-choice":
        rule, letter = mmvu_choice(text, gold, _option_texts(target, record.get("choices")))
        return Score(float(rule != ""), letter, rule or ("letter_word" if letter else "none"), dropped)
    rule = mmvu_open(text, gold)
    if not rule:
        return nothing(NEEDS_JUDGE)
    return Score(1.0, text[:MAX_EXTRACTED_CHARS], rule, dropped)


def _vsi_bench(target: Target, record: Mapping[str, Any], text: str) -> Score:
    gold = _text("vsi_bench", record, "ground_truth", default=target.answer)
    if target.kind == "choice":
        said = text.split(" ")[0].rstrip(".").strip()
        value = float(said.lower() == gold.lower())
        return found(value, said, "first_word")
    number = first_number(text)
    if number is None:
        return nothing()
    try:
        wanted = float(gold)
    except ValueError:
        raise EvalDataError(
            f"vsi_bench: field 'ground_truth' must be a number, got {gold!r}; give the official row"
        ) from None
    return found(official_mra(number, wanted), f"{number:g}", "first_number")


def _video_mmmu(target: Target, record: Mapping[str, Any], text: str) -> Score:
    gold = record.get("answer", target.answer)
    golds = (
        [str(g) for g in cast("Sequence[object]", gold)] if isinstance(gold, (list, tuple)) else [str(gold)]
    )
    kind = record.get("question_type")  # null or absent is read as open, as the harness does
    if "question_type" not in record and record.get("track") in ("Perception", "Comprehension"):
        kind = "multiple-choice"  # absent in the authors' files, not in the hub's
    if kind == "multiple-choice":
        options = as_list(record.get("options"))
        num_options = len(target.options if options is None else options)
        allowed = [chr(ord("A") + i) for i in range(num_options)]
        letter, rule = letters.best_ranked(text, allowed or letters.EIGHT)
        return Score(float(letter in golds and letter != ""), letter, rule)
    candidates = mmmu.open_candidates(text)
    if candidates is None:
        return nothing(DROPPED)
    if kind == "perception":  # a list is compared with a letter there: never equal
        return found(0.0, text, "open")
    match = mmmu.open_match(golds, candidates)
    return found(float(match is not None), text if match is None else str(match), "open")


def _video_holmes(target: Target, record: Mapping[str, Any], text: str) -> Score:
    gold = _text("video_holmes", record, "Answer", default=target.answer)
    letter, rule = letters.mmmu_letter(text, _option_texts(target, record.get("Options")))
    return _lettered(letter, rule, letter.upper() == gold.upper())


def _longvideobench(target: Target, record: Mapping[str, Any], text: str) -> Score:
    match = re.search("[ABCDE]", letters.without_prefixes(text))
    letter = match[0] if match else ""
    return _lettered(letter, "first_capital" if letter else "", letter == target.answer)


def _lvbench(target: Target, record: Mapping[str, Any], text: str) -> Score:
    gold = _text("lvbench", record, "answer", default=target.answer)
    letter, rule = letters.best_ranked(text, ("A", "B", "C", "D"))
    return Score(float(letter == gold and letter != ""), letter, rule)


def _mvbench(target: Target, record: Mapping[str, Any], text: str) -> Score:
    said, rule = letters.standalone_letter(text)
    same = [i for i, c in enumerate(as_list(record.get("candidates")) or ()) if c == record.get("answer")]
    gold, _ = letters.standalone_letter(chr(ord("A") + same[0]) if same else target.answer)
    return found(float(said == gold), said, rule, DROPPED if text == "" else "")


def _tempcompass(target: Target, record: Mapping[str, Any], text: str) -> Score:
    question = _text("tempcompass", record, "question", default="")
    answer = _text("tempcompass", record, "answer", default=target.answer)
    rated = tempcompass.rule_rating(target.kind, question, answer, text)
    if rated is None:
        return nothing(NEEDS_JUDGE)
    return found(float(rated[0]), rated[1], "whole_text" if target.kind == "match" else "start")


_RULES: dict[str, _Rules] = {
    "mmvu": _mmvu,
    "vsi_bench": _vsi_bench,
    "video_mmmu": _video_mmmu,
    "video_holmes": _video_holmes,
    "longvideobench": _longvideobench,
    "lvbench": _lvbench,
    "mvbench": _mvbench,
    "tempcompass": _tempcompass,
}


def _lettered(letter: str, rule: str, right: bool) -> Score:
    if not letter:
        return nothing(RANDOM)
    return Score(float(right), letter, rule)


def _option_texts(target: Target, written: object) -> dict[str, str]:
    """Options as the row writes them (blanks at their ends matter to the rules), else the target's."""
    if not isinstance(written, Mapping):
        return {option.label: option.text for option in target.options}
    entries = cast("Mapping[object, object]", written)
    return {str(label): str(text) for label, text in entries.items() if text is not None}


def _text(benchmark: str, record: Mapping[str, Any], field: str, *, default: str) -> str:
    value = record.get(field, default)
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise EvalDataError(
            f"{benchmark}: field {field!r} must be text, got {type(value).__name__}; "
            "give the row as the official file has it"
        )
    return str(value)
