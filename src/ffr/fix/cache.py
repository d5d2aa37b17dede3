"""One SQLite file per run: the teacher's outcomes by content, and how many calls were paid.

Cache and journal at once: an outcome is on disk (WAL, synchronous=FULL) before it is used, so a resumed run
replays it and never pays twice. Values are JSON, never pickle.
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from ffr.fix.teacher import CACHEABLE, TeacherRequest
from ffr.types import Diagnosis, ErrorType, EvidencePatch, SpatialRegion, TeacherCost, ToolCall

SCHEMA_VERSION: Final = 1
BUSY_TIMEOUT_S: Final = 30.0

_CREATE: Final = """
CREATE TABLE IF NOT EXISTS outcomes (key TEXT PRIMARY KEY, value TEXT NOT NULL, written_s REAL NOT NULL);
CREATE TABLE IF NOT EXISTS counters (name TEXT PRIMARY KEY, value INTEGER NOT NULL);
"""


class JournalError(RuntimeError):
    """The journal cannot keep its promise: not writable, full, of another version, or no journal at all."""


class Journal:
    """Durable map from content keys to JSON outcomes; safe with several threads and processes.

    The first writer of a key wins and `put` returns what is stored: all processes act on one outcome.

    Args:
        path: The file; made with its parent directories when absent.

    Raises:
        JournalError: Not a journal of this version, or not writable.

    Example:
        >>> journal = Journal(Path("run/journal.sqlite"))  # doctest: +SKIP
        >>> journal.put("k", {"failure": ""})  # doctest: +SKIP
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.RLock()
        self._pid = -1
        self._db: sqlite3.Connection | None = None
        path.parent.mkdir(parents=True, exist_ok=True)
        with self._transaction() as db:
            (version,) = db.execute("PRAGMA user_version").fetchone()
            if version not in (0, SCHEMA_VERSION):
                raise JournalError(
                    f"{path}: journal version {version}, this program writes {SCHEMA_VERSION}; move the file"
                )
            for statement in _CREATE.strip().splitlines():
                db.execute(statement)
            db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")

    def get(self, key: str) -> dict[str, Any] | None:
        """The stored outcome, or None."""
        with self._guarded() as db:
            row = db.execute("SELECT value FROM outcomes WHERE key = ?", (key,)).fetchone()
        return None if row is None else json.loads(row[0])

    def put(self, key: str, value: dict[str, Any]) -> dict[str, Any]:
        """Store an outcome unless the key has one; returns what is stored, which is on disk by then."""
        text = json.dumps(value, sort_keys=True, allow_nan=False)
        with self._transaction() as db:
            db.execute("INSERT OR IGNORE INTO outcomes VALUES (?, ?, ?)", (key, text, time.time()))
            row = db.execute("SELECT value FROM outcomes WHERE key = ?", (key,)).fetchone()
        return json.loads(row[0])

    def try_spend(self, limit: int | None) -> bool:
        """Count one paid call of the run unless `limit` is reached (see `Budget`)."""
        with self._transaction() as db:
            db.execute("INSERT OR IGNORE INTO counters VALUES ('paid_calls', 0)")
            cursor = db.execute(
                "UPDATE counters SET value = value + 1"
                " WHERE name = 'paid_calls' AND (? IS NULL OR value < ?)",
                (limit, limit),
            )
            return cursor.rowcount == 1

    @property
    def paid_calls(self) -> int:
        """Calls counted since the file was made."""
        with self._guarded() as db:
            row = db.execute("SELECT value FROM counters WHERE name = 'paid_calls'").fetchone()
        return 0 if row is None else int(row[0])

    def __len__(self) -> int:
        with self._guarded() as db:
            return int(db.execute("SELECT COUNT(*) FROM outcomes").fetchone()[0])

    def close(self) -> None:
        """Close this process's connection; the journal may be used again."""
        with self._lock:
            if self._db is not None and self._pid == os.getpid():
                self._db.close()
            self._db = None

    def _connect(self) -> sqlite3.Connection:
        # A connection must not cross fork: the child would share the parent's locks.
        if self._db is None or self._pid != os.getpid():
            db = sqlite3.connect(
                self.path, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False
            )
            db.execute("PRAGMA journal_mode = WAL")
            db.execute("PRAGMA synchronous = FULL")
            self._db, self._pid = db, os.getpid()
        return self._db

    @contextmanager
    def _guarded(self) -> Generator[sqlite3.Connection]:
        with self._lock:
            try:
                yield self._connect()
            except sqlite3.Error as error:
                raise JournalError(
                    f"{self.path}: {error}; check that it is a journal, is writable and the disk has room"
                ) from error

    @contextmanager
    def _transaction(self) -> Generator[sqlite3.Connection]:
        with self._guarded() as db:
            db.execute("BEGIN IMMEDIATE")
            try:
                yield db
                db.execute("COMMIT")
            except BaseException:
                if db.in_transaction:
                    db.execute("ROLLBACK")
                raise


