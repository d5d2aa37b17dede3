"""Media paths of a data file: always inside the media root, whatever the file says."""

from __future__ import annotations

import os
import re
from pathlib import Path, PurePosixPath, PureWindowsPath

_PROTOCOL = re.compile(r"^[A-Za-z][A-Za-z0-9+.\-]+:")


class PathRefused(ValueError):
    """A media path that isn't opened; the text is `<status>: <words>`.

    Example:
        >>> str(PathRefused("outside_root", "the path is absolute"))
        'outside_root: the path is absolute'
    """

    def __init__(self, status: str, words: str) -> None:
        """Keep the status (`missing` or `outside_root`)."""
        super().__init__(f"{status}: {words}")
        self.status = status


def resolve_media(root: Path, written: str, *, must_exist: bool = True) -> Path:
    """The real path of a media file that a row names, inside its root.

    Args:
        root: Media root.
        written: Path as the row has it, relative to the root; a leading `./` is usual (Video-R1).
        must_exist: Whether the file has to be there now.

    Returns:
        The path with symbolic links resolved.

    Raises:
        PathRefused: `outside_root` for absolute paths, `..`, NUL, protocols and links that lead out;
            `missing` if there is no such file.
    """
    if not written or "\0" in written:
        raise PathRefused(
            "outside_root", f"{written!r} is not a file path; write it relative to the media root"
        )
    posix, windows = PurePosixPath(written), PureWindowsPath(written)
    if posix.is_absolute() or windows.drive or windows.root:
        raise PathRefused(
            "outside_root", f"{written!r} is absolute; write it relative to the media root {root}"
        )
    if ".." in posix.parts or ".." in windows.parts:
        raise PathRefused("outside_root", f"{written!r} has '..'; write it relative to the media root {root}")
    base = os.path.realpath(root)
    real = os.path.realpath(os.path.join(base, written))
    if os.path.commonpath([base, real]) != base or real == base:
        raise PathRefused("outside_root", f"{written!r} leads out of the media root {root} through a link")
    if _PROTOCOL.match(written) and not os.path.isfile(real):
        raise PathRefused("outside_root", f"{written!r} names a protocol; only files are opened")
    if must_exist and not os.path.isfile(real):
        raise PathRefused("missing", f"no file {written!r} under {root}; fetch it or correct the row")
    return Path(real)
