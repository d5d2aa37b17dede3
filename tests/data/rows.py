"""Annotation rows for the readers' tests; the clips are empty files, which is all a reader looks at."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path


def row(**changes: object) -> dict[str, object]:
    values: dict[str, object] = {
        "problem_id": 2,
        "problem": "What appears on the screen?",
        "data_type": "video",
        "problem_type": "multiple choice",
        "options": ["A. a cat", "B. a dog", "C. a {bird}"],
        "process": "<think>x</think>",
        "solution": "<answer>B</answer>",
        "path": "./src/clip_00001.mp4",
        "data_source": "STAR",
    }
    return {key: value for key, value in {**values, **changes}.items() if value is not ...}


def write_rows(
    folder: Path, rows: Sequence[object], name: str = "train.json", media: Sequence[str] = ()
) -> Path:
    """An annotation file (JSON or JSONL by suffix) and its empty clips."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    text = json.dumps(rows) if name.endswith(".json") else "".join(json.dumps(r) + "\n" for r in rows)
    path.write_text(text, encoding="utf-8")
    for clip in media or ["src/clip_00001.mp4"]:
        (folder / clip).parent.mkdir(parents=True, exist_ok=True)
        (folder / clip).touch()
    return path
