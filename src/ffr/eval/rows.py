"""What an evaluation leaves on disk: `eval.json`, `items.jsonl`, `rows.jsonl`; read back through pydantic.

    RUN/eval.json    the configuration, its hash, the protocol cards, versions
    RUN/items.jsonl  one line per question: gold, cluster, the official record (scorers need no data set)
    RUN/rows.jsonl   append-only, one line per question, number of frames and seed

Numbers of a table are always computed from the rows, never stored beside them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

_T = TypeVar("_T", bound=BaseModel)

EVAL_FILE, ITEMS_FILE, ROWS_FILE = "eval.json", "items.jsonl", "rows.jsonl"


class _Line(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ItemRow(_Line):
    """One question of a run.

    Example:
        >>> ItemRow(uid="lvbench/7", benchmark="lvbench", task="Rea", group="v1", source_index=7).split
        'test'
    """

    uid: str
    benchmark: str
    task: str
    group: str
    """The video: the cluster of the interval."""
    source_index: int
    split: str = "test"
    kind: str = "choice"
    gold: str = ""
    chance: float = 0.0
    record: dict[str, Any] = Field(default_factory=dict[str, Any])
    """The official row, for scorers and exports."""


class ScoreRow(_Line):
    """A profile's score of one output.

    Example:
        >>> ScoreRow(value=1.0, extracted="B", rule="answer_tag.letter").value
        1.0
    """

    value: float
    extracted: str
    rule: str
    note: str = ""


class EvalRow(_Line):
    """One output, or the error in its place.

    Example:
        >>> EvalRow(config_hash="ab", uid="lvbench/7", num_frames=16, seed=42, raw="B").error
        ''
    """

    config_hash: str
    """Of all that decides the output; rows of another configuration are never mixed in."""
    uid: str
    num_frames: int
    seed: int
    mode: str = "plain"
    """`plain`, or the test-time option that made it (`vote`, `sparse_to_dense`, `repair`)."""
    raw: str = ""
    """The model's text, whole."""
    reasoning: str = ""
    """What a server returned as `reasoning_content`, apart from the answer."""
    finish: str = ""
    num_tokens: int = 0
    num_prompt_tokens: int = 0
    frame_indices: tuple[int, ...] = ()
    """In the source file, after clamping to the clip."""
    fps: float = 0.0
    width_px: int = 0
    height_px: int = 0
    video_sha256: str = ""
    prompt_sha256: str = ""
    error: str = ""
    """`<status>: <detail>` where there is no output; such a row scores 0 and is retried on `--resume`."""
    notes: tuple[str, ...] = ()
    scores: dict[str, ScoreRow] = Field(default_factory=dict[str, ScoreRow])
    """By profile."""
    extra: dict[str, Any] = Field(default_factory=dict[str, Any])
    """Of a test-time option: the votes, the patch, the first answer."""

    @property
    def key(self) -> tuple[str, int, int, str]:
        """What a run has at most one good row of."""
        return self.uid, self.num_frames, self.seed, self.mode


class RunFileError(ValueError):
    """A run's file can't be read; the message names file, line and remedy."""


def read_items(run: Path) -> dict[str, ItemRow]:
    """Questions of a run by uid, in order.

    Raises:
        RunFileError: If the file is missing or a line is not an item.
    """
    return {item.uid: item for item in _read(run / ITEMS_FILE, ItemRow)}


def read_rows(run: Path) -> list[EvalRow]:
    """The rows that count: for each key the last good one, else the last error; in order of appearance.

    A last line without its newline (the process was killed while writing) is left out.

    Raises:
        RunFileError: If the file is missing or a whole line is not a row.
    """
    kept: dict[tuple[str, int, int, str], EvalRow] = {}
    for row in _read(run / ROWS_FILE, EvalRow):
        old = kept.get(row.key)
        if old is None or old.error or not row.error:
            kept[row.key] = row
    return list(kept.values())


def _read(path: Path, kind: type[_T]) -> list[_T]:
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise RunFileError(f"{path}: no such file; is {path.parent} a run of `ffr eval`?") from None
    out: list[_T] = []
    for number, line in enumerate(data.split(b"\n")[:-1], start=1):
        try:
            out.append(kind.model_validate_json(line))
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = ".".join(map(str, first["loc"])) or "line"
            raise RunFileError(
                f"{path}, line {number}, {where}: {first['msg']}; remove the line and run with --resume"
            ) from None
    return out
