"""Frame cache: one `.npz` per decoded clip and setting, keyed by content, written atomically.

The key covers the clip's identity, the frame selection, the pixel limits and the decoder's version.
Identity is the sha256 of the file's bytes up to `HASHED_BYTES`; above that, where hashing would cost
more than decoding, it is size, modification time and resolved path. The file name says which:
`c-` for content, `m-` for metadata. No pickle is written or read.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ffr.observe.frames import make_frame
from ffr.types import Frame

HASHED_BYTES = 64 * 1024 * 1024
VERSION = 1
"""Raised when decoding or resizing changes what a key stands for."""


@dataclass(frozen=True, slots=True)
class CachedClip:
    """What decoding a clip gave: frames, length and notes.

    Example:
        >>> CachedClip(frames=(), duration_s=1.5, notes=("short_clip:3",)).notes
        ('short_clip:3',)
    """

    frames: tuple[Frame, ...]
    duration_s: float
    notes: tuple[str, ...]


def file_identity(path: Path) -> str:
    """`c-<sha256 of the bytes>`, or `m-<sha256 of size, mtime and path>` for large files and folders."""
    if path.is_dir():
        text = json.dumps(
            [[f.name, f.stat().st_size, f.stat().st_mtime_ns] for f in sorted(path.iterdir())]
            + [str(path.resolve())]
        )
        return "m-" + hashlib.sha256(text.encode()).hexdigest()
    stat = path.stat()
    if stat.st_size > HASHED_BYTES:
        text = f"{stat.st_size}:{stat.st_mtime_ns}:{path.resolve()}"
        return "m-" + hashlib.sha256(text.encode()).hexdigest()
    with path.open("rb") as file:
        return "c-" + hashlib.file_digest(file, "sha256").hexdigest()


def cache_file(cache_dir: Path, identity: str, settings: Sequence[object]) -> Path:
    """Where the frames of the clip with this `file_identity` are kept under these settings."""
    text = json.dumps([VERSION, identity, *settings])
    return cache_dir / f"{identity[:2]}{hashlib.sha256(text.encode()).hexdigest()[:40]}.npz"


def load(path: Path) -> CachedClip | None:
    """Read an entry; None if there is none.

    Raises:
        ValueError: If the entry is damaged (the caller decodes again, notes it and overwrites it).
    """
    if not path.exists():
        return None
    try:
        with np.load(path, allow_pickle=False) as data:
            pixels = data["pixels"]
            meta = json.loads(str(data["meta"]))
        frames = tuple(
            make_frame(pixels[i], number=i + 1, source_index=int(s), timestamp_s=float(t))
            for i, (s, t) in enumerate(zip(meta["source_indices"], meta["timestamps_s"], strict=True))
        )
        if [f.sha256 for f in frames] != meta["sha256"]:
            raise ValueError("pixels do not match their hashes")
        return CachedClip(frames, float(meta["duration_s"]), tuple(meta["notes"]))
    except (OSError, EOFError, KeyError, TypeError, IndexError, ValueError, zipfile.BadZipFile) as error:
        raise ValueError(f"damaged frame cache entry {path}: {error}") from error


def store(path: Path, clip: CachedClip) -> None:
    """Write an entry: a temporary file in the same folder, then a rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    meta = {
        "source_indices": [f.source_index for f in clip.frames],
        "timestamps_s": [f.timestamp_s for f in clip.frames],
        "sha256": [f.sha256 for f in clip.frames],
        "duration_s": clip.duration_s,
        "notes": list(clip.notes),
    }
    pixels = np.stack([f.pixels for f in clip.frames if f.pixels is not None])
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".part-", suffix=".npz")
    try:
        with os.fdopen(handle, "wb") as file:
            np.savez_compressed(file, pixels=pixels, meta=np.array(json.dumps(meta)))
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
