"""Writes MicroWorld as users have data: MP4 clips and Video-R1 JSON, plus the exact timelines."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av

from ffr.data.microworld.questions import Question, make_question
from ffr.data.microworld.render import Pixels, render_frames
from ffr.data.microworld.world import (
    CELLS,
    COLOURS,
    DIRECTIONS,
    FPS,
    KINDS,
    SHAPES,
    World,
    sample_world,
    world_rng,
)


@dataclass(frozen=True)
class MicroWorld:
    """Where a written MicroWorld lies.

    Example:
        >>> root = Path("world")
        >>> MicroWorld(root=root, train=root / "train.json", test=root / "test.json").train.name
        'train.json'
    """

    root: Path
    train: Path
    test: Path


def iter_worlds(split: str, num: int, *, seed: int) -> Iterator[tuple[World, Question]]:
    """Yields `num` timelines with their questions, kinds in turn."""
    for index in range(num):
        rng = world_rng(split, seed=seed, index=index)
        world = sample_world(rng, KINDS[index % len(KINDS)])
        yield world, make_question(world, rng)


def write_clip(frames: Pixels, path: Path, *, fps: int = FPS) -> None:
    """Encodes RGB frames (F, H, W, 3) as H.264 MP4, atomically."""
    temporary = _beside(path)
    with av.open(str(temporary), "w", format="mp4") as container:
        stream: Any = container.add_stream("libx264", rate=fps)
        stream.width, stream.height = frames.shape[2], frames.shape[1]
        stream.pix_fmt = "yuv420p"
        stream.time_base = Fraction(1, fps)
        stream.options = {"crf": "12", "preset": "veryfast", "threads": "1"}
        for pixels in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    os.replace(temporary, path)


def _beside(path: Path) -> Path:
    """A name of this process alone: two runs may write the same world at the same time."""
    return path.with_name(f".{os.getpid()}.{path.name}")


def _write_text(path: Path, text: str) -> None:
    temporary = _beside(path)
    temporary.write_text(text)
    os.replace(temporary, path)


def timeline_row(world: World) -> dict[str, Any]:
    """The exact timeline in words, one list of 8 slots per object (None while absent)."""
    return {
        shape: [
            {
                "colour": COLOURS[int(world.colour[i, slot])],
                "cell": CELLS[int(world.cell[i, slot])],
                "direction": DIRECTIONS[int(world.direction[i, slot])],
                "glow": bool(world.glow[i, slot]),
            }
            if world.present[i, slot]
            else None
            for slot in range(world.present.shape[1])
        ]
        for i, shape in enumerate(SHAPES)
    }


def _row(split: str, index: int, world: World, question: Question) -> dict[str, Any]:
    evidence = question.evidence
    return {
        "problem_id": index,
        "problem": question.text,
        "data_type": "video",
        "problem_type": "multiple choice",
        "options": [f"{chr(65 + i)}. {text}" for i, text in enumerate(question.options)],
        "solution": f"<answer>{question.answer}</answer>",
        "path": f"./clips/{split}/{index:05d}.mp4",
        "data_source": "microworld",
        "scenario": world.kind,
        "evidence": {
            "spans_s": [list(span) for span in evidence.spans_s],
            "boxes": [list(box) for box in evidence.boxes],
            "note": evidence.note,
        },
    }


def write_microworld(
    root: Path,
    *,
    num_train: int,
    num_test: int,
    seed: int = 0,
    on_clip: Callable[[], None] | None = None,
) -> MicroWorld:
    """Writes clips, `train.json`, `test.json` and timelines under `root`; returns their paths.

    A folder that already holds the same request is left as it is; clips that exist are kept, so
    that an interrupted call goes on where it stopped.

    Args:
        root: Target folder.
        num_train: Training questions, one clip each.
        num_test: Held-out questions, from seeds that training never uses.
        seed: Of the whole data set.
        on_clip: Called after each clip, for progress bars.
    """
    for split, num in (("train", num_train), ("test", num_test)):
        folder = root / "clips" / split
        folder.mkdir(parents=True, exist_ok=True)
        rows: list[dict[str, Any]] = []
        timelines: list[str] = []
        for index, (world, question) in enumerate(iter_worlds(split, num, seed=seed)):
            path = folder / f"{index:05d}.mp4"
            stamp = path.with_suffix(".seed")
            if not (path.exists() and stamp.exists() and stamp.read_text() == str(seed)):
                write_clip(render_frames(world), path)
                _write_text(stamp, str(seed))
            rows.append(_row(split, index, world, question))
            timelines.append(json.dumps({"problem_id": index, **timeline_row(world)}))
            if on_clip:
                on_clip()
        _write_text(root / f"{split}.json", json.dumps(rows, indent=1))
        _write_text(root / f"{split}.timelines.jsonl", "\n".join(timelines) + "\n")
    return MicroWorld(root=root, train=root / "train.json", test=root / "test.json")
