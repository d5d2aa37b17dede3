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


class BenchmarkInfo(_Line):
    """What a run asks of one benchmark.

    Example:
        >>> BenchmarkInfo(num_items=600).tasks
        ()
    """

    num_items: int
    """Questions of the run: the denominator, those without media included."""
    num_missing: int = 0
    """Questions whose media was not on this machine when the run began."""
    num_total: int = 0
    """Questions of the benchmark's asked tasks before `--limit`."""
    tasks: tuple[str, ...] = ()
    """Those asked for; empty for all."""
    limit: int | None = None
    files: tuple[tuple[str, str], ...] = ()
    """Annotation files as (path under the root, sha256)."""
    notes: tuple[str, ...] = ()


class RunInfo(_Line):
    """`eval.json`: what was run, and under which protocol. No score is kept here.

    Example:
        >>> RunInfo(name="m", model="m", engine="hf", config_hash="ab", frames=(16,), seeds=(42,)).modes
        ('plain',)
    """

    format: int = 1
    name: str
    """Of the model, in tables."""
    model: str
    engine: str
    """`hf`, `openai/frames` or `openai/video`."""
    config_hash: str
    config: dict[str, Any] = Field(default_factory=dict[str, Any])
    """All that decides an output, as hashed."""
    frames: tuple[int, ...]
    seeds: tuple[int, ...]
    """A run asks every item at every number of frames with every seed."""
    modes: tuple[str, ...] = ("plain",)
    benchmarks: dict[str, BenchmarkInfo] = Field(default_factory=dict[str, BenchmarkInfo])
    cards: dict[str, dict[str, Any]] = Field(default_factory=dict[str, dict[str, Any]])
    """The fields of a `ProtocolCard` by `<benchmark>@<frames>`, from the rows written so far."""
    versions: dict[str, str] = Field(default_factory=dict[str, str])
    notes: tuple[str, ...] = ()
    """What a reader of the numbers should know."""


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
    """Frames per second as shown: frames less one over the time between the first and the last."""
    width_px: int = 0
    height_px: int = 0
    video_sha256: str = ""
    """Of the file's bytes; `m-<hash of size, time and path>` for files too large to be read twice."""
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


def read_run(run: Path) -> RunInfo:
    """What `eval.json` says.

    Raises:
        RunFileError: If the file is missing or can't be read.
    """
    path = run / EVAL_FILE
    try:
        return RunInfo.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise RunFileError(f"{path}: no such file; is {run} a run of `ffr eval`?") from None
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"])) or "file"
        raise RunFileError(
            f"{path}, {where}: {first['msg']}; run `ffr eval` anew in another folder"
        ) from None


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
