"""Prediction files as the benchmarks' own evaluation scripts read them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ffr.eval.export.common import Answers, Exported, answer_sets, file_name, own_id, write_json
from ffr.eval.results import EvalRun

_USES = {
    "tempcompass": "python eval_multi-choice.py --video_llm {name} --disable_llm (and eval_yes_no.py, "
    "eval_caption_matching.py) where predictions/ lies",
    "lvbench": 'compute_accuracy("{name}.json", "video_info.meta.jsonl") of lvbench.metrics.compute_accuracy',
    "mmvu": "python acc_evaluation.py --output_dir <the folder mmvu>",
    "longvideobench": "upload {name}.json, or score it with LongVideoBench's own script",
}


def export_official(run: EvalRun, output: Path) -> Exported:
    """Writes `<output>/<frames and seed>/<benchmark>/...` for the benchmarks that publish a form.

    TempCompass: `predictions/<name>/<task>.json`, its questions with `prediction`; LVBench: `{uid: letter}`,
    the letter as the robust profile reads it;
    MMVU: its rows with `response`; LongVideoBench: `{id: text}`. A missing output is an empty text, so that
    no script leaves the question out.
    """
    done = Exported()
    for answers in answer_sets(run):
        writer = _WRITERS.get(answers.benchmark)
        if writer is None:
            done.note(f"{answers.benchmark}: its authors publish no form of predictions; try --to lmms-eval")
            continue
        if not answers.pairs:
            continue
        name = file_name(run.info.name)
        done.files += writer(answers, output / answers.folder / answers.benchmark, name)
        done.num_answers += len(answers.pairs) - answers.num_missing
        done.note(f"{answers.benchmark}: {_USES[answers.benchmark].format(name=name)}")
        if answers.num_missing:
            done.note(
                f"{answers.benchmark}, {answers.folder}: {answers.num_missing} questions without an output "
                "have an empty one"
            )
    return done


def _tempcompass(answers: Answers, folder: Path, name: str) -> list[Path]:
    trees: dict[str, dict[str, dict[str, list[dict[str, Any]]]]] = {}
    for item, row in answers.pairs:
        record = item.record
        kept = {key: value for key, value in record.items() if key not in ("video_id", "dim", "task")}
        dims = trees.setdefault(item.task, {}).setdefault(str(record.get("video_id", item.group)), {})
        dims.setdefault(str(record.get("dim", "")), []).append(
            {**kept, "prediction": "" if row is None else row.raw}
        )
    return [write_json(folder / "predictions" / name / f"{task}.json", tree) for task, tree in trees.items()]


def _lvbench(answers: Answers, folder: Path, name: str) -> list[Path]:
    letters: dict[str, str] = {}
    for item, row in answers.pairs:
        found = "" if row is None else answers.run.score(row, "robust").extracted.strip().upper()
        letters[own_id(item)] = found if len(found) == 1 else ""
    return [write_json(folder / f"{name}.json", letters)]


def _mmvu(answers: Answers, folder: Path, name: str) -> list[Path]:
    rows = [{**item.record, "response": "" if row is None else row.raw} for item, row in answers.pairs]
    return [write_json(folder / f"{name}.json", rows)]


def _longvideobench(answers: Answers, folder: Path, name: str) -> list[Path]:
    texts = {own_id(item): "" if row is None else row.raw for item, row in answers.pairs}
    return [write_json(folder / f"{name}.json", texts)]


_WRITERS: dict[str, Callable[[Answers, Path, str], list[Path]]] = {
    "tempcompass": _tempcompass,
    "lvbench": _lvbench,
    "mmvu": _mmvu,
    "longvideobench": _longvideobench,
}
