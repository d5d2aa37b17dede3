"""One writer per file: a lock that the kernel takes back when its process ends, however it ends."""

from __future__ import annotations

import json
import os
import socket
import sys
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Final

MAX_TRIES: Final = 20
"""A lock file that its owner removes at the same moment is looked at again."""


class FileLocked(RuntimeError):
    """Another process writes this file; the message names both.

    Example:
        >>> str(FileLocked(Path("p.jsonl"), "process 7 on here")).startswith("p.jsonl is being written by")
        True
    """

    def __init__(self, path: Path, owner: str) -> None:
        super().__init__(
            f"{path} is being written by {owner}; wait until it has ended, or choose another --output"
        )


class FileLock:
    """Holds `.<name>.lock` beside a file; the file itself may be replaced meanwhile.

    Args:
        path: The file to be written.

    Raises:
        FileLocked: On `acquire` or entering, if another process holds it.
        OSError: The lock file cannot be made.

    Example:
        >>> with FileLock(Path("patches.jsonl")):  # doctest: +SKIP
        ...     write()
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lock_path = path.with_name(f".{path.name}.lock")
        self._handle: int | None = None

    def acquire(self) -> None:
        """Take the lock, or raise at once."""
        for _ in range(MAX_TRIES):
            handle = os.open(self.lock_path, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                if not _try_lock(handle):
                    raise FileLocked(self.path, _owner(self.lock_path))
                if _same_file(handle, self.lock_path):
                    os.ftruncate(handle, 0)
                    os.lseek(handle, 0, os.SEEK_SET)
                    os.write(handle, json.dumps(_me()).encode())
                    self._handle = handle
                    return
            except BaseException:
                os.close(handle)
                raise
            os.close(handle)  # its last owner removed it between our opening and our locking
        raise FileLocked(self.path, "processes that come and go")

    def release(self) -> None:
        """Give the lock back and remove its file; nothing without it."""
        handle, self._handle = self._handle, None
        if handle is None:
            return
        with suppress(OSError):  # a file left behind is no lock: the next one takes it over
            self.lock_path.unlink()
        os.close(handle)

    def __enter__(self) -> FileLock:
        self.acquire()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


def _try_lock(handle: int) -> bool:
    if sys.platform == "win32":
        import msvcrt

        os.lseek(handle, 1 << 30, os.SEEK_SET)  # a byte that nobody reads: locked bytes cannot be read there
        try:
            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True
    import fcntl

    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _same_file(handle: int, path: Path) -> bool:
    """True if the locked file is still the one that others will open."""
    try:
        return os.path.samestat(os.fstat(handle), os.stat(path))
    except FileNotFoundError:
        return False


def _me() -> dict[str, Any]:
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return {"process": os.getpid(), "host": socket.gethostname(), "since": now}


def _owner(path: Path) -> str:
    """Who wrote the lock file, in words."""
    try:
        value: Any = json.loads(path.read_bytes()[:1_000])
        host, since = str(value["host"])[:100], str(value["since"])[:40]
        return f"process {int(value['process'])} on {host}, since {since}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"
