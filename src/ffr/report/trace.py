"""Traces on disk: from the house's types to rows, and rows to and from JSON lines.

Reading never needs the frames, and a frame's pixels never travel inside a row: they are stored once
per content hash as `frames/<sha256>.webp`.
"""

from __future__ import annotations

import json
import math
import os
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pydantic import JsonValue, ValidationError

from ffr.report.rows import (
    SCHEMA_VERSION,
    CostRow,
    DiagnosisRow,
    FrameRow,
    LeakRow,
    ObservationRow,
    OptionRow,
    PatchRow,
    RegionRow,
    RepairRow,
    RolloutRow,
    SampleRow,
    SlotRow,
    ToolCallRow,
    TraceRow,
    VerdictRow,
)
from ffr.types import Diagnosis, EvidencePatch, Frame, Observation, Repair, Rollout, Sample, Trace, Verdict

LOSSLESS_PX = 256 * 256
"""Frames up to this area are stored lossless: a box of a few pixels is the whole story there."""
_STEP_FILE = re.compile(r"step_(\d+)\.jsonl$")


class TraceError(ValueError):
    """A trace file that cannot be read; the message names file, row, field and remedy."""


class TraceWarning(UserWarning):
    """Something of a trace file was left out; the message says what."""


def clean(text: str) -> str:
    """Text that UTF-8 can hold: lone surrogates of a broken decode become U+FFFD."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def jsonable(value: Any) -> JsonValue:
    """A JSON value for anything: unknown objects by `str`, non-finite numbers as words."""
    if isinstance(value, Mapping):
        return {clean(str(key)): jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [jsonable(item) for item in value]
    if isinstance(value, np.generic):
        return jsonable(value.item())
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if value is None or isinstance(value, bool | int):
        return value
    return clean(str(value))


def _media_name(path: Path) -> str:
    # A trace travels; the directories of the machine that made it must not.
    if path == Path():
        return ""
    if not path.is_absolute():
        return path.name if ".." in path.parts else path.as_posix()
    cwd = Path.cwd()
    return path.relative_to(cwd).as_posix() if path.is_relative_to(cwd) else path.name


def _frames(frames: Sequence[Frame]) -> tuple[FrameRow, ...]:
    names = ("number", "source_index", "timestamp_s", "sha256", "width_px", "height_px")
    return tuple(FrameRow(**{name: getattr(frame, name) for name in names}) for frame in frames)


def _observation(obs: Observation) -> ObservationRow:
    return ObservationRow(
        view_id=obs.view_id,
        frames=_frames(obs.frames),
        prompt=clean(obs.prompt),
        system=None if obs.system is None else clean(obs.system),
        patch_text=clean(obs.patch_text),
        extra_frames=_frames(obs.extra_frames),
        duration_s=obs.duration_s,
        notes=tuple(clean(note) for note in obs.notes),
    )


def _sample(sample: Sample) -> SampleRow:
    return SampleRow(
        uid=clean(sample.uid),
        question=clean(sample.question),
        answer=clean(sample.answer),
        answer_text=clean(sample.answer_text),
        problem_type=str(sample.problem_type),
        options=tuple(OptionRow(label=clean(o.label), text=clean(o.text)) for o in sample.options),
        video=clean(_media_name(sample.video)),
        media_type=sample.media_type,
        source=clean(sample.source),
        scenario=clean(sample.scenario),
        clip_s=sample.clip_s,
    )


def _rollout(rollout: Rollout) -> RolloutRow:
    logprobs = rollout.logprobs
    return RolloutRow(
        view_id=rollout.observation.view_id,
        text=clean(rollout.text),
        num_tokens=rollout.num_tokens,
        mean_logprob=sum(logprobs) / len(logprobs) if logprobs else None,
        finish=rollout.finish,
        source=rollout.source,
    )


def _verdict(verdict: Verdict) -> VerdictRow:
    return VerdictRow(
        score=verdict.score,
        correct=verdict.correct,
        extracted=clean(verdict.extracted),
        rule=clean(verdict.rule),
        format_score=verdict.format_score,
        reason=clean(verdict.reason),
    )


def _patch(patch: EvidencePatch) -> PatchRow:
    return PatchRow(
        error_types=tuple(str(kind) for kind in patch.error_types),
        key_frames=patch.key_frames,
        temporal_markers=tuple(clean(marker) for marker in patch.temporal_markers),
        spatial_regions=tuple(RegionRow(frames=r.frames, box=r.box) for r in patch.spatial_regions),
        guidance=clean(patch.guidance),
    )


def _diagnosis(diagnosis: Diagnosis) -> DiagnosisRow:
    cost = diagnosis.cost
    return DiagnosisRow(
        patch=_patch(diagnosis.patch) if diagnosis.patch else None,
        failure=clean(str(diagnosis.failure)),
        detail=clean(diagnosis.detail),
        tool_calls=tuple(
            ToolCallRow(
                name=clean(call.name),
                arguments={clean(str(k)): jsonable(v) for k, v in call.arguments.items()},
                result=clean(call.result),
                ok=call.ok,
                num_images=call.num_images,
            )
            for call in diagnosis.tool_calls
        ),
        cost=CostRow(**{name: getattr(cost, name) for name in CostRow.model_fields}),
    )


def _repair(repair: Repair) -> RepairRow:
    findings = None
    if repair.leak is not None:
        findings = tuple(
            LeakRow(layer=f.layer, leaked=f.leaked, field=clean(f.field), reason=clean(f.reason))
            for f in repair.leak.findings
        )
    return RepairRow(
        status=repair.status,
        diagnosis=_diagnosis(repair.diagnosis) if repair.diagnosis else None,
        leak=findings,
        rollout=_rollout(repair.rollout) if repair.rollout else None,
        verdict=_verdict(repair.verdict) if repair.verdict else None,
        num_leaks=repair.num_leaks,
        detail=clean(repair.detail),
    )


def _chosen_name(trace: Trace, slot: int) -> str:
    group, chosen = trace.group, trace.group.chosen_G[slot]
    # Two slots may hold equal rollouts: the slot's own come first.
    order = [slot, *(i for i in range(len(group.first_G)) if i != slot)]
    for i in order:
        suffix = "" if i == slot else f":{i + 1}"
        repair = group.repairs_G[i]
        if chosen is group.first_G[i] or chosen == group.first_G[i]:
            return f"first{suffix}"
        if repair is not None and repair.rollout is not None and chosen == repair.rollout:
            return f"repair{suffix}"
    return "other"


def trace_row(trace: Trace) -> TraceRow:
    """The row of one trace; observations are kept once per view."""
    group = trace.group
    size = len(group.first_G)
    rollouts = [*group.first_G, *(r.rollout for r in group.repairs_G if r and r.rollout)]
    observations = {r.observation.view_id: _observation(r.observation) for r in rollouts}
    slots = tuple(
        SlotRow(
            first=_rollout(group.first_G[i]),
            first_verdict=_verdict(group.first_verdicts_G[i]),
            repair=_repair(repair) if (repair := group.repairs_G[i]) else None,
            chosen=_chosen_name(trace, i),
            chosen_verdict=_verdict(group.chosen_verdicts_G[i]),
            reward=float(trace.rewards_G[i]),
            advantage=float(trace.advantages_G[i]),
            taxed=bool(trace.taxed_G[i]) if i < len(trace.taxed_G) else False,
        )
        for i in range(size)
    )
    return TraceRow(
        step=trace.step, run=trace.run, sample=_sample(group.sample), observations=observations, slots=slots
    )


def step_path(run_dir: Path, step: int) -> Path:
    """Where the traces of a step lie."""
    return run_dir / "traces" / f"step_{step:06d}.jsonl"


def step_files(run_dir: Path) -> list[tuple[int, Path]]:
    """`(step, path)` of every trace file, in step order."""
    paths = (run_dir / "traces").glob("step_*.jsonl")
    found = [(match, path) for path in paths if (match := _STEP_FILE.search(path.name))]
    return sorted((int(match.group(1)), path) for match, path in found)


def append_lines(path: Path, lines: Iterable[str]) -> None:
    """Lines at the end of a file, on disk (flush and fsync) when the call returns."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        file.write("".join(f"{line}\n" for line in lines).encode())
        file.flush()
        os.fsync(file.fileno())


