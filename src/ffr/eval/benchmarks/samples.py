"""Tiny benchmarks in the official shapes, with real clips: our own content, for tests and for a first try."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from ffr.data.microworld import write_clip, write_microworld
from ffr.eval.base import EvalDataError
from ffr.eval.benchmarks.mvbench import TASKS as MVBENCH_TASKS
from ffr.eval.benchmarks.video_mmmu import TRACKS

FPS, NUM_FRAMES, SIDE_PX = 8, 24, 64
"""Of every clip: three seconds of a bright square that crosses a dark field."""
_MOVES = ("To the right", "To the left", "Upwards", "Downwards")
_LETTERS = "ABCDEF"


def write_sample(name: str, root: Path) -> Path:
    """Writes a tiny benchmark as its official files lie on the hub.

    Args:
        name: A benchmark's name.
        root: Directory to write into; made if it is not there.

    Returns:
        The root, for `get_benchmark(name).load`.

    Raises:
        EvalDataError: If the name is unknown.
    """
    writer = _WRITERS.get(name)
    if writer is None:
        raise EvalDataError(f"unknown benchmark {name!r}; known: {', '.join(_WRITERS)}")
    root.mkdir(parents=True, exist_ok=True)
    writer(root)
    return root


def square_frames(move: int) -> npt.NDArray[np.uint8]:
    """A square that moves as `_MOVES[move % 4]` says; RGB, shape (NUM_FRAMES, SIDE_PX, SIDE_PX, 3)."""
    frames = np.full((NUM_FRAMES, SIDE_PX, SIDE_PX, 3), 30, dtype=np.uint8)
    for k in range(NUM_FRAMES):
        step = 2 * k if move % 2 == 0 else 46 - 2 * k
        across = move % 4 < 2
        y, x = (24, step) if across else (46 - step, 24)
        frames[k, y : y + 16, x : x + 16] = (230, 200, 40 * (move % 6))
    return frames


def _clip(root: Path, name: str, move: int) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    write_clip(square_frames(move), path, fps=FPS)


def _json(root: Path, name: str, data: Any) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data, indent=1), encoding="utf-8")


def _jsonl(root: Path, name: str, rows: list[dict[str, Any]]) -> None:
    path = root / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def _lettered(num: int = 4) -> dict[str, str]:
    texts = (*_MOVES, "It stays where it is", "In a circle")
    return dict(zip(_LETTERS[:num], texts, strict=False))


def _mmvu(root: Path) -> None:
    rows: list[dict[str, Any]] = []
    for i in range(4):
        place = f"videos/Physics/{i}.mp4"
        _clip(root, place, i)
        is_open = i == 3
        rows.append(
            {
                "id": f"validation_{i}",
                "video": f"https://huggingface.co/datasets/yale-nlp/MMVU/resolve/main/{place}",
                "youtube_url": "",
                "question_type": "open-ended" if is_open else "multiple-choice",
                "metadata": {"subject": "Physics", "textbook": "", "rationale": "", "knowledge": []},
                "question": "Which way does the square move?",
                "choices": dict.fromkeys("ABCDE", "") if is_open else _lettered(5),
                "answer": _MOVES[i] if is_open else _LETTERS[i],
            }
        )
    _json(root, "validation.json", rows)


def _vsi_bench(root: Path) -> None:
    kinds: list[tuple[str, str, str, list[str] | None]] = [
        ("object_counting", "How many square(s) are in this room?", "1", None),
        ("room_size_estimation", "What is the size of this field in square meters?", "10.5", None),
        *(
            (f"object_rel_direction_{level}", "Which way does the square move?", "A", None)
            for level in ("easy", "medium", "hard")
        ),
        ("obj_appearance_order", "What is seen first?", "B", ["A. circle", "B. square"]),
    ]
    rows: list[dict[str, Any]] = []
    for i, (kind, question, gold, options) in enumerate(kinds):
        scene = f"scene{i:04d}_00"
        _clip(root, f"scannet/{scene}.mp4", 0)
        if kind.startswith("object_rel_direction"):
            options = [f"{label}. {text}" for label, text in _lettered().items()]
        rows.append(
            {
                "id": i,
                "dataset": "scannet",
                "scene_name": scene,
                "question_type": kind,
                "question": question,
                "ground_truth": gold,
                "options": options,
            }
        )
    _jsonl(root, "test.jsonl", rows)


def _video_mmmu(root: Path) -> None:
    names = [f"validation_Physics_{i}" for i in range(2)]
    for i, name in enumerate(names):
        _clip(root, f"Science/{name}.mp4", i)
        _clip(root, f"question_only/{name}_image.mp4", i)
    for track in TRACKS:
        rows: dict[str, dict[str, Any]] = {}
        for i, name in enumerate(names):
            row: dict[str, Any] = {
                "id": name,
                "link_selected": "",
                "question": f"Which way does the square move in {track.lower()}? <image 1>",
                "options": list(_MOVES),
                "answer": _LETTERS[i],
            }
            if track == "Adaptation":
                row["question_type"] = "multiple-choice"
                if i == 1:
                    row |= {"question_type": "open", "options": [], "answer": "2.5"}
            rows[str(i)] = row
        _json(root, f"data/{track.lower()}_video.json", {track: rows})


def _video_holmes(root: Path) -> None:
    rows: list[dict[str, Any]] = []
    for i, kind in enumerate(("SR", "IMC", "TCI", "TA", "MHR", "PAR", "CTI")):
        video = f"film{i // 2:07d}"
        _clip(root, f"videos_cropped/{video}.mp4", i // 2)
        rows.append(
            {
                "video ID": video,
                "Question ID": i + 1,
                "Question Type": kind,
                "Question": "Which way does the square move?",
                "Options": _lettered(6),
                "Answer": _LETTERS[i // 2],
                "Explanation": "It can be seen.",
            }
        )
    _json(root, "test_Video-Holmes.json", rows)


def _longvideobench(root: Path) -> None:
    rows: list[dict[str, Any]] = []
    for i, kind in enumerate(("S2E", "TOS", "TAA", "O3O")):
        video = f"long{i:07d}"
        _clip(root, f"videos/{video}.mp4", i)
        said = [
            {"timestamp": [0.0, 1.5], "text": "Here it goes."},
            {"timestamp": [1.6, 2.9], "text": "Gone."},
        ]
        _json(root, f"subtitles/{video}_en.json", said)
        rows.append(
            {
                "video_id": video,
                "question": "When the voice says 'Here it goes.', which way does the square move?",
                "question_wo_referring_query": "Which way does the square move?",
                "candidates": list(_lettered(4 + i % 2).values()),
                "correct_choice": i,
                "position": [1, 9],
                "topic_category": "KG-Knowledge-Geometry",
                "question_category": kind,
                "level": "L1-Perception",
                "id": f"{video}_{i}",
                "video_path": f"{video}.mp4",
                "subtitle_path": f"{video}_en.json",
                "duration_group": 15,
                "starting_timestamp_for_subtitles": 0,
                "duration": NUM_FRAMES / FPS,
            }
        )
    _json(root, "lvb_val.json", rows)


def _lvbench(root: Path) -> None:
    options = "\n".join(f"({label}) {text}" for label, text in _lettered().items())
    kinds = (["event understanding"], ["key information retrieval", "temporal grounding"])
    rows: list[dict[str, Any]] = []
    for i in range(2):
        key = f"hours{i:06d}"
        _clip(root, f"videos/{key}.mp4", i)
        entries = [
            {
                "uid": str(100 * i + k),
                "question": f"Which way does the square move at 00:0{k}?\n{options}",
                "answer": _LETTERS[i],
                "question_type": list(kinds[k]),
                "time_reference": f"00:0{k}-00:0{k + 1}",
            }
            for k in range(2)
        ]
        info = {"duration_minutes": 0.05, "fps": FPS, "resolution": {"width": SIDE_PX, "height": SIDE_PX}}
        rows.append({"key": key, "type": "cartoon", "video_info": info, "qa": entries})
    _jsonl(root, "video_info.meta.jsonl", rows)


def _mvbench(root: Path) -> None:
    """All tasks have their file; three have questions: a whole clip, a bounded one, a folder of images."""
    for task in MVBENCH_TASKS:
        _json(root, f"json/{task}.json", [])
    asked = {"question": "Which way does the square move?", "candidates": list(_MOVES)}
    rows: list[dict[str, Any]] = []
    for i in range(2):
        _clip(root, f"video/clevrer/video_validation/video_1000{i}.mp4", i)
        rows.append({"video": f"video_1000{i}.mp4", **asked, "answer": _MOVES[i]})
    _json(root, "json/moving_direction.json", rows)
    _clip(root, "video/star/Charades_v1_480/SQUA1.mp4", 0)
    bounds = {"start": 0.5, "end": 2.0}
    row = {"video": "SQUA1.mp4", **asked, "answer": _MOVES[0], **bounds, "question_id": "Sequence_T1_0"}
    _json(root, "json/action_sequence.json", [row, {**row, "start": 1.0, "end": 2.5}])
    folder = root / "video/tvqa/frames_fps3_hq/square_s01e01_seg01_clip_00"
    folder.mkdir(parents=True, exist_ok=True)
    for k, pixels in enumerate(square_frames(2)[:12], start=1):
        Image.fromarray(pixels).save(folder / f"{k:05d}.jpg", quality=95)
    row = {"video": folder.name, "subtitle": "", **asked, "answer": _MOVES[2], "start": 1.0, "end": 3.0}
    _json(root, "json/episodic_reasoning.json", [row])


def _tempcompass(root: Path) -> None:
    trees: dict[str, dict[str, Any]] = {
        task: {} for task in ("multi-choice", "yes_no", "caption_matching", "captioning")
    }
    for i in range(2):
        video, move = str(1000 + i), _MOVES[i]
        _clip(root, f"videos/{video}.mp4", i)
        options = "\n".join(f"{label}. {text}" for label, text in _lettered(3).items())
        asked = "Which way does the square move?"
        heads = ("Option 1", "Option 2") if i else ("Sentence A", "Sentence B")
        lines = [f"{head}: The square moves {m.lower()}." for head, m in zip(heads, _MOVES, strict=False)]
        asks: dict[str, tuple[str, str]] = {
            "multi-choice": (f"{asked}\n{options}", f"{_LETTERS[i]}. {move}"),
            "yes_no": ("Does the square move to the right?", "no" if i else "yes"),
            "caption_matching": ("\n".join(["Which one describes the video?", *lines]), lines[i]),
            "captioning": ("Describe the video.\nGenerated Caption:", f"{_LETTERS[i]}. {move}"),
        }
        for task, (question, answer) in asks.items():
            trees[task][video] = {"direction": [{"question": question, "answer": answer}]}
    for task, tree in trees.items():
        _json(root, f"questions/{task}.json", tree)


def _video_r1(root: Path) -> None:
    kinds: tuple[tuple[str, str, list[str]], ...] = (
        ("multiple choice", "B", [f"{label}. {text}" for label, text in _lettered().items()]),
        ("numerical", "1", []),
        ("regression", "1.5", []),
        ("free-form", "To the right", []),
    )
    rows: list[dict[str, Any]] = []
    for i, (kind, gold, options) in enumerate(kinds):
        _clip(root, f"Evaluation/Squares/{i}.mp4", 1 if i == 0 else 0)
        rows.append(
            {
                "problem_id": i,
                "problem": "Which way, or how far, does the square move?",
                "data_type": "video",
                "problem_type": kind,
                "options": options,
                "process": "",
                "solution": f"<answer>{gold}</answer>",
                "path": f"./Evaluation/Squares/{i}.mp4",
                "data_source": "squares",
            }
        )
    _json(root, "eval_squares.json", rows)


def _microworld(root: Path) -> None:
    write_microworld(root, num_train=0, num_test=6)


_WRITERS: Mapping[str, Callable[[Path], None]] = {
    "mmvu": _mmvu,
    "vsi_bench": _vsi_bench,
    "video_mmmu": _video_mmmu,
    "video_holmes": _video_holmes,
    "longvideobench": _longvideobench,
    "lvbench": _lvbench,
    "mvbench": _mvbench,
    "tempcompass": _tempcompass,
    "microworld": _microworld,
    "video_r1": _video_r1,
}
