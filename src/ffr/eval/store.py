"""A run's directory while it is written: one writer, append-only rows on disk before they count."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from ffr.eval.rows import (
    EVAL_FILE,
    ITEMS_FILE,
    ROWS_FILE,
    EvalRow,
    ItemRow,
    RunFileError,
    RunInfo,
    read_items,
    read_rows,
    read_run,
)

LOCK_FILE = ".lock"
Key = tuple[str, int, int, str]


class RunMixError(ValueError):
    """The directory holds a run that this one can't go on with; the message says what differs."""


class RunStore:
    """The files of one run; opening checks that old and new rows may lie side by side.

    Args:
        run: Output directory.
        info: What is about to be run.
        items: Its questions, in order.
        resume: Go on with the run that the directory holds, if it holds one.

    Raises:
        RunMixError: The directory holds a run and `resume` is off, the run differs in anything but
            further frames, seeds or benchmarks, or another process writes to it.
        RunFileError: A file of the run can't be read.

    Example:
        >>> with RunStore(Path("outputs/eval"), info, items, resume=True) as store:  # doctest: +SKIP
        ...     store.append([row])
    """

    def __init__(self, run: Path, info: RunInfo, items: Sequence[ItemRow], *, resume: bool) -> None:
        self.run = run
        run.mkdir(parents=True, exist_ok=True)
        self._lock = _lock(run / LOCK_FILE)
        try:
            self.items = {item.uid: item for item in items}
            self.rows: dict[Key, EvalRow] = {}
            """The rows that count: the good ones, else the last error."""
            if (run / EVAL_FILE).exists() or (run / ROWS_FILE).exists():
                if not resume:
                    raise RunMixError(
                        f"{run} holds a run already: go on with --resume, choose another --output-dir, "
                        "or remove it"
                    )
                self._take_up(info)
            self.info = info
            self._write(ITEMS_FILE, "".join(item.model_dump_json() + "\n" for item in self.items.values()))
            self.write_info(info)
            self._file = (run / ROWS_FILE).open("ab")
        except BaseException:
            self._unlock()
            raise

    def __enter__(self) -> RunStore:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def done(self, key: Key) -> bool:
        """Whether there is a row without an error."""
        row = self.rows.get(key)
        return row is not None and not row.error

    def append(self, rows: Iterable[EvalRow]) -> None:
        """Puts rows on disk; when this returns, a kill can't lose them."""
        new = list(rows)
        if not new:
            return
        self._file.write("".join(row.model_dump_json() + "\n" for row in new).encode())
        self._file.flush()
        os.fsync(self._file.fileno())
        for row in new:
            self.rows[row.key] = row

    def write_info(self, info: RunInfo) -> None:
        """Replaces `eval.json` in one step."""
        self.info = info
        self._write(EVAL_FILE, info.model_dump_json(indent=1) + "\n")

    def close(self) -> None:
        """Closes the rows and lets another process write; safe to call twice."""
        self._file.close()
        self._unlock()

    def _take_up(self, info: RunInfo) -> None:
        old = read_run(self.run)
        if old.config_hash != info.config_hash:
            raise RunMixError(
                f"{self.run} was run with other settings ({_differences(old.config, info.config)}): rows "
                "would be mixed; give the same settings, or choose another --output-dir"
            )
        for name, before, now in (
            ("--frames", old.frames, info.frames),
            ("--seeds", old.seeds, info.seeds),
            ("--benchmarks", tuple(old.benchmarks), tuple(info.benchmarks)),
        ):
            if lost := [str(value) for value in before if value not in now]:
                raise RunMixError(
                    f"{self.run} was begun with {name} {','.join(map(str, before))}; {','.join(lost)} is "
                    f"missing now: give all of them (more are allowed), or choose another --output-dir"
                )
        self._check_items(old)
        self._cut_tail()
        for row in read_rows(self.run) if (self.run / ROWS_FILE).exists() else []:
            if row.config_hash != info.config_hash:
                raise RunFileError(
                    f"{self.run / ROWS_FILE}: the row of {row.uid} is of another configuration "
                    f"({row.config_hash}, this run is {info.config_hash}); remove it or start anew"
                )
            self.rows[row.key] = row

    def _check_items(self, old: RunInfo) -> None:
        """The same questions as before, word for word: no number may change its denominator."""
        before = read_items(self.run)
        now = {uid: item for uid, item in self.items.items() if item.benchmark in old.benchmarks}
        if before == now:
            return
        changed = [uid for uid in before if uid in now and before[uid] != now[uid]]
        gone = [uid for uid in before if uid not in now]
        new = [uid for uid in now if uid not in before]
        parts = [
            f"{len(uids)} {word} (first {uids[0]})"
            for word, uids in (("changed", changed), ("gone", gone), ("new", new))
            if uids
        ]
        raise RunMixError(
            f"{self.run} asked other questions: {', '.join(parts)}; give the same --root, "
            "--tasks and --limit, or choose another --output-dir"
        )

    def _cut_tail(self) -> None:
        """Removes a last line that was cut off by a kill: its row was never counted."""
        path = self.run / ROWS_FILE
        if not path.exists():
            return
        data = path.read_bytes()
        whole = data.rfind(b"\n") + 1
        if whole < len(data):
            with path.open("r+b") as file:
                file.truncate(whole)
                os.fsync(file.fileno())

    def _write(self, name: str, text: str) -> None:
        part = self.run / f".{name}.part"
        with part.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, self.run / name)

    def _unlock(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def _lock(path: Path) -> int | None:
    """Holds the file until it is closed or the process ends, however it ends."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        if sys.platform == "win32":
            import msvcrt

            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        raise RunMixError(
            f"{path.parent}: another `ffr eval` writes here; wait for it, or choose another --output-dir"
        ) from None
    return handle


def _differences(old: Mapping[str, Any], new: Mapping[str, Any], *, shown: int = 4) -> str:
    parts = [
        f"{name} {_short(old.get(name))}, now {_short(new.get(name))}"
        for name in {**old, **new}
        if old.get(name) != new.get(name)
    ]
    more = f" and {len(parts) - shown} more" if len(parts) > shown else ""
    return "; ".join(parts[:shown]) + more


def _short(value: object) -> str:
    text = "unset" if value is None else str(value)
    return text if len(text) <= 16 else f"{text[:12]}..."
