"""The door of the room: a sample and a configuration in, an observation out."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ffr.config import ObserveConfig
from ffr.observe.clip import load_clip
from ffr.observe.errors import MediaError
from ffr.observe.prompt import render_prompt
from ffr.observe.transforms import view_id
from ffr.observe.video import DEFAULT_LIMITS, DecodeLimits
from ffr.types import Observation, Sample

DEFAULT_CONFIG = ObserveConfig()


def observe(sample: Sample, cfg: ObserveConfig, *, limits: DecodeLimits = DEFAULT_LIMITS) -> Observation:
    """x: the frames that the student sees, and the question as it is put.

    Frame times count from the first displayed frame of the file also where `sample.clip_s` cuts a
    part out of it, so that they agree with `Evidence.spans_s` and `read_frames_at`.

    Args:
        sample: The question and its media.
        cfg: Frames, pixel limits, prompt template and cache.
        limits: What a file may cost before it is refused.

    Returns:
        The observation; `notes` says what was unusual (`short_clip:<n>`, `fallback`, `linear`,
        `truncated`, `partial:<k>`, `corrupt:<k>`, `cache_damaged`).

    Raises:
        MediaError: If the media is missing, can't be decoded or passes a limit.
    """
    clip = load_clip(sample, cfg, limits)
    prompt = render_prompt(sample, clip.frames, style=cfg.prompt, state_frames=cfg.state_frames)
    return Observation(
        sample_uid=sample.uid,
        frames=clip.frames,
        prompt=prompt,
        view_id=view_id(clip.frames, prompt),
        duration_s=clip.duration_s,
        notes=clip.notes,
        prompt_style=cfg.prompt,
    )


@dataclass(frozen=True, slots=True)
class SkippedClip:
    """A sample whose media can't be shown, and why.

    Example:
        >>> SkippedClip(uid="micro/7", status="missing", detail="no such file").status
        'missing'
    """

    uid: str
    status: str
    detail: str


def check_clips(
    samples: Iterable[Sample], cfg: ObserveConfig = DEFAULT_CONFIG
) -> tuple[tuple[Sample, ...], tuple[SkippedClip, ...]]:
    """Decode each sample's frames once and split the samples into good and skipped ones.

    Samples of one clip with equal bounds are decoded once. Nothing is replaced.
    """
    seen: dict[tuple[str, str, tuple[float, float] | None], MediaError | None] = {}
    good: list[Sample] = []
    skipped: list[SkippedClip] = []
    for sample in samples:
        key = (str(sample.video), sample.media_type, sample.clip_s)
        if key not in seen:
            try:
                load_clip(sample, cfg)
                seen[key] = None
            except MediaError as error:
                seen[key] = error
        failure = seen[key]
        if failure is None:
            good.append(sample)
        else:
            skipped.append(SkippedClip(sample.uid, failure.status, failure.detail))
    return tuple(good), tuple(skipped)
