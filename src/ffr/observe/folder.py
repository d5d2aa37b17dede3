"""Clips that a data set ships as a folder of pictures (TVQA in MVBench): the same index, no decoder."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from fractions import Fraction
from pathlib import Path

from ffr.observe.errors import MediaError
from ffr.observe.frames import Pixels
from ffr.observe.video import ClipIndex
from ffr.types import Sample

FOLDER_FPS = 3.0
"""Pictures per second where the row's `meta["folder_fps"]` says nothing (TVQA's rate)."""
MAX_PICTURES = 100_000
"""Of one folder; the size of each is limited when it is read."""
_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp"})


def folder_fps(sample: Sample) -> float:
    """Pictures per second of the sample's folder.

    Raises:
        MediaError: If the row's `meta["folder_fps"]` is no positive number.
    """
    fps = sample.meta.get("folder_fps", FOLDER_FPS)
    if isinstance(fps, bool) or not isinstance(fps, int | float) or not 0 < fps < 1000:
        raise MediaError(
            "undecodable", sample.video, f"meta folder_fps is {fps!r}, must be a positive number"
        )
    return float(fps)


def picture_files(folder: Path) -> list[Path]:
    """The pictures of a folder, in the order of the numbers in their names (`frame2` before `frame10`).

    Raises:
        MediaError: `outside_root` if a picture is a link out of the folder, `too_long` if there are more
            than `MAX_PICTURES`.
    """
    base = folder.resolve()
    found: list[Path] = []
    for path in folder.iterdir():
        if path.suffix.lower() not in _SUFFIXES:
            continue
        if path.is_symlink() and path.resolve().parent != base:
            raise MediaError(
                "outside_root", folder, f"{path.name} is a link out of the folder; copy it there"
            )
        found.append(path)
        if len(found) > MAX_PICTURES:
            raise MediaError("too_long", folder, f"more than {MAX_PICTURES} pictures; cut the clip")
    return sorted(found, key=lambda path: ([int(n) for n in re.findall(r"\d+", path.stem)], path.name))


def index_folder(folder: Path, fps: float = FOLDER_FPS) -> ClipIndex:
    """When each picture of a folder is shown, at `fps` pictures per second.

    Raises:
        MediaError: `missing` if there is no picture.
    """
    num = len(picture_files(folder))
    if not num:
        kinds = ", ".join(sorted(_SUFFIXES))
        raise MediaError("missing", folder, f"the folder has no picture ({kinds}); fetch it again")
    step = 1 / Fraction(fps).limit_denominator(1000)
    return ClipIndex(pts=tuple(range(num)), keys=(), time_base=step)


def read_folder(
    folder: Path, wanted: Iterable[int], read: Callable[[Path], Pixels]
) -> tuple[dict[int, Pixels], tuple[str, ...]]:
    """Exactly the wanted pictures, by position; `partial:<k>` notes those that can't be read.

    Raises:
        MediaError: If none of them can be read.
    """
    files = picture_files(folder)
    got: dict[int, Pixels] = {}
    failed: list[MediaError] = []
    for i in sorted(set(wanted)):
        try:
            got[i] = read(files[i])
        except MediaError as error:
            failed.append(error)
    if not got:
        raise failed[0]
    return got, ((f"partial:{len(failed)}",) if failed else ())
