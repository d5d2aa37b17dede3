"""Traces as an Inspect log (`inspect view`): one sample per rollout, with find, fix and reason as spans.

Needs the extra `view`; nothing else in the house imports inspect_ai.
"""

from __future__ import annotations

import base64
import importlib
import math
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ffr.report.rows import ObservationRow, RolloutRow, SlotRow, TraceRow, VerdictRow
from ffr.report.trace import frame_path, read_traces
from ffr.report.view import ledger


class InspectMissingError(ImportError):
    """inspect_ai is not installed; the message says how to install it."""


def _module(name: str) -> Any:
    try:
        return importlib.import_module(f"inspect_ai.{name}")
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] != "inspect_ai":
            raise
        remedy = "pip install 'find-fix-reason[view]'"
        raise InspectMissingError(f"the export to Inspect needs inspect_ai: {remedy}") from error


def export_inspect(run_dir: Path | str, out: Path | str | None = None, *, max_groups: int = 40) -> Path:
    """The path of an `.eval` log with the most telling groups of a run.

    Args:
        run_dir: A directory that `RunWriter` wrote.
        out: Ends in `.eval`; `<run_dir>/traces.eval` when unset.
        max_groups: As for the trace page.

    Raises:
        InspectMissingError: inspect_ai is not installed.
    """
    from ffr.report.page import choose_groups

    log, run = _module("log"), Path(run_dir)
    rows = choose_groups(read_traces(run), max_groups)
    samples = [_sample(row, i, run) for row in rows for i in range(len(row.slots))]
    now = datetime.now(UTC).isoformat()
    spec = log.EvalSpec(
        created=now,
        task=f"ffr/{run.resolve().name}",
        dataset=log.EvalDataset(name="traces", samples=len(samples)),
        model="student",
        config=log.EvalConfig(),
    )
    results = log.EvalResults(total_samples=len(samples), completed_samples=len(samples))
    stats = log.EvalStats(started_at=now, completed_at=now)
    path = Path(out) if out is not None else run / "traces.eval"
    whole = log.EvalLog(
        status="success", eval=spec, plan=log.EvalPlan(), results=results, stats=stats, samples=samples
    )
    log.write_eval_log(whole, str(path))
    return path


def _sample(row: TraceRow, i: int, run: Path) -> Any:
    log, model, scorer = _module("log"), _module("model"), _module("scorer")
    slot = row.slots[i]
    messages = [_question(row.observations[slot.first.view_id], run), _reply(slot.first, "student")]
    spans = [_span("find", messages, slot.first_verdict, row)]
    if slot.repair and slot.repair.diagnosis:
        teacher = model.ChatMessageAssistant(content=_diagnosis(slot), model="teacher")
        spans.append(_span("fix", [messages[0], teacher], None, row, _findings(slot)))
        messages.append(teacher)
    if slot.repair and slot.repair.rollout:
        again = [
            _question(row.observations[slot.repair.rollout.view_id], run),
            _reply(slot.repair.rollout, "student"),
        ]
        terms = {key: _finite(value) for key, value in ledger(row, slot).items() if key != "formula"}
        spans.append(_span("reason", again, slot.repair.verdict, row, {"ledger": terms}))
        messages += again
    values = {"first_pass": slot.first_verdict.score, "reward": slot.reward, "advantage": slot.advantage}
    return log.EvalSample(
        id=f"step{row.step}/{row.sample.uid}/r{i + 1}",
        epoch=1,
        input=row.sample.question,
        choices=[option.text for option in row.sample.options] or None,
        target=row.sample.answer,
        messages=messages,
        output=model.ModelOutput.from_content("student", messages[-1].text),
        scores={name: scorer.Score(value=_finite(value)) for name, value in values.items()},
        metadata={"step": row.step, "status": slot.status, "chosen": slot.chosen, "taxed": slot.taxed},
        events=[event for span in spans for event in span],
    )


def _finite(value: float) -> float | str:
    # Inspect's JSON holds no NaN; the word keeps it visible, a 0 would hide it.
    return float(value) if math.isfinite(value) else str(value)


def _question(view: ObservationRow, run: Path) -> Any:
    model = _module("model")
    content: list[Any] = []
    for frame in (*view.frames, *view.extra_frames):
        path = frame_path(run, frame.sha256)
        if path.is_file():
            data = base64.b64encode(path.read_bytes()).decode()
            content.append(model.ContentImage(image=f"data:image/webp;base64,{data}", detail="low"))
    text = "\n\n".join(part for part in (view.prompt, view.patch_text) if part)
    return model.ChatMessageUser(content=[*content, model.ContentText(text=text)])


def _reply(rollout: RolloutRow, name: str) -> Any:
    return _module("model").ChatMessageAssistant(content=rollout.text, model=name)


def _diagnosis(slot: SlotRow) -> str:
    diagnosis = slot.repair.diagnosis if slot.repair else None
    if diagnosis is None or diagnosis.patch is None:
        return f"no patch: {diagnosis.failure if diagnosis else ''}"
    return diagnosis.patch.model_dump_json(indent=1)


def _findings(slot: SlotRow) -> dict[str, Any]:
    repair = slot.repair
    if repair is None or repair.diagnosis is None:
        return {}
    calls = [call.model_dump(mode="json") for call in repair.diagnosis.tool_calls]
    leaks = [finding.model_dump(mode="json") for finding in repair.leak or ()]
    cost = repair.diagnosis.cost.model_dump(mode="json")
    return {"status": repair.status.value, "tools": calls, "leak": leaks, "cost": cost}


def _span(
    name: str,
    messages: list[Any],
    verdict: VerdictRow | None,
    row: TraceRow,
    info: dict[str, Any] | None = None,
) -> list[Any]:
    event, model = _module("event"), _module("model")
    at = {"timestamp": datetime.fromtimestamp(0, UTC), "working_start": 0.0}
    who = "teacher" if name == "fix" else "student"
    output = model.ModelOutput.from_content(who, messages[-1].text)
    call = event.ModelEvent(
        model=who, role=who, input=messages[:-1], tools=[], tool_choice="auto", config=model.GenerateConfig(),
        output=output, span_id=name, **at,
    )  # fmt: skip
    events = [event.SpanBeginEvent(id=name, name=name, type=None, span_id=name, **at), call]
    if verdict is not None:
        score = _module("scorer").Score(
            value=_finite(verdict.score), answer=verdict.extracted, explanation=verdict.reason
        )
        events.append(event.ScoreEvent(score=score, target=row.sample.answer, span_id=name, **at))
    if info:
        events.append(event.InfoEvent(source=name, data=info, span_id=name, **at))
    return [*events, event.SpanEndEvent(id=name, span_id=name, **at)]
