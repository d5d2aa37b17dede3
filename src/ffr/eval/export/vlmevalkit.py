"""For VLMEvalKit's `--mode eval`: its own data set's columns, and `prediction`, as TSV."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ffr.eval.benchmarks import get_benchmark
from ffr.eval.benchmarks.mvbench import TASKS as MVBENCH_TASKS
from ffr.eval.export.common import NO_OUTPUT, Exported, answer_sets, file_name, write_json
from ffr.eval.results import EvalRun
from ffr.eval.rows import ItemRow
from ffr.eval.table_text import write_text

TIME_FOLDER = "T20000101-000000"
"""Looks like the folder of a run of theirs, and is older than any of theirs."""
COMMAND = "PRED_FORMAT=tsv vlmutil eval {folder}/{name}/*/*.tsv (or run.py --config {config} --mode eval)"
_READ_AS_MISSING = frozenset(
    {
        *("", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN"),
        *("<NA>", "N/A", "NA", "NULL", "NaN", "None", "n/a", "nan", "null"),
    }
)
"""Cells that pandas takes for no value."""
_TITLES = {"fine_grained_action": "Fine-grained Action", "fine_grained_pose": "Fine-grained Pose"}
_MMMU_ORDER = ("Adaptation", "Comprehension", "Perception")
Row = dict[str, Any]


def export_vlmevalkit(run: EvalRun, output: Path) -> Exported:
    """Writes `<output>/<frames and seed>/<name>/T.../<name>_<dataset>.tsv` and a `config.json` beside.

    `index` counts the rows of the file: VLMEvalKit takes it for the row's place, so a run of a part of a
    benchmark has the places of the part. With all questions it is VLMEvalKit's own index.
    """
    done = Exported()
    name = file_name(run.info.name)
    configs: dict[str, dict[str, Any]] = {}
    for answers in answer_sets(run):
        makers = _MAKERS.get(answers.benchmark)
        if makers is None:
            done.note(_why_not(answers.benchmark))
            continue
        folder = output / answers.folder
        for dataset, (tasks, order, columns) in makers.items():
            pairs = [(item, row) for item, row in answers.pairs if not tasks or item.task in tasks]
            if not pairs:
                continue
            pairs.sort(key=lambda pair: (order(pair[0]), pair[0].source_index))
            full = f"{dataset}_{answers.cell.num_frames}frame"
            rows = [
                {
                    "index": place,
                    **columns(item),
                    "prediction": _cell_text(NO_OUTPUT if row is None else row.raw),
                }
                for place, (item, row) in enumerate(pairs)
            ]
            path = folder / name / TIME_FOLDER / f"{name}_{full}.tsv"
            path.parent.mkdir(parents=True, exist_ok=True)
            done.files.append(write_text(path, tsv(rows)))
            done.num_answers += sum(row is not None for _, row in pairs)
            data = {"class": dataset, "dataset": dataset, "nframe": answers.cell.num_frames}
            configs.setdefault(answers.folder, {})[full] = data
    for key, data in configs.items():
        path = output / key / "config.json"
        done.files.append(write_json(path, {"model": {name: {}}, "data": data}))
        done.note(COMMAND.format(config=path, folder=output / key, name=name))
    return done


def _why_not(benchmark: str) -> str:
    if benchmark == "vsi_bench":
        return "vsi_bench: VLMEvalKit scores it on its own TSV with the videos at hand; try --to lmms-eval"
    return f"{benchmark}: VLMEvalKit does not have it; not exported"


def _cell_text(text: str) -> str:
    """An output that pandas reads back as a text: never empty, without null bytes."""
    kept = text.replace("\x00", "\ufffd")
    if not kept.strip():
        return NO_OUTPUT
    return f"{kept} " if kept in _READ_AS_MISSING else kept


def tsv(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows as tab-separated text with a head line, quoted where needed."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), delimiter="\t", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _mvbench(item: ItemRow) -> Row:
    record = item.record
    return {
        "task_type": _TITLES.get(item.task, item.task.replace("_", " ").title()),
        "prefix": "video/",
        "video": record["video"],
        "question": record["question"],
        "answer": record["answer"],
        "candidates": [str(text) for text in record["candidates"]],
    }


def _longvideobench(item: ItemRow) -> Row:
    record, target = item.record, get_benchmark(item.benchmark).target(item.record)
    video = str(record.get("video_path", "")).removeprefix("./").removeprefix("videos/")
    kept = {key: value for key, value in record.items() if not key.startswith("option")}
    return {
        **kept,
        "candidates": [option.text for option in target.options],
        "video": record.get("video_id", item.group),
        "video_path": f"./videos/{video}",
    }


def _holmes(item: ItemRow) -> Row:
    record, target = item.record, get_benchmark(item.benchmark).target(item.record)
    video = record.get("video ID", record.get("video_id", ""))
    return {
        "video": video,
        "video_path": f"./video/{video}.mp4",
        "candidates": [f"{o.label}. {o.text}".replace("'", "") for o in target.options],
        "question": record.get("Question", record.get("question", "")),
        "answer": target.answer,
        "question_id": record.get("Question ID", record.get("question_id", "")),
        "question_type": item.task,
        "explanation": record.get("Explanation", record.get("explanation", "")),
    }


def _mmmu(item: ItemRow) -> Row:
    record = item.record
    options = record.get("options") or []
    kind = record.get("question_type") or ("multiple-choice" if options else "open")
    return {
        "id": record["id"],
        "category": item.task,
        "question": record["question"],
        "options": json.dumps(list(options), ensure_ascii=False),
        "answer": record["answer"],
        "question_type": kind,
        "video": f"videos/{record['id']}.mp4",
        "image": "",
    }


def _tempcompass(item: ItemRow) -> Row:
    record = item.record
    first, *others = str(record.get("question", "")).split("\n")
    row: Row = {
        "task_type": item.task,
        "prefix": "./videos",
        "suffix": ".mp4",
        "video": record.get("video_id", item.group),
        "question": str(record.get("question", "")) if item.task == "captioning" else first,
        "answer": record.get("answer", ""),
        "dim": record.get("dim", ""),
    }
    if item.task in ("multi-choice", "caption_matching"):
        row["candidates"] = others
    if item.task == "captioning":
        row |= {"mc_question": record.get("mc_question", ""), "mc_answer": record.get("mc_answer", "")}
    return row


def _place(order: Sequence[str]) -> Callable[[ItemRow], int]:
    return lambda item: order.index(item.task) if item.task in order else len(order)


_MCQ = ("multi-choice", "caption_matching")
_MAKERS: dict[str, dict[str, tuple[Sequence[str], Callable[[ItemRow], int], Callable[[ItemRow], Row]]]] = {
    "mvbench": {"MVBench_MP4": ((), _place(MVBENCH_TASKS), _mvbench)},
    "longvideobench": {"LongVideoBench": ((), _place(()), _longvideobench)},
    "video_holmes": {"Video_Holmes": ((), _place(()), _holmes)},
    "video_mmmu": {"VideoMMMU": (_MMMU_ORDER, _place(_MMMU_ORDER), _mmmu)},
    "tempcompass": {
        "TempCompass_MCQ": (_MCQ, _place(_MCQ), _tempcompass),
        "TempCompass_YorN": (("yes_no",), _place(()), _tempcompass),
        "TempCompass_Captioning": (("captioning",), _place(()), _tempcompass),
    },
}
