"""The leak gate: does a patch say where to look, or what is there? FFR section 3.2 and table 1.

Layers are small functions with a reason each. It needs no model server: it reads the question, the
options and the gold answer, and asks what a student who sees no video would learn from the patch. A hit of
a layer about size or form (a letter, a code, a range of one frame) is a leak. A hit of a layer about
meaning (a word of the answer or of its field, an amount, an order, a statement about the scene) may be
harmless - "compare the red and the blue cup" - so the reader weighs all of them together with the wording.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from ffr.config import LeakConfig
from ffr.fix.leak_claims import says_cause, says_number, says_order, says_polarity, states_content
from ffr.fix.leak_hidden import HIDDEN
from ffr.fix.leak_reader import Hit, Part, reader, signs_of, split_sentences, tells_nothing
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
"""Layers about meaning, in the order of the report; the reader weighs them and the wording together."""
CERTAIN: frozenset[str] = frozenset(
    {"schema", "pinpoint", "letter", "place", "language", "characters", "disguise", "encoding"}
)
"""Layers about size and form: a hit is a leak, whatever the wording."""


def check_leak(patch: EvidencePatch, sample: Sample, cfg: LeakConfig = LeakConfig()) -> LeakReport:
    """Check one patch against its question.

    Args:
        patch: What the teacher wants to show.
        sample: The question with its gold answer.
        cfg: Limits; with `enabled = False` nothing is checked and the report is empty.

    Returns:
        One finding per layer, leaking or not, in a fixed order: schema, pinpoint, the layers about form,
        the layers about meaning, the reader. A hit that the reader overrules says so in its reason.
    """
    if not cfg.enabled:
        return LeakReport(findings=())
    seen = inspect(patch, sample, cfg)
    if seen.certain or seen.silent:
        return LeakReport((*seen.findings, LeakFinding("reader", False)))
    model = reader()
    parts = parts_of(patch, seen.target)
    signs = signs_of(seen.passages, parts, seen.target, seen.reasons, model.usual)
    score = model.score(signs)
    threshold = model.threshold if cfg.reader_threshold is None else cfg.reader_threshold
    if score <= threshold:
        return LeakReport((*map(_let_pass, seen.findings), LeakFinding("reader", False)))
    loudest = parts[model.loudest(signs)].passage  # a patch without text is silent
    words = "; ".join(model.strongest(signs))
    reason = f"score {score:.2f} over {threshold:.2f}, most of all {loudest.raw!r}: {words}"
    return LeakReport((*seen.findings, LeakFinding("reader", True, loudest.field, reason)))


@dataclass(frozen=True, slots=True)
class Inspection:
    """A patch through the rules, before the reader weighs what they found.

    Example:
        >>> inspect(patch, sample).hits  # doctest: +SKIP
        ('gold', 'statement')
    """

    passages: tuple[Passage, ...]
    target: Target
    findings: tuple[LeakFinding, ...]
    """One per rule layer, in the order of the report; `leaked` means hit."""

    @property
    def hits(self) -> tuple[str, ...]:
        """Names of the layers that were hit."""
        return tuple(finding.layer for finding in self.findings if finding.leaked)

    @property
    def reasons(self) -> tuple[Hit, ...]:
        """The layers that were hit, and why."""
        return tuple((finding.layer, finding.reason) for finding in self.findings if finding.leaked)

    @property
    def certain(self) -> bool:
        """Whether a layer was hit that no wording excuses."""
        return any(name in CERTAIN for name in self.hits)

    @property
    def silent(self) -> bool:
        """Whether there is nothing to weigh: no hit, and no word beyond the question and any instruction."""
        return not self.hits and tells_nothing(self.passages, self.target)


def inspect(patch: EvidencePatch, sample: Sample, cfg: LeakConfig = LeakConfig()) -> Inspection:
    """Runs the rule layers: about size, about form, about meaning.

    Args:
        patch: What the teacher wants to show.
        sample: The question with its gold answer.
        cfg: Limits.

    Returns:
        What each layer found.
    """
    target = target_of(sample)
    passages = _passages(patch, target)
    findings = [check_schema(patch, cfg), check_pinpoint(patch, sample, cfg)]
    findings += [_run(name, layer, passages, target) for name, layer in (*HIDDEN, *MEANING)]
    return Inspection(passages, target, tuple(findings))


def parts_of(patch: EvidencePatch, target: Target) -> tuple[Part, ...]:
    """The patch cut into sentences and markers, each with the layers that it hits by itself.

    Args:
        patch: What the teacher wants to show.
        target: The question.

    Returns:
        The parts, those of the guidance first.
    """
    texts = [("guidance", text) for text in split_sentences(patch.guidance[:MAX_CHARS])]
    texts += [(f"temporal_markers[{i}]", text) for i, text in enumerate(patch.temporal_markers)]
    passages = [make_passage(field, text, target) for field, text in texts if text.strip()]
    found = [[(name, layer(one, target)) for name, layer in (*HIDDEN, *MEANING)] for one in passages]
    return tuple(
        Part(one, tuple((name, reason) for name, reason in hits if reason))
        for one, hits in zip(passages, found, strict=True)
    )


def _let_pass(finding: LeakFinding) -> LeakFinding:
    if not finding.leaked:
        return finding
    return replace(finding, leaked=False, reason=f"weighed and let pass: {finding.reason}")


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
