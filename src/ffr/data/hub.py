"""Annotation files on the Hugging Face hub: `hf://datasets/<owner>/<name>[@<revision>]/<file>`."""

from __future__ import annotations

import re
from pathlib import Path

from ffr.data.base import DataError

_HUB = re.compile(r"^hf:/{1,2}datasets/(?P<repo>[^/@]+/[^/@]+)(?:@(?P<revision>[^/]+))?/(?P<file>.+)$")


def is_hub_path(path: str | Path) -> bool:
    """True for `hf://...` (`Path` writes it with one slash)."""
    return str(path).startswith(("hf://", "hf:/"))


def resolve_hub_path(path: str | Path) -> Path:
    """The local file of a hub path, fetched into the hub's own cache if it isn't there yet.

    Args:
        path: `hf://datasets/<owner>/<name>/<file>`, with `@<revision>` after the name if wanted.

    Returns:
        A local path; the path itself if it is not a hub path.

    Raises:
        DataError: If the path is malformed, `huggingface_hub` is not installed, or the file can't be
            fetched (offline, no such file).
    """
    if not is_hub_path(path):
        return Path(path)
    match = _HUB.match(str(path))
    if match is None:
        raise DataError(Path(path), 0, "path", "is malformed; write hf://datasets/<owner>/<name>/<file>")
    try:
        from huggingface_hub import hf_hub_download
    except ImportError as error:
        raise DataError(
            Path(path),
            0,
            "path",
            "needs huggingface_hub; install find-fix-reason[train] or fetch the file yourself",
        ) from error
    try:
        return Path(
            hf_hub_download(
                repo_id=match["repo"], filename=match["file"], repo_type="dataset", revision=match["revision"]
            )
        )
    except (OSError, ValueError) as error:
        raise DataError(
            Path(path), 0, "path", f"can't be fetched ({error}); go online or give the path of a local copy"
        ) from error
