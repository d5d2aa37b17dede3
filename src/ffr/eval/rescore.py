"""New scores for old outputs: no model, no media; the outputs themselves stay as they are."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from ffr.eval.base import PROFILES
from ffr.eval.results import ScoreItem, chosen, score_row
from ffr.eval.rows import (
    ROWS_FILE,
    EvalRow,
    ItemRow,
    RunFileError,
    ScoreRow,
    read_items,
    read_run,
)
from ffr.eval.store import RunStore


@dataclass(frozen=True, slots=True)
class Rescored:
    """What a rescoring did.

    Example:
        >>> Rescored(num_rows=600, num_outputs=598, num_changed=0, profiles=("robust",)).num_changed
        0
    """

    num_rows: int
    """Lines of `rows.jsonl`, superseded ones and errors included."""
    num_outputs: int
    """Lines with an output: those that were scored."""
    num_changed: int
    """Of these, how many got another score than they had, or had none."""
    profiles: tuple[str, ...]


def rescore(
    run: Path,
    profiles: Sequence[str],
    *,
    scorer: ScoreItem | None = None,
    on_row: Callable[[], None] | None = None,
) -> Rescored:
    """Writes the profiles' scores of every output into `rows.jsonl`, in one step; twice changes nothing.

    Other profiles' scores, outputs and the order of the lines stay. The file is replaced when all rows are
    scored: a run that is interrupted before leaves the old one.

    Args:
        run: Directory of a run.
        profiles: Names, or `all`.
        scorer: `ffr.eval.score_item` if None.
        on_row: Called after each line.

    Raises:
        ValueError: A profile does not exist.
        EvalDataError: An item's record is malformed.
        RunFileError: A file can't be read.
        RunMixError: `ffr eval` writes to the run at this moment.
    """
    names = chosen(profiles, PROFILES, "profile")
    info, items = read_run(run), read_items(run)
    with RunStore(run, info, list(items.values()), resume=True):  # Its lock: nobody else writes meanwhile.
        path = run / ROWS_FILE
        part = path.with_name(f".{ROWS_FILE}.part")
        counts = [0, 0, 0]
        known: dict[tuple[str, str, str], ScoreRow] = {}
        with part.open("w", encoding="utf-8") as file:
            for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], start=1):
                row = _parsed(path, number, line)
                item = items.get(row.uid)
                if item is None:
                    raise RunFileError(f"{path}, line {number}: {row.uid} is no question of items.jsonl")
                new = row if row.error else _rescored(row, item, names, known, scorer)
                file.write(new.model_dump_json() + "\n")
                for place, holds in enumerate((True, not row.error, new.scores != row.scores)):
                    counts[place] += holds
                if on_row:
                    on_row()
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    return Rescored(counts[0], counts[1], counts[2], names)


def _parsed(path: Path, number: int, line: bytes) -> EvalRow:
    try:
        return EvalRow.model_validate_json(line)
    except ValidationError as error:
        raise RunFileError(
            f"{path}, line {number}: {error.errors(include_url=False)[0]['msg']}; remove the line"
        ) from None


def _rescored(
    row: EvalRow,
    item: ItemRow,
    profiles: Sequence[str],
    known: dict[tuple[str, str, str], ScoreRow],
    scorer: ScoreItem | None,
) -> EvalRow:
    scores = dict(row.scores)
    for profile in profiles:
        key = (row.uid, profile, row.raw)
        if key not in known:
            known[key] = score_row(item, row.raw, profile, scorer)
        scores[profile] = known[key]
    return row.model_copy(update={"scores": scores})
