"""Whole checkpoints only: a manifest is written last, and a checkpoint without a true one is refused.

Verified before a checkpoint is used: that the manifest is there and can be read, that every file it names
is there with its size and its SHA-256, and that the run which resumes stands at the same place in the
same data with as many processes.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

MANIFEST = "ffr_manifest.json"
_NAME = re.compile(r"checkpoint-(\d+)")


class CheckpointError(RuntimeError):
    """Nothing to resume from, or a named checkpoint that is not whole."""


@dataclass(frozen=True)
class Position:
    """Where a run stands after an optimiser step: what a resumed run must agree with.

    Example:
        >>> Position(step=2, num_processes=8, questions="5e..", num_questions=16).teacher_outcomes
        0
    """

    step: int
    """Optimiser steps done."""
    num_processes: int
    num_questions: int
    """Questions shown so far, by all processes."""
    questions: str
    """SHA-256 of their uids, in order."""
    teacher_outcomes: int = 0
    """Outcomes in the teacher's journal: the steps done so far are replayed from these."""


@dataclass(frozen=True)
class Found:
    """What a checkpoint directory holds.

    Example:
        >>> Found(path=None).refused
        ()
    """

    path: Path | None
    """The newest whole checkpoint."""
    refused: tuple[tuple[Path, str], ...] = ()
    """Newer ones that are not whole, with the reason."""


def step_of(checkpoint: Path) -> int:
    """Optimiser step of `checkpoint-<step>`."""
    match = _NAME.fullmatch(checkpoint.name)
    if match is None:
        raise CheckpointError(f"{checkpoint}: a checkpoint is a directory named checkpoint-<step>")
    return int(match.group(1))


def list_checkpoints(root: Path) -> list[Path]:
    """All checkpoint directories, oldest first, whole or not."""
    if not root.is_dir():
        return []
    return sorted((p for p in root.iterdir() if p.is_dir() and _NAME.fullmatch(p.name)), key=step_of)


def write_manifest(checkpoint: Path, position: Position | None = None) -> None:
    """Declares a checkpoint whole: size and SHA-256 of every file, on disk before the manifest is."""
    files = sorted(p for p in checkpoint.rglob("*") if p.is_file() and not p.name.startswith(MANIFEST))
    for file in files:
        _flush(file)
    content: dict[str, object] = {
        "files": {
            str(p.relative_to(checkpoint)): {"bytes": p.stat().st_size, "sha256": _sha256(p)} for p in files
        }
    }
    if position is not None:
        content["position"] = asdict(position)
    part = checkpoint / f"{MANIFEST}.part"
    part.write_text(json.dumps(content, indent=1), encoding="utf-8")
    _flush(part)
    os.replace(part, checkpoint / MANIFEST)
    _flush(checkpoint)


def open_for_writing(checkpoint: Path) -> None:
    """Takes back an older manifest of the same step: from here on the checkpoint is not whole."""
    (checkpoint / MANIFEST).unlink(missing_ok=True)


def damage(checkpoint: Path, *, content: bool = True) -> str:
    """Why a checkpoint is not whole; empty if it is.

    Args:
        checkpoint: its directory.
        content: also read every file and compare its SHA-256; False compares sizes only.
    """
    try:
        files = {
            str(name): (int(entry["bytes"]), str(entry["sha256"]))
            for name, entry in _manifest(checkpoint)["files"].items()
        }
    except FileNotFoundError:
        return "it was not finished (no manifest)"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"its manifest cannot be read ({type(error).__name__})"
    for name, (size, digest) in files.items():
        file = checkpoint / name
        if not file.is_file():
            return f"{name} is missing"
        if (actual := file.stat().st_size) != size:
            return f"{name} has {actual} bytes instead of {size}"
        if content and _sha256(file) != digest:
            return f"{name} has another content than was written (SHA-256)"
    return ""


def check_position(checkpoint: Path, now: Position) -> str:
    """Compares where a checkpoint was made with where this run would go on from it.

    Args:
        checkpoint: a whole one.
        now: of the run that resumes, for the step of the checkpoint.

    Returns:
        A warning, or nothing.

    Raises:
        CheckpointError: the run would see other questions than the ones that follow.
    """
    noted = _manifest(checkpoint).get("position")
    if noted is None:
        return f"{checkpoint}: it does not say where in the data it was made; that is not checked"
    try:
        then = Position(**{field.name: noted[field.name] for field in fields(Position)})
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"{checkpoint}: its manifest's position cannot be read ({error})") from error
    if then.num_processes != now.num_processes:
        raise CheckpointError(
            f"{checkpoint}: it was made by {then.num_processes} processes, this run has {now.num_processes}; "
            "resume with as many, or start anew from its weights (model.path)"
        )
    if (then.num_questions, then.questions) != (now.num_questions, now.questions):
        raise CheckpointError(
            f"{checkpoint}: it was made after {then.num_questions} other questions than this run shows until "
            f"step {then.step}; data, train.seed, train.questions_per_step and train.updates_per_batch must "
            "be as they were, and all clips decodable"
        )
    if now.teacher_outcomes < then.teacher_outcomes:
        return (
            f"{checkpoint}: the teacher's journal holds {now.teacher_outcomes} outcomes, "
            f"{then.teacher_outcomes} when the checkpoint was made; what is lost is asked for and paid again"
        )
    return ""


def find_checkpoint(root: Path) -> Found:
    """The newest whole checkpoint under `root`, and the newer ones that had to be refused."""
    refused: list[tuple[Path, str]] = []
    for checkpoint in reversed(list_checkpoints(root)):
        reason = damage(checkpoint)
        if not reason:
            return Found(checkpoint, tuple(refused))
        refused.append((checkpoint, reason))
    return Found(None, tuple(refused))


def named_checkpoint(path: Path) -> Path:
    """A checkpoint that a person asked for by name.

    Raises:
        CheckpointError: It is not whole.
    """
    step_of(path)
    if reason := damage(path):
        raise CheckpointError(f"{path}: {reason}; resume from another checkpoint")
    return path


def keep_newest(root: Path, keep: int) -> None:
    """Deletes whole checkpoints beyond the newest `keep`, and unfinished ones older than those."""
    whole = [p for p in list_checkpoints(root) if not damage(p, content=False)]
    if len(whole) <= keep:
        return
    oldest = step_of(whole[-keep])
    for checkpoint in list_checkpoints(root):
        if step_of(checkpoint) < oldest:
            open_for_writing(checkpoint)
            shutil.rmtree(checkpoint)


def _manifest(checkpoint: Path) -> dict[str, Any]:
    return json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8"))


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _flush(file: Path) -> None:
    handle = os.open(file, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
