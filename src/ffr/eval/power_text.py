"""What a calculation of power says: for the terminal, as Markdown and as JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from ffr.eval.benchmarks import get_benchmark
from ffr.eval.power import SIZES, BenchmarkSize, Design, Measured, Needed, needed, resolvable, within_clusters
from ffr.eval.table_text import markdown_table, points, stacked_table

TITLES = ("benchmark", "questions", "videos", "design effect", "paired", "unpaired", "enough")


@dataclass(frozen=True, slots=True)
class Resolution:
    """The smallest differences that a benchmark shows.

    Example:
        >>> resolution(SIZES["mmvu"], Design(effect=0.015)).enough
        False
    """

    title: str
    num_questions: int
    num_videos: int | None
    design_effect: float
    paired: float
    """Smallest effect with the asked power, both runs on the same questions."""
    unpaired: float
    enough: bool
    """Whether the asked effect is at least the paired one."""


@dataclass(frozen=True, slots=True)
class PowerReport:
    """All that `ffr eval power` says.

    Example:
        >>> power_report(Design(effect=0.015)).needed.paired > 6000
        True
    """

    design: Design
    needed: Needed
    within: float | None
    """Questions needed, paired, on the given number of videos; infinite if no number is enough."""
    num_videos: int | None
    benchmarks: tuple[Resolution, ...]
    measured: tuple[Measured, ...] = ()


def resolution(size: BenchmarkSize, design: Design) -> Resolution:
    """What one benchmark shows under the design's assumptions, with its own questions per video."""
    own = replace(design, per_video=size.per_video)
    paired = resolvable(size.num_questions, own)
    return Resolution(
        title=size.title,
        num_questions=size.num_questions,
        num_videos=size.num_videos,
        design_effect=own.design_effect,
        paired=paired,
        unpaired=resolvable(size.num_questions, own, paired=False),
        enough=not math.isnan(paired) and design.effect >= paired,
    )


def power_report(
    design: Design,
    *,
    num_videos: int | None = None,
    measured: Sequence[Measured] = (),
    sizes: Mapping[str, BenchmarkSize] = SIZES,
) -> PowerReport:
    """Questions needed, and what each benchmark can show.

    Args:
        design: The assumptions.
        num_videos: How many videos there are, if that is the limit.
        measured: What runs say of benchmarks: lines of their own, with what was measured.
        sizes: The benchmarks that are listed.
    """
    lines = [resolution(size, design) for size in sizes.values()]
    for one in measured:
        discordance = design.discordance if math.isnan(one.discordance) else one.discordance
        own = replace(
            design,
            base=min(max(one.accuracy, 0.01), 0.99 - design.effect),
            discordance=max(discordance, design.effect),
            icc=one.icc,
        )
        size = BenchmarkSize(
            f"{get_benchmark(one.benchmark).title}, {one.num_frames} frames, measured on {one.source}",
            one.num_questions,
            one.num_videos,
        )
        lines.append(resolution(size, own))
    alone = needed(replace(design, per_video=1.0)).paired
    return PowerReport(
        design=design,
        needed=needed(design),
        within=None if num_videos is None else within_clusters(alone, num_videos, design.icc),
        num_videos=num_videos,
        benchmarks=tuple(lines),
        measured=tuple(measured),
    )


def _sentences(report: PowerReport) -> list[str]:
    d = report.design
    out = [
        f"To show a difference of {points(d.effect)} points (power {points(d.power, 0)} %, two-sided level "
        f"{points(d.alpha, 0)} %):",
        f"- both runs on the same questions, {points(d.discordance)} % of them right in one run alone: "
        f"{report.needed.paired} questions",
        f"- two accuracies alone, the lower one {points(d.base)}: {report.needed.unpaired} questions each",
    ]
    if d.per_video > 1:
        out.append(
            f"- counted for {d.per_video:g} questions per video, likeness {d.icc:g}: design effect "
            f"{d.design_effect:.2f}"
        )
    if report.within is not None:
        words = (
            "no number of questions" if math.isinf(report.within) else f"{math.ceil(report.within)} questions"
        )
        out.append(f"- on {report.num_videos} videos (likeness {d.icc:g}), paired: {words}")
    for one in report.measured:
        apart = "unknown" if math.isnan(one.discordance) else f"{points(one.discordance)} %"
        out.append(
            f"- {one.benchmark}, {one.num_frames} frames ({one.source}): accuracy {points(one.accuracy)}, "
            f"discordance {apart}, likeness {one.icc:.3f}, design effect {one.design_effect:.2f}"
        )
    return out


def _legend(report: PowerReport) -> str:
    return (
        "Paired, unpaired: the smallest difference in points that a benchmark shows under these assumptions, "
        f"likeness of questions on one video {report.design.icc:g} (lines that say measured: their own "
        "values). Videos -: unknown, questions taken as independent."
    )


def _rows(report: PowerReport) -> list[list[str]]:
    return [
        [
            line.title,
            str(line.num_questions),
            "-" if line.num_videos is None else str(line.num_videos),
            f"{line.design_effect:.2f}",
            points(line.paired),
            points(line.unpaired),
            "yes" if line.enough else "no",
        ]
        for line in report.benchmarks
    ]


def power_rich(report: PowerReport) -> RenderableType:
    """For a terminal."""
    parts: list[RenderableType] = [Text(text) for text in _sentences(report)]
    shown = stacked_table([title.replace(" ", "\n") for title in TITLES], "What benchmarks can show")
    for row in _rows(report):
        shown.add_row(*map(Text, row))
    parts.append(shown)
    return Group(*parts, Text(_legend(report), style="dim"))


def power_markdown(report: PowerReport) -> str:
    """As Markdown."""
    first, *others = _sentences(report)
    return "\n".join(
        [first, "", *others, "", *markdown_table(TITLES, _rows(report)), "", _legend(report), ""]
    )


def power_json(report: PowerReport) -> str:
    """As JSON; shares stay shares, what is unknown or infinite is null."""
    return json.dumps(_finite(asdict(report)), indent=1, allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
