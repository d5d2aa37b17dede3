"""A profile for a terminal: bars of the phases, the numbers, the slow steps, what to change."""

from __future__ import annotations

from rich.bar import Bar
from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from ffr.engines.clock import PHASES
from ffr.report.profile import NUMBERS, Profile

BAR_WIDTH = 24


def profile_view(profile: Profile) -> RenderableType:
    """Everything of a profile, for `rich.print`."""
    parts: list[RenderableType] = [_phase_table(profile), _number_table(profile)]
    if profile.slowest:
        parts.append(_slow_table(profile))
    for note in profile.warnings:
        parts.append(Text(f"warning: {note}", style="yellow"))
    if not profile.warnings:
        parts.append(Text("nothing stands out", style="green"))
    return Group(*parts)


def _phase_table(profile: Profile) -> Table:
    title = f"{profile.num_steps} steps, {_seconds(profile.step_s)} each (median)"
    table = Table(title=title, title_style="bold", title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("phase", no_wrap=True)
    for heading in ("median", "longest", "share"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("", width=BAR_WIDTH)
    table.add_column("what it is", style="dim")
    for phase in profile.phases:
        table.add_row(
            phase.name,
            _seconds(phase.median_s),
            _seconds(phase.longest_s),
            f"{phase.share:.0%}",
            Bar(1.0, 0.0, min(1.0, phase.share), width=BAR_WIDTH),
            PHASES[phase.name],
        )
    return table


def _number_table(profile: Profile) -> Table:
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(justify="right", no_wrap=True)
    for name, words, form in NUMBERS:
        if name in profile.numbers:
            table.add_row(form.format(profile.numbers[name]), words)
    return table


def _slow_table(profile: Profile) -> Table:
    table = Table(title="slowest steps", title_style="bold", title_justify="left", box=SIMPLE_HEAD)
    table.add_column("step", justify="right")
    table.add_column("took", justify="right", no_wrap=True)
    table.add_column("because of")
    for slow in profile.slowest:
        why = f"{slow.phase}: {_seconds(slow.phase_s)}, usually {_seconds(slow.usual_s)}"
        table.add_row(str(slow.step), _seconds(slow.seconds), why)
    return table


def _seconds(value: float) -> str:
    """Three digits: `12.3 s`, `4.56 s`, `78 ms`."""
    if value >= 1.0 or value == 0.0:
        return f"{value:.0f} s" if value >= 100 or not value else f"{value:.3g} s"
    return f"{1000 * value:.3g} ms"
