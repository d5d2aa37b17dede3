"""What the trace page says of one group, in plain values: the template only lays it out."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ffr.report.rows import FrameRow, PatchRow, SlotRow, ToolCallRow, TraceRow

STATUS_WORDS: Mapping[str, tuple[str, str]] = {
    "right": ("\u2713", "right alone"),
    "repaired": ("\u21bb", "repaired"),
    "still_wrong": ("\u2717", "still wrong with the patch"),
    "wrong": ("\u2717", "wrong, nothing asked"),
    "leaked": ("\u2298", "leak blocked"),
    "teacher_failed": ("!", "teacher failed"),
    "over_budget": ("\u25cb", "over budget"),
    "skipped": ("\u2013", "not asked"),
}
"""Status of a slot -> glyph and words."""
_ANSWER = re.compile(r"(<answer>.*?</answer>|<answer>.*$)", re.DOTALL | re.IGNORECASE)


def stories(row: TraceRow) -> list[str]:
    """What is worth seeing in a group, most interesting first."""
    slots = row.slots
    found = {
        "repaired": row.num_repaired > 0,
        "repaired, yet A < 0": any(s.status == "repaired" and s.advantage < -1e-6 for s in slots),
        "leak blocked": any(s.status == "leaked" for s in slots),
        "still wrong with the patch": any(s.status == "still_wrong" for s in slots),
        "teacher failed": any(s.status == "teacher_failed" for s in slots),
        "all wrong at first": all(not s.first_verdict.correct for s in slots),
        "all right alone": all(s.first_verdict.correct for s in slots),
        "no gradient": all(abs(s.advantage) < 1e-9 for s in slots),
    }
    return [story for story, true in found.items() if true]


def group_view(row: TraceRow, index: int) -> dict[str, Any]:
    """Everything that the template shows of one group."""
    slots = [_slot_view(row, slot, i) for i, slot in enumerate(row.slots)]
    first = [slot.first_verdict.extracted.strip() for slot in row.slots]
    rewards = [slot.reward for slot in row.slots]
    mean = sum(rewards) / len(rewards) if rewards else 0.0
    return {
        "index": index,
        "step": row.step,
        "sample": row.sample,
        "kind": row.sample.scenario or row.sample.problem_type,
        "options": [
            {
                "label": o.label,
                "text": o.text,
                "gold": o.label == row.sample.answer,
                "count": first.count(o.label),
            }
            for o in row.sample.options
        ],
        "stories": stories(row),
        "slots": slots,
        "strips": strips(row),
        "mean": mean,
        "start": next((i for i, s in enumerate(row.slots) if s.status == "repaired"), 0),
        "legend": [
            (s, *STATUS_WORDS[s]) for s in STATUS_WORDS if any(slot.status == s for slot in row.slots)
        ],
        "duration_s": row.observation.duration_s if row.observation else 0.0,
    }


def _slot_view(row: TraceRow, slot: SlotRow, i: int) -> dict[str, Any]:
    glyph, words = STATUS_WORDS[slot.status]
    repair = slot.repair
    view = row.observations.get(repair.rollout.view_id) if repair and repair.rollout else None
    return {
        "number": i + 1,
        "status": slot.status,
        "glyph": glyph,
        "words": words,
        "slot": slot,
        "answer": answer_parts(slot.first.text),
        "second": answer_parts(repair.rollout.text) if repair and repair.rollout else None,
        "patch": slot.patch,
        "patch_text": view.patch_text if view else "",
        "extra_frames": view.extra_frames if view else (),
        "tools": [tool_line(call) for call in _calls(slot)],
        "ledger": ledger(row, slot),
        "tint": round(min(abs(slot.advantage) / 2.0, 1.0), 3) if math.isfinite(slot.advantage) else 0.0,
    }


def answer_parts(text: str) -> list[tuple[bool, str]]:
    """The text in pieces, `(is the answer tag, piece)`."""
    return [(bool(_ANSWER.fullmatch(part)), part) for part in _ANSWER.split(text.strip()) if part]


def _calls(slot: SlotRow) -> Sequence[ToolCallRow]:
    return slot.repair.diagnosis.tool_calls if slot.repair and slot.repair.diagnosis else ()


def tool_line(call: ToolCallRow) -> dict[str, Any]:
    """`get_frames(start=5, end=8)` and what came of it."""
    arguments = ", ".join(f"{key}={_short(value)}" for key, value in call.arguments.items())
    return {
        "call": f"{call.name}({arguments})",
        "ok": call.ok,
        "result": call.result,
        "images": call.num_images,
    }


def _short(value: Any) -> str:
    if isinstance(value, list):
        return "[" + ", ".join(_short(item) for item in value) + "]"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def ledger(row: TraceRow, slot: SlotRow) -> dict[str, Any]:
    """The reward, term by term: `R_acc + R_fmt - tax = R` (FFR eq. 8), and how R became the advantage.

    The tax is what a taxed rollout lacks; whatever else separates the terms from R is `other`.
    """
    outcome, form = slot.chosen_verdict.score, slot.chosen_verdict.format_score
    rest = slot.reward - outcome - form
    tax = max(-rest, 0.0) if slot.taxed else 0.0
    other = rest + tax
    return {
        "outcome": outcome,
        "format": form,
        "tax": tax,
        "other": other if abs(other) > 1e-6 else 0.0,
        "reward": slot.reward,
        "advantage": slot.advantage,
        "formula": _formula(row, slot),
    }


def _formula(row: TraceRow, slot: SlotRow) -> str:
    """Eq. 9 with its numbers, only where eq. 9 with the group's mean and std is what was used."""
    rewards = [s.reward for s in row.slots]
    if len(rewards) < 2 or not all(math.isfinite(r) for r in rewards):
        return ""
    mean = sum(rewards) / len(rewards)
    std = math.sqrt(sum((r - mean) ** 2 for r in rewards) / (len(rewards) - 1))
    if abs((slot.reward - mean) / (std + 1e-4) - slot.advantage) < 1e-3:
        return f"({slot.reward:.2f} - mean {mean:.2f}) / std {std:.2f}"
    if abs(slot.reward - mean - slot.advantage) < 1e-3:
        return f"{slot.reward:.2f} - mean {mean:.2f}"
    return ""