def replace_text(path: Path, text: str) -> None:
    """A whole file, replaced at once: a reader sees the old one or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    partial.write_bytes(text.encode())
    os.replace(partial, path)


def write_traces(run_dir: Path, step: int, rows: Iterable[TraceRow]) -> Path:
    """The step's trace file, with the rows appended."""
    path = step_path(run_dir, step)
    append_lines(path, (row.model_dump_json() for row in rows))
    return path


def read_traces(run_dir: Path | str) -> list[TraceRow]:
    """All trace rows of a run, in step order.

    A truncated last line (the run was killed while it wrote) is left out with a `TraceWarning`.

    Raises:
        TraceError: A line broken elsewhere, or of a newer schema; the message names file, row and field.
    """
    return [row for _, path in step_files(Path(run_dir)) for row in read_trace_file(path)]


def read_trace_file(path: Path) -> list[TraceRow]:
    """The rows of one trace file; errors and warnings as in `read_traces`."""
    # Only b"\n" ends a row: answers may hold every other separator that `splitlines` knows.
    lines = path.read_bytes().split(b"\n")
    rows: list[TraceRow] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            rows.append(_parse(line, path, number))
        except TraceError:
            if number < len(lines):
                raise
            message = f"{path}: row {number} is cut off ({len(line)} bytes, no line end) and was left out"
            warnings.warn(message, TraceWarning, stacklevel=2)
    return rows


