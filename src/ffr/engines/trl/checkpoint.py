"""Whole checkpoints only: a manifest is written last, and a checkpoint without a true one is refused."""

from __future__ import annotations

import json
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

MANIFEST = "ffr_manifest.json"
_NAME = re.compile(r"checkpoint-(\d+)")


class CheckpointError(RuntimeError):
    """Nothing to resume from, or a named checkpoint that is not whole."""


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


def write_manifest(checkpoint: Path) -> None:
    """Declares a checkpoint whole: the size of every file, on disk before the manifest is."""
    files = sorted(p for p in checkpoint.rglob("*") if p.is_file() and not p.name.startswith(MANIFEST))
    for file in files:
        _flush(file)
    text = json.dumps({"files": {str(p.relative_to(checkpoint)): p.stat().st_size for p in files}}, indent=1)
    part = checkpoint / f"{MANIFEST}.part"
    part.write_text(text, encoding="utf-8")
    _flush(part)
    os.replace(part, checkpoint / MANIFEST)


def open_for_writing(checkpoint: Path) -> None:
    """Takes back an older manifest of the same step: from here on the checkpoint is not whole."""
    (checkpoint / MANIFEST).unlink(missing_ok=True)


def damage(checkpoint: Path) -> str:
    """Why a checkpoint is not whole; empty if it is."""
    manifest = checkpoint / MANIFEST
    try:
        files = json.loads(manifest.read_text(encoding="utf-8"))["files"]
    except FileNotFoundError:
        return "it was not finished (no manifest)"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"its manifest cannot be read ({type(error).__name__})"
    for name, size in files.items():
        file = checkpoint / name
        if not file.is_file():
            return f"{name} is missing"
        if (actual := file.stat().st_size) != size:
            return f"{name} has {actual} bytes instead of {size}"
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
    whole = [p for p in list_checkpoints(root) if not damage(p)]
    if len(whole) <= keep:
        return
    oldest = step_of(whole[-keep])
    for checkpoint in list_checkpoints(root):
        if step_of(checkpoint) < oldest:
            open_for_writing(checkpoint)
            shutil.rmtree(checkpoint)


def _flush(file: Path) -> None:
    handle = os.open(file, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
