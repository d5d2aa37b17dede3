"""The one exception that the observe room raises."""

from __future__ import annotations

from pathlib import Path

MEDIA_STATUSES = (
    "missing",
    "outside_root",
    "undecodable",
    "empty",
    "too_big",
    "too_long",
    "timeout",
)
"""All values of `MediaError.status`; counters use the same words."""


class MediaError(Exception):
    """A clip or image that can't be shown; the sample is skipped and counted, never replaced.

    Example:
        >>> MediaError("missing", Path("clips/7.mp4"), "no such file").status
        'missing'
    """

    def __init__(self, status: str, path: Path, detail: str) -> None:
        """Keep the status, the path and what a person can do about it.

        Raises:
            ValueError: If `status` is not one of `MEDIA_STATUSES`.
        """
        if status not in MEDIA_STATUSES:
            raise ValueError(f"unknown media status {status!r}; allowed: {', '.join(MEDIA_STATUSES)}")
        super().__init__(f"{status}: {path}: {detail}")
        self.status = status
        self.path = path
        self.detail = detail

    def __reduce__(self) -> tuple[type[MediaError], tuple[str, Path, str]]:
        """Travel between processes with all three parts."""
        return (type(self), (self.status, self.path, self.detail))