def _parse(line: bytes, path: Path, number: int) -> TraceRow:
    where = f"{path}: row {number}"
    try:
        raw = json.loads(line)
    except ValueError as error:
        raise TraceError(f"{where}: not JSON ({error}); delete the row or restore the file") from error
    version = raw.get("schema_version") if isinstance(raw, dict) else None
    if isinstance(version, int) and version > SCHEMA_VERSION:
        remedy = f"this version reads up to {SCHEMA_VERSION}: upgrade find-fix-reason"
        raise TraceError(f"{where}: field schema_version: {version}; {remedy}")
    try:
        return TraceRow.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"]) or "(row)"
        remedy = "was the file edited? Write it again with RunWriter"
        raise TraceError(f"{where}: field {field}: {first['msg']}; {remedy}") from error


def frame_path(run_dir: Path, sha256: str) -> Path:
    """Where a frame's pixels lie."""
    return run_dir / "frames" / f"{sha256}.webp"


def store_frames(run_dir: Path, frames: Iterable[Frame]) -> int:
    """How many frames were new; each is written once under its hash. Frames without pixels are not stored."""
    new = 0
    for frame in frames:
        path = frame_path(run_dir, frame.sha256)
        if frame.pixels is None or not frame.sha256 or path.exists():
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
        image = Image.fromarray(np.ascontiguousarray(frame.pixels))
        small = image.width * image.height <= LOSSLESS_PX
        image.save(partial, format="WEBP", lossless=small, quality=85, method=4)
        os.replace(partial, path)
        new += 1
    return new


def trace_frames(trace: Trace) -> list[Frame]:
    """Every frame that a trace shows, extra frames of patched views included."""
    group = trace.group
    rollouts = [*group.first_G, *(r.rollout for r in group.repairs_G if r and r.rollout)]
    views = {rollout.observation.view_id: rollout.observation for rollout in rollouts}
    return [frame for view in views.values() for frame in (*view.frames, *view.extra_frames)]
