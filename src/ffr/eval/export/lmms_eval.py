"""For lmms-eval's model `from_log`: it reads our outputs, and its own scorers score them."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from ffr.eval.export.common import NO_OUTPUT, Answers, Exported, answer_sets, write_json
from ffr.eval.results import EvalRun
from ffr.eval.rows import ROWS_FILE, ItemRow

_TASKS = {
    "mmvu": "mmvu_val",
    "vsi_bench": "vsibench",
    "video_holmes": "video_holmes",
    "longvideobench": "longvideobench_val_v",
    "lvbench": "lvbench",
}
_FULL_SIZE = {"mmvu": 1000}
"""Splits of which a run usually asks a part only; lmms-eval asks for every row."""
COMMAND = (
    "python -m lmms_eval --model from_log --model_args logs={folder} --tasks {tasks} --batch_size 1 "
    "--log_samples --output_path {folder}/scores"
)


def task_name(item: ItemRow) -> str:
    """lmms-eval's task of a question; empty if it has none.

    Example:
        >>> row = ItemRow(uid="mvbench/state_change/3", benchmark="mvbench", task="state_change",
        ...               group="v", source_index=3)
        >>> task_name(row)
        'mvbench_state_change'
    """
    if item.benchmark == "mvbench":
        return f"mvbench_{item.task}"
    if item.benchmark == "tempcompass":
        return f"tempcompass_{item.task.replace('-', '_')}"
    if item.benchmark == "video_mmmu":
        track = "adaptation_question_only" if item.task == "question_only" else item.task.lower()
        return f"video_mmmu_{track}"
    return _TASKS.get(item.benchmark, "")


def export_lmms_eval(run: EvalRun, output: Path) -> Exported:
    """Writes `<output>/<frames and seed>/<task>.json`, one folder for each set of outputs.

    lmms-eval takes the newest file of a task in a folder, hence the folders. It asks for every row of its
    split: rows without an output get a text that no scorer reads an answer in.
    """
    done = Exported()
    stamp = time.strftime("%m%d_%H%M", time.gmtime(_changed(run.path)))
    tasks: dict[str, list[str]] = {}
    for answers in answer_sets(run):
        for task, texts in _by_task(answers, done).items():
            data: dict[str, Any] = {
                "args": {
                    "model": run.info.name,
                    "model_args": f"pretrained={run.info.model},num_frames={answers.cell.num_frames},"
                    f"seed={answers.seed},mode={answers.cell.mode}",
                    "limit": None,
                },
                "model_configs": {"task": task},
                "time": stamp,
                "logs": [{"doc_id": place, "resps": [[text]]} for place, text in sorted(texts.items())],
            }
            done.files.append(write_json(output / answers.folder / f"{task}.json", data))
            tasks.setdefault(answers.folder, []).append(task)
    for folder, names in tasks.items():
        done.note(COMMAND.format(folder=output / folder, tasks=",".join(names)))
    return done


def _changed(run: Path) -> float:
    rows = run / ROWS_FILE
    return rows.stat().st_mtime if rows.exists() else 0.0


def _by_task(answers: Answers, done: Exported) -> dict[str, dict[int, str]]:
    """`{task: {doc_id: output}}`, every doc_id up to the last."""
    found: dict[str, dict[int, str]] = {}
    for item, row in answers.pairs:
        task = task_name(item)
        if not task:
            done.note(f"{item.benchmark}: lmms-eval has no such task; not exported")
            continue
        found.setdefault(task, {})[item.source_index] = NO_OUTPUT if row is None else row.raw
        done.num_answers += row is not None
    for task, texts in found.items():
        size = max(max(texts) + 1, _FULL_SIZE.get(answers.benchmark, 0))
        missing = [place for place in range(size) if place not in texts]
        texts.update(dict.fromkeys(missing, NO_OUTPUT))
        empty = sum(text == NO_OUTPUT for text in texts.values())
        if empty:
            done.note(
                f"{task}, {answers.folder}: {empty} of {size} rows have no output and get {NO_OUTPUT!r}; "
                "lmms-eval counts them as wrong"
            )
    return found
