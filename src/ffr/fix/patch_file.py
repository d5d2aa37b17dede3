"""The file of patches that `ffr teach` writes: one JSON row per failed rollout, taken up again after a stop.

Patch fields lie flat in the row, beside question, options and gold, so that the leak audit reads it as it is.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final, TextIO, cast

from ffr.config import FixConfig
from ffr.fix.file_lock import FileLock, FileLocked
from ffr.fix.teacher import short_hash
from ffr.types import EvidencePatch, LeakReport, Sample, TeacherCost, ToolCall

Key = tuple[str, str]
"""uid and rollout hash: at most one row each."""
NEEDED: Final = ("uid", "rollout_hash", "status", "final", "setup")


class PatchFileError(ValueError):
    """The output cannot be continued; the message names file, row, field and remedy."""


def rollout_hash(text: str) -> str:
    """Short name of a completion's text, for rows that do not repeat the text."""
    return short_hash("rollout", text)


def cost_usd(tokens: Mapping[str, int], fix: FixConfig) -> float:
    """US dollars for tokens at the configured prices; 0 where no price is known.

    Args:
        tokens: `prompt_tokens`, `completion_tokens`, `blind_prompt_tokens`, `blind_completion_tokens`: the
            fields of `TeacherCost`, or a flow's counters.
        fix: Prices of the teacher and of the blind test's model.

    Example:
        >>> prices = {"price_prompt_per_mtok": 0.5, "price_completion_per_mtok": 2.0}
        >>> fix = FixConfig.model_validate({"teacher": prices})
        >>> cost_usd({"prompt_tokens": 1_000_000, "completion_tokens": 250_000}, fix)
        1.0
    """
    teacher, leak = fix.teacher, fix.leak
    prompt, completion = teacher.price_prompt_per_mtok, teacher.price_completion_per_mtok
    blind_prompt, blind_completion = prompt, completion
    if leak.blind == "model":
        blind_prompt, blind_completion = (
            leak.blind_price_prompt_per_mtok,
            leak.blind_price_completion_per_mtok,
        )
    priced = {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "blind_prompt_tokens": blind_prompt,
        "blind_completion_tokens": blind_completion,
    }
    return sum(tokens.get(name, 0) * price for name, price in priced.items()) / 1e6


def patch_fields(patch: EvidencePatch | None) -> dict[str, Any]:
    """The patch's fields for a row, empty ones without a patch."""
    if patch is None:
        patch = EvidencePatch(error_types=())
    return {
        "error_types": [str(kind) for kind in patch.error_types],
        "key_frames": [list(frames) for frames in patch.key_frames],
        "temporal_markers": list(patch.temporal_markers),
        "spatial_regions": [{"frames": list(r.frames), "box": list(r.box)} for r in patch.spatial_regions],
        "guidance": patch.guidance,
    }


def question_fields(sample: Sample) -> dict[str, Any]:
    """Question, options (`A. red`), gold and kind for a row."""
    return {
        "question": sample.question,
        "options": [f"{option.label}. {option.text}" for option in sample.options],
        "gold": sample.answer,
        "problem_type": str(sample.problem_type),
        "scenario": sample.scenario,
    }


def work_fields(
    calls: tuple[ToolCall, ...], leak: LeakReport | None, cost: TeacherCost, fix: FixConfig
) -> dict[str, Any]:
    """Tool calls, leak findings and cost for a row."""
    findings = [asdict(f) for f in leak.findings if f.leaked] if leak else []
    spent = asdict(cost)
    return {
        "tool_calls": [asdict(call) for call in calls],
        "leak_findings": findings,
        "cost": {**spent, "cost_usd": cost_usd(spent, fix)},
    }


class PatchFile:
    """Appends rows; on opening, keeps the final ones and drops those worth another try.

    One process writes at a time (`FileLock`). A row with `final` false (budget spent, transport fault,
    unreadable clip) is removed, so that its rollout is done again; so is a last line that a kill cut off.

    Args:
        path: The JSONL file; made when absent.
        setup: Hash of all settings that shape a row; rows of another setup are not mixed in.

    Raises:
        PatchFileError: The file cannot be used, another process writes it, a row is damaged, or was made with
            other settings.

    Example:
        >>> with PatchFile(Path("patches.jsonl"), "3f") as rows:  # doctest: +SKIP
        ...     rows.write({"uid": "a/1", "rollout_hash": "9c", "status": "patched", "final": True})
    """

    def __init__(self, path: Path, setup: str) -> None:
        self.path = path
        self.done: dict[Key, str] = {}
        """Status of each row that was there and is kept."""
        self.statuses: Counter[str] = Counter()
        """Of all rows that are in the file now."""
        self._setup = setup
        self._lock = FileLock(path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._lock.acquire()
            if path.exists():
                self._take_up()
            self._file: TextIO = path.open("a", encoding="utf-8")
        except FileLocked as error:
            raise PatchFileError(str(error)) from error
        except (OSError, UnicodeDecodeError) as error:
            self._lock.release()
            raise PatchFileError(f"{path}: cannot be used ({error}); choose another --output") from error
        except BaseException:
            self._lock.release()
            raise

    def __enter__(self) -> PatchFile:
        return self

    def __exit__(self, *exc: object) -> None:
        self._file.close()
        self._lock.release()

    def write(self, row: Mapping[str, Any]) -> None:
        """Append one row; in the kernel's hands when it returns (the journal keeps what was paid for).

        Raises:
            PatchFileError: It cannot be written.
        """
        line = json.dumps({**row, "setup": self._setup}, allow_nan=False) + "\n"
        try:
            self._file.write(line)
            self._file.flush()
        except OSError as error:
            raise PatchFileError(f"{self.path}: {error}; make room, then run the command again") from error
        self.statuses[str(row["status"])] += 1

    def _take_up(self) -> None:
        text = self.path.read_text(encoding="utf-8")
        lines = text.split("\n")
        torn = lines.pop()  # empty unless the last line has no end
        kept: list[str] = []
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            row = self._parse(number, line)
            if row["final"] is True:
                self.done[str(row["uid"]), str(row["rollout_hash"])] = str(row["status"])
                kept.append(line + "\n")
        self.statuses.update(self.done.values())
        if torn or len(kept) != len(lines):
            part = self.path.with_name(f".{os.getpid()}.{self.path.name}")
            part.write_text("".join(kept), encoding="utf-8")
            os.replace(part, self.path)

    def _parse(self, number: int, line: str) -> dict[str, Any]:
        where = f"{self.path}: row {number}"
        try:
            value: Any = json.loads(line)
        except ValueError as error:
            raise PatchFileError(
                f"{where}: not JSON ({error}); remove the line or choose another --output"
            ) from error
        row = cast("dict[str, Any]", value) if isinstance(value, dict) else {}
        missing = [name for name in NEEDED if name not in row]
        if missing:
            raise PatchFileError(
                f"{where}: field {missing[0]!r} is missing, so this is no file of `ffr teach`; "
                "choose another --output"
            )
        if row["setup"] != self._setup:
            raise PatchFileError(
                f"{where}: field 'setup' is {row['setup']!r}, not {self._setup!r}: made with another teacher "
                f"({row.get('teacher', 'unknown')}) or other settings; choose another --output"
            )
        return row
