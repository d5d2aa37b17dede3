"""The memory part of `ffr doctor train`: what a process needs, against what its GPU has."""

from __future__ import annotations

import importlib
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from ffr.cli.doctor import Check
from ffr.engines.memory import CONTEXT_BYTES, GIB, LOST_SHARE, Estimate
from ffr.engines.memory_advice import Plan, advice
from ffr.engines.shapes import Shape, ShapeError, find_shape

TIGHT = 0.92
"""Share of the GPU from which the estimate is too close to be sure."""


def gpu_memory_gib() -> float | None:
    """Memory of the first GPU; None without one."""
    try:
        torch = importlib.import_module("torch")
    except ImportError:
        return None
    if not torch.cuda.is_available():
        return None
    return torch.cuda.get_device_properties(0).total_memory / GIB


def check_memory(plan: Plan, limit_gib: float | None, console: Console) -> tuple[list[Check], dict[str, Any]]:
    """Estimate, table and verdict.

    Args:
        plan: Configuration, strategy, number of processes, and the tokens of a row if one was encoded.
        limit_gib: Memory of one GPU; None if there is none to compare with.
        console: Where the table goes.

    Returns:
        The checks, and the same as JSON.
    """
    try:
        shape, source = find_shape(plan.cfg.model.path)
    except ShapeError as error:
        return [Check("memory", "warn", f"not estimated: {error}")], {}
    found = plan.estimate(shape)
    console.print(_table(found, plan, source))
    checks, hints = _verdict(found, plan, shape, limit_gib)
    return checks, {
        "strategy": plan.strategy,
        "world_size": plan.world_size,
        "sizes_from": source,
        "num_parameters": shape.num_parameters,
        "limit_gib": limit_gib,
        "needed_gib": found.needed / GIB,
        "sampling_gib": found.total("sampling") / GIB,
        "update_gib": found.total("update") / GIB,
        "parts": [
            {"name": p.name, "gib": p.num_bytes / GIB, "moment": p.moment, "note": p.note}
            for p in found.parts
        ],
        "changes": hints,
    }


def _table(found: Estimate, plan: Plan, source: str) -> Table:
    title = f"memory of each of {plan.world_size} process(es), {plan.strategy}: an estimate, GiB"
    table = Table(title=title, title_style="bold", title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("part")
    table.add_column("sampling", justify="right")
    table.add_column("update", justify="right")
    table.add_column("", style="dim")
    for part in found.parts:
        size = f"{part.num_bytes / GIB:.2f}"
        table.add_row(
            part.name,
            "" if part.moment == "update" else size,
            "" if part.moment == "sampling" else size,
            part.note,
        )
    reserve = f"CUDA context {CONTEXT_BYTES / GIB:g} GiB, {LOST_SHARE:.0%} lost by the allocator"
    totals = {moment: found.total(moment) for moment in ("sampling", "update")}
    held = {m: sum(p.num_bytes for p in found.parts if p.moment in ("always", m)) for m in totals}
    table.add_row("reserve", *(f"{(totals[m] - held[m]) / GIB:.2f}" for m in totals), reserve)
    table.add_section()
    table.add_row("together", *(f"{total / GIB:.2f}" for total in totals.values()), f"sizes from {source}")
    return table


def _verdict(
    found: Estimate, plan: Plan, shape: Shape, limit_gib: float | None
) -> tuple[list[Check], list[str]]:
    needed = found.needed / GIB
    if limit_gib is None:
        words = f"about {needed:.1f} GiB a process; no GPU to compare with, give --gpu-memory-gib"
        return [Check("memory", "warn", words)], []
    compared = f"about {needed:.1f} GiB a process, the GPU has {limit_gib:.1f}"
    if needed <= TIGHT * limit_gib:
        return [Check("memory", "ok", compared)], []
    state = "warn" if needed <= limit_gib else "fail"
    # Also for a run that barely fits: how it would fit for sure.
    hints = advice(plan, shape, TIGHT * limit_gib * GIB)
    moment = [part for part in found.parts if part.moment in ("always", found.moment)]
    largest = sorted(moment, key=lambda part: -part.num_bytes)[:3]
    most = ", ".join(f"{part.name} {part.num_bytes / GIB:.1f}" for part in largest)
    verdict = "tight" if state == "warn" else "does not fit"
    checks = [Check("memory", state, f"{verdict}: {compared}; most while {found.moment}: {most}")]
    return checks + [Check("memory: change", state, hint) for hint in hints], hints
