"""Each benchmark's own rules, as its authors publish them, with their faults.

Sources: yale-nlp/MMVU `utils/eval_utils.py`, vision-x-nyu/thinking-in-space `vsibench/utils.py`,
EvolvingLMMs-Lab/VideoMMMU, TencentARC/Video-Holmes `evaluate.py`, LongVideoBench's parser (its author's, in
lmms-eval), THUDM/LVBench `answer_util.py`, OpenGVLab/Ask-Anything `mvbench.ipynb`, llyx97/TempCompass
`eval_*.py`. Where an author asks a language model the value is 0 and the note `needs_judge`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Final

from ffr.eval.base import Score, Target
from ffr.eval.scorers import mmmu, tempcompass
from ffr.eval.scorers.lmms_letters import without_prefixes
from ffr.eval.scorers.mmmu_choice import video_mmmu_letter
from ffr.eval.scorers.shared import DROPPED, NEEDS_JUDGE, RANDOM, found, nothing
from ffr.eval.scorers.vsi import official_mra
from ffr.find.verify.mcq import read_choice
from ffr.find.verify.text import fold_words

EMPTY_IS_RIGHT: Final = "empty_counts_as_right"
"""MVBench's rule asks whether the answer is part of "(b)", and the empty text is."""
GOLD_IS_ZERO: Final = "gold_is_zero"
_HOLMES_LETTERS: Final = "ABCDEF"
_FINAL: Final = re.compile(r"final answer is:?\s*", re.IGNORECASE)
_CAPITAL: Final = re.compile(r"[ABCDE]")


def score_official(benchmark: str, target: Target, record: Mapping[str, Any], output: str) -> Score:
    """The score of one output by the benchmark's own rules.

    Args:
        benchmark: One of the eight; for others (ours, Video-R1's) equality with the gold answer decides.
        target: The record's meaning.
        record: The official row.
        output: The model's whole text.

    Returns:
        The score; `none` where the rules find no answer.
    """
    return _RULES.get(benchmark, _exact)(target, record, output)


def _exact(target: Target, record: Mapping[str, Any], output: str) -> Score:
    answer = output.strip()
    return found(float(answer == target.answer), answer, "exact") if answer else nothing()


def _mmvu(target: Target, record: Mapping[str, Any], output: str) -> Score:
    """The authors ask GPT-4o for both kinds; only what no judge could see otherwise is decided here."""
    answer = _FINAL.split(output)[-1].strip().rstrip(".").strip("$'\"` ")
    answer = re.sub(r"^(?:Answer|ANSWER):\s*", "", answer)
    if target.kind == "choice":
        choice = read_choice(answer, target.options) if len(answer) <= 300 else None
        sure = choice is not None and choice.rule in ("mcq.letter", "mcq.letter_text", "mcq.text")
        if not sure or choice is None or choice.label is None:
            return nothing(NEEDS_JUDGE)
        return found(float(choice.label == target.answer), choice.label, f"mmvu.{choice.rule[4:]}")
    golds = {fold_words(gold) for gold in (target.answer, *target.accepted)} - {""}
    if fold_words(answer) in golds:
        return found(1.0, answer, "mmvu.equal")
    return nothing(NEEDS_JUDGE)


def _vsi_bench(target: Target, record: Mapping[str, Any], output: str) -> Score:
    token = output.split(" ")[0].rstrip(".").strip()
    if target.kind == "choice":
        known = token.upper() in {option.label for option in target.options}
        right = token.lower() == target.answer.lower()
        return found(float(right), token, "vsi.first_token") if right or known else nothing()
    try:
        answer = float(token)
    except ValueError:
        return nothing()
    gold = float(target.answer)
    return found(official_mra(answer, gold), token, "vsi.mra", "" if gold else GOLD_IS_ZERO)


