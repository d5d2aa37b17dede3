"""Small runs of `ffr eval` written by hand: what tables, comparisons and exports are tested on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ffr.eval.base import Score
from ffr.eval.benchmarks import get_benchmark
from ffr.eval.benchmarks.official import chance
from ffr.eval.rows import (
    EVAL_FILE,
    ITEMS_FILE,
    ROWS_FILE,
    BenchmarkInfo,
    EvalRow,
    ItemRow,
    RunInfo,
    ScoreRow,
)

HASH = "0123456789abcdef"
CARD = {
    "num_frames": 16,
    "prompt_profile": "video_r1",
    "engine": "hf",
    "indices_sha256": "a" * 64,
    "prompt_sha256": "b" * 64,
    "versions": {"python": "3.11"},
}


def mvbench_record(answer: int = 1, **changes: Any) -> dict[str, Any]:
    return {
        "video": "v.mp4",
        "question": "What falls?",
        "candidates": ["a cup", "a ball", "a box"],
        "answer": ("a cup", "a ball", "a box")[answer],
        "task": "action_count",
        **changes,
    }


def item(
    benchmark: str, own_id: str, record: Mapping[str, Any], *, group: str = "", index: int = 0
) -> ItemRow:
    """A question with the target that the benchmark itself reads from the record."""
    target = get_benchmark(benchmark).target(record)
    return ItemRow(
        uid=f"{benchmark}/{own_id}",
        benchmark=benchmark,
        task=target.task,
        group=group or own_id,
        source_index=index,
        kind=target.kind,
        gold=target.answer,
        chance=chance(target),
        record=dict(record),
    )


def tagged(answer: str) -> str:
    return f"<think>look</think><answer>{answer}</answer>"


def row(uid: str, raw: str = "", **changes: Any) -> EvalRow:
    values: dict[str, Any] = {"config_hash": HASH, "uid": uid, "num_frames": 16, "seed": 42, "raw": raw}
    return EvalRow.model_validate({**values, "finish": "stop", **changes})


def scored(uid: str, value: float, **changes: Any) -> EvalRow:
    """A row whose scores are given: 1 for right, 0 for wrong, under both shown profiles."""
    score = ScoreRow(value=value, extracted="B", rule="fake")
    return row(uid, "B", scores={"video_r1": score, "robust": score}, **changes)


def write_run(
    folder: Path,
    items: Sequence[ItemRow],
    rows: Sequence[EvalRow],
    *,
    name: str = "student",
    cards: Mapping[str, Any] | None = None,
    **changes: Any,
) -> Path:
    """The three files of a run."""
    counts: dict[str, int] = {}
    for one in items:
        counts[one.benchmark] = counts.get(one.benchmark, 0) + 1
    values: dict[str, Any] = {
        "name": name,
        "model": f"models/{name}",
        "engine": "hf",
        "config_hash": HASH,
        "config": {"temperature": 0.7, "prompt": "video_r1", "max_tokens": 512},
        "frames": (16,),
        "seeds": (42,),
        "benchmarks": {key: BenchmarkInfo(num_items=count, num_total=count) for key, count in counts.items()},
        "cards": {f"{key}@16": CARD for key in counts} if cards is None else cards,
    }
    info = RunInfo.model_validate({**values, **changes})
    folder.mkdir(parents=True, exist_ok=True)
    (folder / EVAL_FILE).write_text(info.model_dump_json())
    (folder / ITEMS_FILE).write_text("".join(one.model_dump_json() + "\n" for one in items))
    (folder / ROWS_FILE).write_text("".join(one.model_dump_json() + "\n" for one in rows))
    return folder


def fake_score(item: ItemRow, text: str, profile: str) -> Score:
    """Right if the text ends with the gold letter; `video_r1` wants nothing else in the text."""
    right = text.strip() == item.gold if profile == "video_r1" else text.strip().endswith(item.gold)
    return Score(float(right), item.gold if right else "", f"fake.{profile}" if right else "none")
