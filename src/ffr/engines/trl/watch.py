"""Who waits for whom: every rank notes its phase, and a phase that lasts too long is told to a person.

A run of many ranks that hangs says nothing by itself: all ranks but one wait in a collective, and the one
that they wait for may be in a dead teacher's time-out or in a decoder. Each rank therefore keeps a small
file with its phase, step and samples beside the run, and the watchdog of any rank prints all of them.
"""

from __future__ import annotations

import faulthandler
import json
import os
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

PHASES = ("start", "find", "fix", "score", "update", "save", "export", "done")
"""In the order of a step; the rank that is behind is the one that the others wait for."""
EXIT_CODE = 124
"""Exit status after `train.watchdog_abort`: as of a command that timed out."""
_SHOWN = 8


@dataclass(frozen=True)
class Beat:
    """What a rank was doing last.

    Example:
        >>> Beat(rank=1, phase="fix", step=7, since_s=0.0, samples=("micro/3",)).words(60.0)
        'rank 1: fix for 60 s (since 00:00:00 UTC), step 7, samples micro/3'
    """

    rank: int
    phase: str
    step: int
    since_s: float
    """Unix time at which the phase began."""
    samples: tuple[str, ...] = ()
    """Uids of the questions at hand."""

    def words(self, now_s: float) -> str:
        """One line for a person."""
        clock = time.strftime("%H:%M:%S", time.gmtime(self.since_s))
        uids = ", ".join(self.samples[:_SHOWN])
        more = f" and {len(self.samples) - _SHOWN} more" if len(self.samples) > _SHOWN else ""
        tail = f", samples {uids}{more}" if uids else ""
        lasted = round(now_s - self.since_s)
        return f"rank {self.rank}: {self.phase} for {lasted} s (since {clock} UTC), step {self.step}{tail}"

    @property
    def progress(self) -> tuple[int, int]:
        """Larger is further."""
        return self.step, PHASES.index(self.phase)


class Watch:
    """Notes this rank's phase, and tells when it has not changed for too long.

    Args:
        folder: where all ranks of the run keep their notes.
        rank: of this process.
        num_ranks: of the run.
        timeout_s: a phase may last so long; None only keeps the notes.
        abort: end the process with `EXIT_CODE` after telling.
        out: a real file, where it is told; standard error if None.

    Example:
        >>> watch = Watch(Path("run/ranks"), rank=0, num_ranks=2, timeout_s=1800.0)  # doctest: +SKIP
        >>> with watch:  # doctest: +SKIP
        ...     watch.enter("find", step=1, samples=["micro/3"])
    """

    def __init__(
        self,
        folder: Path,
        *,
        rank: int = 0,
        num_ranks: int = 1,
        timeout_s: float | None = None,
        abort: bool = False,
        out: IO[Any] | None = None,
    ) -> None:
        self._folder = folder
        self._rank = rank
        self._num_ranks = num_ranks
        self._timeout_s = timeout_s
        self._abort = abort
        self._out = out
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._mark = time.monotonic()
        self._told = False
        self.beat = Beat(rank, "start", 0, time.time())

    def enter(self, phase: str, *, step: int | None = None, samples: Sequence[str] | None = None) -> None:
        """This rank begins a phase, or goes on with the next piece of it.

        Args:
            phase: one of `PHASES`.
            step: optimiser step being worked for; as before if None.
            samples: uids at hand; as before if None.
        """
        old = self.beat
        uids = old.samples if samples is None else tuple(samples)
        self.beat = Beat(self._rank, phase, old.step if step is None else step, time.time(), uids)
        self._mark, self._told = time.monotonic(), False
        if (phase, self.beat.step, uids) != (old.phase, old.step, old.samples):
            self._write()

    def __enter__(self) -> Watch:
        self._folder.mkdir(parents=True, exist_ok=True)
        self._write()
        if self._timeout_s is not None:
            self._stop.clear()
            self._thread = threading.Thread(target=self._look, name="ffr-watchdog", daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def report(self) -> str:
        """Who waits, for whom, and what every rank was doing last."""
        now = time.time()
        beats = [self.beat, *self._others()]
        behind = min(beats, key=lambda beat: beat.progress)
        lines = [f"watchdog: {self.beat.words(now)}: no progress for {self._timeout_s:g} s"]
        lines += [f"  {beat.words(now)}" for beat in sorted(beats, key=lambda beat: beat.rank)]
        if behind.progress < max(beat.progress for beat in beats):
            lines.append(f"  the others wait for rank {behind.rank}, in phase {behind.phase}")
        return "\n".join(lines)

    def _others(self) -> list[Beat]:
        found: list[Beat] = []
        for rank in range(self._num_ranks):
            if rank != self._rank:
                try:
                    note = json.loads(self._file(rank).read_text(encoding="utf-8"))
                except (OSError, ValueError):
                    # No note yet, or none that this node can see: as if it had not begun.
                    note = {"rank": rank, "phase": "start", "step": 0, "since_s": self.beat.since_s}
                found.append(Beat(**{**note, "samples": tuple(note.get("samples", ()))}))
        return found

    def _file(self, rank: int) -> Path:
        return self._folder / f"rank_{rank}.json"

    def _write(self) -> None:
        path = self._file(self._rank)
        if path.parent.is_dir():
            part = path.with_suffix(".part")
            part.write_text(json.dumps(asdict(self.beat)), encoding="utf-8")
            os.replace(part, path)

    def _look(self) -> None:
        assert self._timeout_s is not None
        while not self._stop.wait(min(self._timeout_s / 4, 10.0)):
            if not self._told and time.monotonic() - self._mark > self._timeout_s:
                self._told = True
                self._tell()

    def _tell(self) -> None:
        out = self._out or sys.__stderr__ or sys.stderr
        print(self.report(), file=out, flush=True)
        faulthandler.dump_traceback(file=out, all_threads=True)
        out.flush()
        if self._abort:
            print(f"watchdog: rank {self._rank} ends (train.watchdog_abort)", file=out, flush=True)
            os._exit(EXIT_CODE)