def _video_mmmu(target: Target, record: Mapping[str, Any], output: str) -> Score:
    if output in ("", mmmu.API_ERROR):
        return nothing(DROPPED)
    # One row has a null type and options: their program reads it as an open question.
    kind = record.get("question_type", "perception")
    if target.kind == "choice" and kind in ("multiple-choice", "perception"):
        letter, rule = video_mmmu_letter(output, {o.label: o.text for o in target.options})
        return found(float(letter == target.answer), letter, f"video_mmmu.{rule}") if letter else nothing()
    gold: Any = record.get("answer")
    candidates = mmmu.open_candidates(output) or []
    match = mmmu.open_match(gold if isinstance(gold, str) else target.answer, candidates)
    if match is not None:
        return found(1.0, str(match).strip() or "''", "video_mmmu.open")
    said = next((str(c) for c in candidates if str(c).strip()), "")
    return found(0.0, said, "video_mmmu.open") if said else nothing()


def _video_holmes(target: Target, record: Mapping[str, Any], output: str) -> Score:
    tagged = _last_tag(output)
    text = output if tagged is None else tagged
    where = "video_holmes" if tagged is None else "video_holmes.answer_tag"
    for letter in _HOLMES_LETTERS:
        if any(form in text for form in (f"{letter} ", f"{letter}:", f"[{letter}")):
            return found(float(letter == target.answer), letter, f"{where}.dressed")
    for letter in _HOLMES_LETTERS:
        if letter in text:
            return found(float(letter == target.answer), letter, f"{where}.bare")
    return nothing()


def _last_tag(text: str) -> str | None:
    """The last of the answer tags, each closed by the first closing tag after it; None if there is none."""
    last, at = None, 0
    while (start := text.find("<answer>", at)) >= 0:
        end = text.find("</answer>", start + 8)
        if end < 0:
            break
        last, at = text[start + 8 : end].strip(), end + 9
    return last


def _longvideobench(target: Target, record: Mapping[str, Any], output: str) -> Score:
    first = _CAPITAL.search(without_prefixes(output))
    if first is None:
        return nothing(RANDOM)
    return found(float(first[0] == target.answer), first[0], "longvideobench.first_capital")


def _lvbench(target: Target, record: Mapping[str, Any], output: str) -> Score:
    """Equality with the letter in their answer file, which their `polish_answer` takes from the text."""
    exact = output.strip()
    text = exact.split(")")[0].strip()
    if "(" in text:
        text = text.split("(")[1].strip()
    letter = text.split(" ")[0][:1]
    known = letter in {option.label for option in target.options} or letter == target.answer
    rule = "lvbench.exact" if letter == exact else "lvbench.polished"
    return found(float(letter == target.answer), letter, rule) if known else nothing()


def _mvbench(target: Target, record: Mapping[str, Any], output: str) -> Score:
    """First word of the first line, as a part of "(b)" or around it."""
    word = output.strip().split("\n")[0].lower().split(" ")[0]
    gold = f"({target.answer.lower()})"
    right = word.replace(".", "") in gold or gold in word
    if not word.replace(".", ""):
        return Score(float(right), "", "none", EMPTY_IS_RIGHT)
    return found(float(right), word, "mvbench.substring")


def _tempcompass(target: Target, record: Mapping[str, Any], output: str) -> Score:
    text = output.replace("</s>", "").strip()
    question, answer = (record.get(name) for name in ("question", "answer"))
    if not isinstance(question, str) or not isinstance(answer, str):
        question, answer = "", _written(target)
    if target.kind == "yes_no":
        answer = target.answer
    rated = tempcompass.rule_rating(target.kind, question, answer, text)
    if rated is None:
        return nothing(NEEDS_JUDGE)
    return found(float(rated[0]), rated[1], f"tempcompass.{target.kind}")


def _written(target: Target) -> str:
    return f"{target.answer}. {target.text}" if target.kind == "choice" else target.answer


_RULES: Final[Mapping[str, Callable[[Target, Mapping[str, Any], str], Score]]] = {
    "mmvu": _mmvu,
    "vsi_bench": _vsi_bench,
    "video_mmmu": _video_mmmu,
    "video_holmes": _video_holmes,
    "longvideobench": _longvideobench,
    "lvbench": _lvbench,
    "mvbench": _mvbench,
    "tempcompass": _tempcompass,
}