def strips(row: TraceRow) -> list[dict[str, Any]]:
    """The filmstrips of a group, one per different overlay; `slots` says which rollouts share it."""
    observation = row.observation
    found: dict[str, dict[str, Any]] = {}
    for i, slot in enumerate(row.slots):
        shown = bool(slot.repair and slot.repair.rollout)
        key = repr((slot.patch, shown, [call.model_dump() for call in _calls(slot)]))
        frames = observation.frames if observation else ()
        strip = found.setdefault(key, {"slots": [], "cells": list(_cells(frames, slot)), "shown": shown})
        strip["slots"].append(i + 1)
    return list(found.values())


def num_columns(num_frames: int) -> int:
    """Frames in one row of the filmstrip: rows of equal length where that is possible."""
    return max(1, min(num_frames, 8 if num_frames <= 32 else 16))


def _cells(frames: Sequence[FrameRow], slot: SlotRow) -> Iterator[dict[str, Any]]:
    patch = slot.patch or PatchRow()
    looked = looked_at(frames, _calls(slot))
    for frame in frames:
        n = frame.number
        hit = next(((a, b) for a, b in patch.key_frames if a <= n <= b), None)
        boxes = [r.box for r in patch.spatial_regions if r.frames[0] <= n <= r.frames[1]]
        yield {
            "frame": frame,
            "range": hit,
            "starts": hit is not None and n == hit[0],
            "ends": hit is not None and n == hit[1],
            "boxes": [_percent_box(box) for box in boxes],
            "looked": n in looked,
        }


def _percent_box(box: tuple[float, float, float, float]) -> dict[str, str]:
    x0, y0, x1, y1 = (min(max(v, 0.0), 1.0) if math.isfinite(v) else 0.0 for v in box)
    names = ("left", "top", "width", "height")
    return {k: f"{100 * v:.2f}%" for k, v in zip(names, (x0, y0, x1 - x0, y1 - y0), strict=True)}


def looked_at(frames: Sequence[FrameRow], calls: Sequence[ToolCallRow]) -> set[int]:
    """Numbers of the student's frames that the teacher's tools showed it again."""
    seen: set[int] = set()
    for call in calls:
        a = {key: value for key, value in call.arguments.items() if isinstance(value, int | float)}
        if not call.ok:
            continue
        if "start" in a and "end" in a:
            seen |= {f.number for f in frames if a["start"] <= f.number <= a["end"]}
        elif "t0" in a and "t1" in a:
            seen |= {f.number for f in frames if a["t0"] <= f.timestamp_s <= a["t1"]}
        elif "frame" in a:
            seen |= {f.number for f in frames if f.number == a["frame"]}
    return seen
