"""The words that the student reads: question and patch, rendered from the templates in `prompts/`.

A template gets values, never source: braces in a question, an option or a patch are plain text.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from importlib import resources
from typing import Literal

from jinja2 import Environment, FunctionLoader, StrictUndefined

from ffr.types import Box, ErrorType, EvidencePatch, Frame, FrameRange, Observation, Sample

Visual = Literal["none", "pointers", "frames"]

ERROR_WORDS = {
    ErrorType.TEMPORAL: "when things happen and in which order",
    ErrorType.SPATIAL: "where things are and how they lie to each other",
    ErrorType.ATTRIBUTE: "what something looks like",
    ErrorType.COUNTING: "how often something is there or happens",
    ErrorType.DYNAMICS: "how something moves or changes",
    ErrorType.LOGIC: "how one thing follows from another",
    ErrorType.MISCONCEPTION: "what the question really asks about",
}
"""What each error type means, in words for a student (`patch.md`)."""

_PATCH_TEMPLATES = {"video_r1": "patch", "brief": "patch_brief"}


def _source(name: str) -> str | None:
    file = resources.files("ffr.observe") / "prompts" / f"{name}.md"
    return file.read_text(encoding="utf-8") if file.is_file() else None


@cache
def _environment() -> Environment:
    return Environment(
        loader=FunctionLoader(_source),
        undefined=StrictUndefined,
        autoescape=False,
        keep_trailing_newline=False,
    )


def template_version(name: str) -> str:
    """`<name>/<version>` of a template under `prompts/`, for cache keys and traces.

    Raises:
        ValueError: If there is no such template or it states no version.
    """
    found = re.match(r"\{#-? version: (\w+)\.", _source(name) or "")
    if not found:
        raise ValueError(
            f"observe/prompts/{name}.md: no such template, or no '{{#- version: N.' line at its top"
        )
    return f"{name}/{found.group(1)}"


def state_line(frames: Sequence[Frame]) -> str:
    """How many frames the video has and when each is shown: what a patch's frame numbers refer to."""
    times = " ".join(f"{frame.timestamp_s:.1f}" for frame in frames)
    noun = "frame" if len(frames) == 1 else "frames"
    return f"The video has {len(frames)} {noun} numbered 1-{len(frames)}; frame k is at t_k s: {times}"


def render_prompt(sample: Sample, frames: Sequence[Frame], *, style: str, state_frames: bool) -> str:
    """The user text after the media, in the template family `style`.

    Args:
        sample: The question; its gold answer is not passed to the template.
        frames: The student's frames; their times are stated by `video_r1` for videos.
        style: `video_r1` or `brief`.
        state_frames: Whether to state frame numbers and times.
    """
    stated = state_frames and style != "brief" and sample.media_type == "video" and len(frames) > 0
    return (
        _environment()
        .get_template(style)
        .render(
            question=sample.question.rstrip(),
            options=sample.options,
            problem_type=str(sample.problem_type),
            state_line=state_line(frames) if stated else "",
        )
    )


def frames_words(span: FrameRange) -> str:
    """`5-8`, as a frame range is written everywhere."""
    return f"{span[0]}-{span[1]}"


def _times_words(span: FrameRange, frames: Sequence[Frame]) -> str:
    """Seconds of a range's first and last frame, `1.3-2.1`; empty where the frames are unknown."""
    inside = [f.timestamp_s for f in frames if span[0] <= f.number <= span[1]]
    return f"{inside[0]:.1f}-{inside[-1]:.1f}" if inside else ""


def _region_words(span: FrameRange, box: Box) -> dict[str, str]:
    x0, y0, x1, y1 = box
    return {"frames": frames_words(span), "x": f"{x0:.2f}-{x1:.2f}", "y": f"{y0:.2f}-{y1:.2f}"}


def _one_line(text: str) -> str:
    """A field's text on one line: a newline in it can't start a new field."""
    return " ".join(text.split())


def render_patch(patch: EvidencePatch, obs: Observation, *, visual: str = "pointers") -> str:
    """The patch as the text that is appended to the prompt; every field is rendered.

    Nothing but the patch and the frames' times is used, so no word of the answer can be added. Boxes
    are given as numbers only: a place in words ("left") could be an answer option.

    Args:
        patch: What the teacher gives.
        obs: The observation it is for: its frames' times and its prompt family.
        visual: `pointers` and `frames` give ranges and boxes; `none` leaves them out (the "no visual
            context" ablation of FFR table 3, arXiv 2604.16243). `frames` also says what is shown again.

    Returns:
        Text without a newline at either end; the encoder puts it after the prompt on a new line.

    Raises:
        ValueError: If `visual` or the observation's prompt family is unknown.
    """
    check_visual(visual)
    if obs.prompt_style not in _PATCH_TEMPLATES:
        raise ValueError(
            f"prompt_style {obs.prompt_style!r} has no patch template; allowed: {sorted(_PATCH_TEMPLATES)}"
        )
    pointing = visual != "none"
    ranges = [{"frames": frames_words(r), "times": _times_words(r, obs.frames)} for r in patch.key_frames]
    regions = [_region_words(r.frames, r.box) for r in patch.spatial_regions]
    shown = [f"frames {r['frames']}" for r in ranges] + [f"the box in frames {r['frames']}" for r in regions]
    rendered = (
        _environment()
        .get_template(_PATCH_TEMPLATES[obs.prompt_style])
        .render(
            errors=[{"name": str(e), "words": ERROR_WORDS[e]} for e in patch.error_types],
            ranges=ranges if pointing else [],
            regions=regions if pointing else [],
            markers=[_one_line(m) for m in patch.temporal_markers],
            guidance=_one_line(patch.guidance),
            shown=", ".join(shown) if visual == "frames" and obs.frames else "",
        )
    )
    return rendered.strip("\n")


def check_visual(visual: str) -> None:
    """Refuse an unknown value of `fix.visual`.

    Raises:
        ValueError: Naming the allowed values.
    """
    if visual not in ("none", "pointers", "frames"):
        raise ValueError(f"fix.visual {visual!r} is unknown; allowed: none, pointers, frames")


def user_text(obs: Observation) -> str:
    """All text of the student's turn: the prompt, then the patch on a new line."""
    return f"{obs.prompt}\n{obs.patch_text}" if obs.patch_text else obs.prompt
