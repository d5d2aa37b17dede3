"""Where a question's video lies under the root; no row can point out of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ffr.data.paths import PathRefused, resolve_media
from ffr.eval.benchmarks.fields import Fields


def find_media(root: Path, names: Sequence[str], row: Fields) -> tuple[Path, bool]:
    """The first of the places that exists, or the official place and False.

    Args:
        root: The benchmark's directory, or its annotation file (then the file's directory counts).
        names: Places relative to the root, the official one first; `*` as the suffix stands for any.
        row: For the message.

    Raises:
        EvalDataError: If a place leads out of the root.
    """
    base = root.parent if root.is_file() else root
    first: Path | None = None
    for name in names:
        try:
            path = resolve_media(base, name, must_exist=False)
        except PathRefused as refusal:
            raise row.error("video", f"{refusal.args[0]}; put the media under the root") from None
        first = first or path
        if path.exists():
            return path, True
    return first or base, False
