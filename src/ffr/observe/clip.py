"""From a path to frames: the selection of `observe`, and the times that a teacher's tool asks for."""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from ffr.config import ObserveConfig
from ffr.observe import cache
from ffr.observe.cache import CachedClip
from ffr.observe.errors import MediaError
from ffr.observe.frames import Pixels, fit_size, make_frame, resize, uniform_indices
from ffr.observe.video import DEFAULT_LIMITS, ClipIndex, DecodeLimits, check_file, decode_frames, index_video
from ffr.observe.worker import decode_isolated
from ffr.types import Frame, Sample

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp"})
IMAGE_FORMATS = ("JPEG", "PNG", "WEBP", "BMP")
_TIME_EPS_S = 1e-6


def is_image(path: Path, media_type: str = "") -> bool:
    """True if the path is read as an image: its row says so or its suffix does."""
    return media_type == "image" or path.suffix.lower() in IMAGE_SUFFIXES


def read_image(path: Path, limits: DecodeLimits = DEFAULT_LIMITS) -> Pixels:
    """RGB pixels of an image file in display orientation, shape (height, width, 3).

    Raises:
        MediaError: `missing`, `empty`, `too_big`, `undecodable`.
    """
    check_file(path, limits)
    try:
        with Image.open(path, formats=IMAGE_FORMATS) as image:
            if image.width * image.height > limits.max_px * 4:
                raise MediaError(
                    "too_big",
                    path,
                    f"{image.width}x{image.height} px, limit {limits.max_px * 4} px; shrink it",
                )
            return np.asarray(ImageOps.exif_transpose(image).convert("RGB"), dtype=np.uint8)
    except (OSError, ValueError, SyntaxError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise MediaError("undecodable", path, f"not a readable image ({error})") from error


def _bounds(index: ClipIndex, clip_s: tuple[float, float] | None, path: Path) -> tuple[int, int]:
    """Half-open range of displayed frames that lie inside clip_s, both ends included."""
    if clip_s is None:
        return 0, len(index.pts)
    times = index.times_s
    first = bisect.bisect_left(times, clip_s[0] - _TIME_EPS_S)
    last = bisect.bisect_right(times, clip_s[1] + _TIME_EPS_S)
    if first >= last:
        raise MediaError(
            "empty",
            path,
            f"no frame between {clip_s[0]:g} s and {clip_s[1]:g} s; the file lasts {index.duration_s:g} s",
        )
    return first, last


def decode_clip(sample: Sample, cfg: ObserveConfig, limits: DecodeLimits = DEFAULT_LIMITS) -> CachedClip:
    """The student's frames of one sample, decoded and resized; not cached, no prompt.

    Raises:
        MediaError: If the media can't be shown.
    """
    path = sample.video
    if is_image(path, sample.media_type):
        pixels = read_image(path, limits)
        size = fit_size(
            pixels.shape[1],
            pixels.shape[0],
            max_px=cfg.max_image_px,
            min_px=min(cfg.min_frame_px, cfg.max_image_px),
            factor=cfg.size_factor_px,
        )
        frame = make_frame(resize(pixels, size), number=1, source_index=0, timestamp_s=0.0)
        return CachedClip((frame,), 0.0, ())
    index = index_video(path, limits)
    first, last = _bounds(index, sample.clip_s, path)
    wanted = [first + i for i in uniform_indices(last - first, cfg.num_frames)]
    decoded, notes = decode_frames(path, index, wanted, limits)
    times = index.times_s
    size: tuple[int, int] | None = None
    frames: list[Frame] = []
    for i in wanted:
        if i not in decoded:
            continue
        if size is None:
            height, width = decoded[i].shape[:2]
            size = fit_size(
                width, height, max_px=cfg.max_frame_px, min_px=cfg.min_frame_px, factor=cfg.size_factor_px
            )
        pixels = resize(decoded[i], size)
        frames.append(make_frame(pixels, number=len(frames) + 1, source_index=i, timestamp_s=times[i]))
    short = (f"short_clip:{last - first}",) if last - first < cfg.num_frames else ()
    duration_s = index.duration_s if sample.clip_s is None else times[last - 1] - times[first]
    return CachedClip(tuple(frames), duration_s, (*index.notes, *notes, *short))


def load_clip(sample: Sample, cfg: ObserveConfig, limits: DecodeLimits = DEFAULT_LIMITS) -> CachedClip:
    """`decode_clip` through the frame cache of `cfg.cache_dir`, if one is set.

    A damaged cache entry is decoded again and overwritten; the note `cache_damaged` says so.

    Raises:
        MediaError: If the media can't be shown.
    """
    decode = decode_isolated if limits.isolate else decode_clip
    if cfg.cache_dir is None:
        return decode(sample, cfg, limits)
    check_file(sample.video, limits)
    settings = (
        is_image(sample.video, sample.media_type),
        sample.clip_s,
        cfg.num_frames,
        cfg.max_frame_px,
        cfg.min_frame_px,
        cfg.max_image_px,
        cfg.size_factor_px,
    )
    path = cache.cache_file(cfg.cache_dir, sample.video, settings)
    damaged = ()
    try:
        clip = cache.load(path)
    except ValueError:
        clip, damaged = None, ("cache_damaged",)
    if clip is None:
        clip = decode(sample, cfg, limits)
        cache.store(path, clip)
    return CachedClip(clip.frames, clip.duration_s, (*clip.notes, *damaged))


def read_frames_at(
    path: Path,
    times_s: Sequence[float],
    *,
    max_px: int,
    size_factor_px: int | None = None,
    clip_s: tuple[float, float] | None = None,
    limits: DecodeLimits = DEFAULT_LIMITS,
) -> tuple[Frame, ...]:
    """The displayed frames nearest to some times, for the teacher's tools.

    Args:
        path: A local video or image.
        times_s: Seconds from the first displayed frame of the file, in any order; times outside are
            moved to the nearest end.
        max_px: Upper limit of the area in pixels.
        size_factor_px: Side granularity; None only shrinks to `max_px`.
        clip_s: Bounds that no frame may leave, seconds (`Sample.clip_s`).
        limits: What the file may cost.

    Returns:
        One frame per time, in the order of `times_s` (a frame may repeat), numbered from 1. A time
        whose frame can't be decoded has no frame in the result.

    Raises:
        MediaError: If nothing can be shown.
    """
    if is_image(path):
        pixels = _limited(read_image(path, limits), max_px, size_factor_px)
        return tuple(
            make_frame(pixels, number=k + 1, source_index=0, timestamp_s=0.0) for k in range(len(times_s))
        )
    if not times_s:
        return ()
    index = index_video(path, limits)
    first, last = _bounds(index, clip_s, path)
    times = index.times_s
    wanted = [_nearest(times, t, first, last) for t in times_s]
    decoded, _ = decode_frames(path, index, wanted, limits)
    sized = {i: _limited(pixels, max_px, size_factor_px) for i, pixels in decoded.items()}
    found = [i for i in wanted if i in sized]
    return tuple(
        make_frame(sized[i], number=k + 1, source_index=i, timestamp_s=times[i]) for k, i in enumerate(found)
    )


def _nearest(times: Sequence[float], t: float, first: int, last: int) -> int:
    """Position of the frame nearest to t among first..last-1; the earlier one of two equally near."""
    after = bisect.bisect_left(times, t, first, last)
    if after == first:
        return first
    if after == last:
        return last - 1
    return after - 1 if t - times[after - 1] <= times[after] - t else after


def _limited(pixels: Pixels, max_px: int, factor: int | None) -> Pixels:
    height, width = pixels.shape[:2]
    if factor is not None:
        return resize(pixels, fit_size(width, height, max_px=max_px, factor=factor))
    if width * height <= max_px:
        return pixels
    scale = (max_px / (width * height)) ** 0.5
    return resize(pixels, (max(1, int(width * scale)), max(1, int(height * scale))))