def diagnosis_key(request: TeacherRequest, *, teacher_name: str, settings: str, attempt: int) -> str:
    """Content key of one question to the teacher.

    Made of the frames' hashes (not the path), times, question, options, the gold answer iff it was given,
    the failed text, who is asked (name: model, profile, prompt version) and which attempt this is.

    Args:
        request: The request.
        teacher_name: `Teacher.name`.
        settings: Whatever else shapes the outcome, as text.
        attempt: 0 for the first question, 1 for the re-ask after a leak.

    Returns:
        64 hex digits.
    """
    sample, observation = request.sample, request.rollout.observation
    evidence = asdict(sample.evidence) if sample.evidence and teacher_name.startswith("oracle") else None
    parts = {
        "schema": SCHEMA_VERSION,
        "frames": [[f.sha256, round(f.timestamp_s, 3)] for f in observation.frames],
        "uid": sample.uid if evidence is not None or not observation.frames else "",
        "evidence": evidence,
        "scenario": sample.scenario if evidence is not None else "",
        "question": sample.question,
        "options": [[o.label, o.text] for o in sample.options],
        "gold": request.reference_answer,
        "rollout": request.rollout.text,
        "reask": request.reask,
        "teacher": teacher_name,
        "settings": settings,
        "attempt": attempt,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def diagnosis_to_json(diagnosis: Diagnosis) -> dict[str, Any]:
    """A JSON-serialisable copy, `diagnosis_from_json` reads it back; only for cacheable outcomes.

    Raises:
        ValueError: The outcome is a transport fault, which says nothing about the rollout.
    """
    if diagnosis.failure not in CACHEABLE:
        raise ValueError(f"{diagnosis.failure} is a transport fault and is never journaled")
    return asdict(diagnosis)


def diagnosis_from_json(value: dict[str, Any]) -> Diagnosis:
    """The diagnosis with `cost.cached` set: it was paid before.

    Raises:
        KeyError, TypeError, ValueError: Not a diagnosis.
    """
    patch: EvidencePatch | None = None
    raw: dict[str, Any] | None = value["patch"]
    if raw is not None:
        patch = EvidencePatch(
            error_types=tuple(ErrorType(kind) for kind in raw["error_types"]),
            key_frames=tuple((int(a), int(b)) for a, b in raw["key_frames"]),
            temporal_markers=tuple(str(marker) for marker in raw["temporal_markers"]),
            spatial_regions=tuple(_region(region) for region in raw["spatial_regions"]),
            guidance=str(raw["guidance"]),
        )
    calls = tuple(
        ToolCall(c["name"], dict(c["arguments"]), c["result"], bool(c["ok"]), int(c["num_images"]))
        for c in value["tool_calls"]
    )
    cost = TeacherCost(**{**value["cost"], "cached": True})
    return Diagnosis(
        patch=patch, failure=value["failure"], detail=value["detail"], tool_calls=calls, cost=cost
    )


def _region(value: dict[str, Any]) -> SpatialRegion:
    start, end = value["frames"]
    x0, y0, x1, y1 = value["box"]
    return SpatialRegion(frames=(int(start), int(end)), box=(float(x0), float(y0), float(x1), float(y1)))
