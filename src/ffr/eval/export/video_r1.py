"""Results in the form of Video-R1's evaluation script, which VideoRFT's and FFR's scripts read too."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ffr.eval.benchmarks import get_benchmark
from ffr.eval.export.common import (
    Answers,
    Exported,
    answer_sets,
    file_name,
    own_id,
    question_text,
    whole_text,
    write_json,
)
from ffr.eval.results import EvalRun
from ffr.eval.rows import EvalRow, ItemRow
from ffr.eval.scorers.video_r1 import problem_type
from ffr.types import ProblemType

_OWN_FORM = ("video_r1", "microworld")
"""Benchmarks whose records are Video-R1's rows already."""
_FAILED = "<answer>error</answer>"
"""What their script writes for a sample that it could not run."""


def export_video_r1(run: EvalRun, output: Path) -> Exported:
    """Writes `<output>/<frames and seed>/eval_<benchmark>_<name>_greedy_output.json`.

    Each is `{"results": [sample with output, prediction, reward, correct], "final_acc": [{mean_acc,
    mean_mra}]}`, scored by the profile `video_r1`. A question without an output is there as their scripts
    write it, and counts 0.
    """
    done = Exported()
    for answers in answer_sets(run):
        if not answers.pairs:
            continue
        name = f"eval_{answers.benchmark}_{file_name(run.info.name)}_greedy_output.json"
        done.files.append(write_json(output / answers.folder / name, _results(answers)))
        done.num_answers += len(answers.pairs) - answers.num_missing
        if answers.num_missing:
            done.note(
                f"{answers.benchmark}, {answers.folder}: {answers.num_missing} questions without an output "
                f"are written as {_FAILED}"
            )
    return done


def _results(answers: Answers) -> dict[str, Any]:
    results: list[dict[str, Any]] = []
    rewards: dict[bool, list[float]] = {True: [], False: []}
    for item, row in answers.pairs:
        found = sample(item)
        scored = {"output": _FAILED, "prediction": "error", "reward": 0.0}
        if row is not None:
            score = answers.run.score(row, "video_r1")
            scored = {"output": whole_text(row), "prediction": score.extracted, "reward": score.value}
        reward = float(scored["reward"])
        rewards[found["problem_type"] == ProblemType.REGRESSION].append(reward)
        results.append({**found, **scored, "correct": reward == 1.0, "process": _thoughts(row)})
    return {
        "results": results,
        "final_acc": [{"mean_acc": _mean(rewards[False]), "mean_mra": _mean(rewards[True])}],
    }


def sample(item: ItemRow) -> dict[str, Any]:
    """The question as a row of Video-R1's files.

    Raises:
        EvalDataError: The item's record is malformed.
    """
    if item.benchmark in _OWN_FORM:
        return _plain(item.record)
    benchmark = get_benchmark(item.benchmark)
    target = benchmark.target(item.record)
    kind, _ = problem_type(item.benchmark, target)
    return {
        "problem_id": own_id(item),
        "problem": question_text(item),
        "data_type": "video",
        "problem_type": kind.value,
        "original_question_type": item.task,
        "options": [f"{option.label}. {option.text}" for option in target.options],
        "solution": f"<answer>{target.answer}</answer>",
        "path": item.group,
        "data_source": benchmark.title,
    }


def _plain(record: Mapping[str, Any]) -> dict[str, Any]:
    return {"problem_type": "", **record}


def _thoughts(row: EvalRow | None) -> str:
    """What their scripts keep beside: the tagged thoughts."""
    if row is None:
        return ""
    text = whole_text(row)
    start, end = text.find("<think>"), text.find("</think>")
    return text[start : end + len("</think>")] if 0 <= start < end else ""


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else 0.0
