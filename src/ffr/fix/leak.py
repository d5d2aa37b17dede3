"""The leak gate: does a patch say where to look, or what is there? FFR section 3.2 and table 1.

Layers are small functions with a reason each; any hit is a leak. The gate needs no model: it reads the
question, the options and the gold answer, and asks what a student who sees no video would learn from
the patch. The field of the answer (colours, directions, animals...) is off limits as a whole, because a
wrong member rules an option out; words of the question are allowed unless it lists the choices itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ffr.config import LeakConfig
from ffr.fix.leak_claims import says_cause, says_number, says_order, says_polarity, states_content
from ffr.fix.leak_hidden import HIDDEN
from ffr.fix.leak_rules import Passage, make_passage, names_option, says_field_word, says_gold
from ffr.fix.leak_target import Target, target_of
from ffr.fix.leak_text import MAX_CHARS
from ffr.fix.patch import MAX_MARKER_CHARS, MAX_MARKERS, MAX_RANGES, MAX_REGIONS
from ffr.types import EvidencePatch, LeakFinding, LeakReport, Sample

Layer = Callable[[Passage, Target], str]
MEANING: tuple[tuple[str, Layer], ...] = (
    ("option", names_option),
    ("gold", says_gold),
    ("number", says_number),
    ("field", says_field_word),
    ("polarity", says_polarity),
    ("order", says_order),
    ("statement", states_content),
    ("cause", says_cause),
)
"""Layers about meaning, in the order of the report."""


def check_leak(patch: EvidencePatch, sample: Sample, cfg: LeakConfig = LeakConfig()) -> LeakReport:
    """Check one patch against its question.

    Args:
        patch: What the teacher wants to show.
        sample: The question with its gold answer.
        cfg: Limits; with `enabled = False` nothing is checked and the report is empty.

    Returns:
        One finding per layer, leaking or not, in a fixed order: schema, pinpoint, the layers about form,
        the layers about meaning.
    """
    if not cfg.enabled:
        return LeakReport(findings=())
    target = target_of(sample)
    passages = _passages(patch, target)
    findings = [check_schema(patch, cfg), check_pinpoint(patch, sample, cfg)]
    findings += [_run(name, layer, passages, target) for name, layer in (*HIDDEN, *MEANING)]
    return LeakReport(findings=tuple(findings))


def check_schema(patch: EvidencePatch, cfg: LeakConfig) -> LeakFinding:
    """Length and number of the fields: room for a message is room for an answer.

    Args:
        patch: The patch.
        cfg: Limits.

    Returns:
        The finding.
    """
    limit = min(cfg.max_guidance_chars, MAX_CHARS)  # the other layers read no further
    if len(patch.guidance) > limit:
        reason = f"longer than {limit} characters"
        return LeakFinding("schema", True, "guidance", reason)
    counts = (
        ("key_frames", len(patch.key_frames), MAX_RANGES),
        ("temporal_markers", len(patch.temporal_markers), MAX_MARKERS),
        ("spatial_regions", len(patch.spatial_regions), MAX_REGIONS),
    )
    for name, count, limit in counts:
        if count > limit:
            return LeakFinding("schema", True, name, f"{count} entries, more than {limit}")
    for index, marker in enumerate(patch.temporal_markers):
        if len(marker) > MAX_MARKER_CHARS:
            name = f"temporal_markers[{index}]"
            return LeakFinding("schema", True, name, f"longer than {MAX_MARKER_CHARS} characters")
    return LeakFinding("schema", False)


def check_pinpoint(patch: EvidencePatch, sample: Sample, cfg: LeakConfig) -> LeakFinding:
    """Ranges and boxes so narrow that they are the answer; an image has but one frame.

    Args:
        patch: The patch.
        sample: The question.
        cfg: Limits.

    Returns:
        The finding.
    """
    ranges = [(f"key_frames[{index}]", frames) for index, frames in enumerate(patch.key_frames)]
    for index, region in enumerate(patch.spatial_regions):
        name = f"spatial_regions[{index}]"
        ranges.append((name, region.frames))
        x0, y0, x1, y1 = region.box
        area = max(0.0, x1 - x0) * max(0.0, y1 - y0)
        if area < cfg.min_box_area:
            return LeakFinding("pinpoint", True, name, f"box area {area:.4f} is below {cfg.min_box_area}")
    if sample.media_type == "image":
        return LeakFinding("pinpoint", False)
    for name, (start, end) in ranges:
        if end - start + 1 < cfg.min_range_frames:
            width = max(0, end - start + 1)
            reason = f"range of {width} frames is narrower than {cfg.min_range_frames}"
            return LeakFinding("pinpoint", True, name, reason)
    return LeakFinding("pinpoint", False)


def _passages(patch: EvidencePatch, target: Target) -> tuple[Passage, ...]:
    fields = [("guidance", patch.guidance)]
    fields += [(f"temporal_markers[{index}]", text) for index, text in enumerate(patch.temporal_markers)]
    kept = [(name, text) for name, text in fields if text.strip()]
    passages = [make_passage(name, text, target) for name, text in kept]
    if len(kept) > 1:  # an answer split over two fields
        joined = ". ".join(text for _, text in kept)
        passages.append(make_passage("temporal_markers+guidance", joined, target))
    return tuple(passages)


def _run(name: str, layer: Layer, passages: Sequence[Passage], target: Target) -> LeakFinding:
    for passage in passages:
        reason = layer(passage, target)
        if reason:
            return LeakFinding(name, True, passage.field, reason)
    return LeakFinding(name, False)
