"""Small SVG line charts for the trace page: no library, no script, colours from the page's CSS."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 340.0, 116.0, 30.0, 8.0, 8.0, 18.0


@dataclass(frozen=True, slots=True)
class Chart:
    """One chart of a share over steps, ready for the page.

    Example:
        >>> line_chart("first pass", [0, 10], [0.25, 0.75]).last
        '75 %'
    """

    title: str
    svg: str
    first: str
    last: str


def smoothed(values: Sequence[float], window: int) -> list[float]:
    """Centred moving means over up to `window` values; NaN are left out of each mean."""
    half = window // 2
    out: list[float] = []
    for i in range(len(values)):
        near = [v for v in values[max(0, i - half) : i + half + 1] if math.isfinite(v)]
        out.append(sum(near) / len(near) if near else math.nan)
    return out


def line_chart(title: str, steps: Sequence[int], values: Sequence[float]) -> Chart:
    """A chart of `values` (shares, 0..1) over `steps`: thin raw line, thick smoothed one."""
    known = [(s, v) for s, v in zip(steps, values, strict=True) if math.isfinite(v)]
    if not known:
        return Chart(title, "", "-", "-")
    xs, ys = [s for s, _ in known], [v for _, v in known]
    trend = smoothed(ys, max(1, len(ys) // 8))
    parts = [*_grid(xs[0], xs[-1])]
    if len(xs) > 1:
        raw, thick = (_path(xs, line, xs[0], xs[-1]) for line in (ys, trend))
        parts += [f'<path class="raw" d="{raw}"/>', f'<path class="trend" d="{thick}"/>']
    x, y = _x(xs[-1], xs[0], xs[-1]), _y(trend[-1])
    parts.append(f'<circle class="end" cx="{x:.1f}" cy="{y:.1f}" r="3"/>')
    label = f"{title}: {_percent(trend[0])} at step {xs[0]}, {_percent(trend[-1])} at step {xs[-1]}"
    box = f'viewBox="0 0 {WIDTH:.0f} {HEIGHT:.0f}" role="img"'
    svg = f"<svg {box}><title>{_escaped(label)}</title>{''.join(parts)}</svg>"
    return Chart(title, svg, _percent(trend[0]), _percent(trend[-1]))


def _percent(value: float) -> str:
    return f"{100 * value:.0f} %"


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _x(step: float, first: float, last: float) -> float:
    span = (last - first) or 1.0
    return LEFT + (WIDTH - LEFT - RIGHT) * (step - first) / span


def _y(value: float) -> float:
    return TOP + (HEIGHT - TOP - BOTTOM) * (1.0 - min(max(value, 0.0), 1.0))


def _path(steps: Sequence[int], values: Sequence[float], first: int, last: int) -> str:
    points = (f"{_x(s, first, last):.1f} {_y(v):.1f}" for s, v in zip(steps, values, strict=True))
    return "M" + "L".join(points)


def _grid(first: int, last: int) -> list[str]:
    parts: list[str] = []
    for share in (0.0, 0.5, 1.0):
        y = _y(share)
        parts.append(f'<path class="grid" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>')
        parts.append(f'<text x="{LEFT - 5}" y="{y + 3:.1f}" text-anchor="end">{100 * share:.0f}</text>')
    bottom = HEIGHT - 4
    parts.append(f'<text x="{LEFT}" y="{bottom}">step {first}</text>')
    if last != first:
        parts.append(f'<text x="{WIDTH - RIGHT}" y="{bottom}" text-anchor="end">{last}</text>')
    return parts
