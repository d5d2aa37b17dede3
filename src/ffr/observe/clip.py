"""From a path to frames: the selection of `observe`, and the times that a teacher's tool asks for."""

from __future__ import annotations

import bisect
import io
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from ffr.config import ObserveConfig
from ffr.observe import cache
from ffr.observe.cache import CachedClip
from ffr.observe.errors import MediaError
from ffr.observe.folder import FOLDER_FPS, index_folder, read_folder
from ffr.observe.folder import folder_fps as fps_of
from ffr.observe.frames import UNIFORM, FrameRule, Pixels, fit_size, make_frame, resize
from ffr.observe.pool import POOL
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
    return _rgb(path, path, limits)


def decode_image(data: bytes, limits: DecodeLimits = DEFAULT_LIMITS) -> Pixels:
    """RGB pixels of an image's bytes in display orientation, shape (height, width, 3).

    Raises:
        MediaError: `empty`, `too_big`, `undecodable`; its path is `data`.
    """
    name = Path("data")
    if not data:
        raise MediaError("empty", name, "the image has 0 bytes")
    return _rgb(io.BytesIO(data), name, limits)


def _rgb(source: Path | io.BytesIO, name: Path, limits: DecodeLimits) -> Pixels:
    try:
        with Image.open(source, formats=IMAGE_FORMATS) as image:
            if image.width * image.height > limits.max_px * 4:
                raise MediaError(
                    "too_big",
                    name,
                    f"{image.width}x{image.height} px, limit {limits.max_px * 4} px; shrink it",
                )
            return np.asarray(ImageOps.exif_transpose(image).convert("RGB"), dtype=np.uint8)
    except (OSError, ValueError, SyntaxError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise MediaError("undecodable", name, f"not a readable image ({error})") from error


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
    return decode_clips(sample, cfg, (cfg.num_frames,), limits)[cfg.num_frames]


def decode_clips(
    sample: Sample,
    cfg: ObserveConfig,
    nums: Sequence[int],
    limits: DecodeLimits = DEFAULT_LIMITS,
    rule: FrameRule = UNIFORM,
) -> dict[int, CachedClip]:
    """Several numbers of frames of one sample out of one pass over its file.

    The index sets of 16, 32 and 64 frames are not nested, so their union is decoded and then split.
    A file on which the decoder had trouble is decoded once for each number instead: what is shown
    never depends on which other numbers were asked for.

    Args:
        sample: Whose clip; its question is not looked at.
        cfg: Pixel limits; its `num_frames` is not looked at.
        nums: Numbers of frames.
        limits: What the file may cost.
        rule: Which frames.

    Returns:
        One clip per number, equal to that of a pass for the number alone.

    Raises:
        MediaError: If the media can't be shown.
    """
    path = sample.video
    if not path.is_dir() and is_image(path, sample.media_type):
        image = _image(path, cfg, limits)
        return dict.fromkeys(nums, image)
    index = index_folder(path, fps_of(sample)) if path.is_dir() else index_video(path, limits)
    first, last = _bounds(index, sample.clip_s, path)
    times = index.times_s
    fps = (len(times) - 1) / times[-1] if times[-1] > 0 else 25.0
    wanted = {num: [first + i for i in rule.choose(last - first, num, fps)] for num in nums}
    union = sorted({i for indices in wanted.values() for i in indices})
    if path.is_dir():
        decoded, notes = read_folder(path, union, lambda file: read_image(file, limits))
    else:
        decoded, notes = decode_frames(path, index, union, limits)
    if notes and len(wanted) > 1:
        return {num: decode_clips(sample, cfg, (num,), limits, rule)[num] for num in wanted}
    made = _sized(decoded, times, cfg)
    duration_s = index.duration_s if sample.clip_s is None else times[last - 1] - times[first]
    clips: dict[int, CachedClip] = {}
    for num, indices in wanted.items():
        kept = [made[i] for i in indices if i in made]
        frames = tuple(replace(frame, number=k) for k, frame in enumerate(kept, start=1))
        short = (f"short_clip:{last - first}",) if last - first < num else ()
        clips[num] = CachedClip(frames, duration_s, (*index.notes, *notes, *short))
    return clips


def _image(path: Path, cfg: ObserveConfig, limits: DecodeLimits) -> CachedClip:
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


def _sized(decoded: Mapping[int, Pixels], times: Sequence[float], cfg: ObserveConfig) -> dict[int, Frame]:
    """The decoded frames at the size of the first one, by source index; all numbered 1."""
    if not decoded:
        return {}
    height, width = decoded[min(decoded)].shape[:2]
    size = fit_size(
        width, height, max_px=cfg.max_frame_px, min_px=cfg.min_frame_px, factor=cfg.size_factor_px
    )
    return {
        i: make_frame(resize(pixels, size), number=1, source_index=i, timestamp_s=times[i])
        for i, pixels in decoded.items()
    }


def load_clip(sample: Sample, cfg: ObserveConfig, limits: DecodeLimits = DEFAULT_LIMITS) -> CachedClip:
    """`decode_clip` through the frame cache of `cfg.cache_dir`, if one is set.

    A damaged cache entry is decoded again and overwritten; the note `cache_damaged` says so.

    Raises:
        MediaError: If the media can't be shown.
    """
    return load_clips(sample, cfg, (cfg.num_frames,), limits)[cfg.num_frames]


def load_clips(
    sample: Sample,
    cfg: ObserveConfig,
    nums: Sequence[int],
    limits: DecodeLimits = DEFAULT_LIMITS,
    rule: FrameRule = UNIFORM,
) -> dict[int, CachedClip]:
    """`decode_clips` through the frame cache, where each number of frames has an entry of its own.

    Entries of uniform frames are those of `load_clip`, hence shared with training.

    Raises:
        MediaError: If the media can't be shown.
        ValueError: If the decode is to be isolated and the rule is not `UNIFORM`.
    """
    if cfg.cache_dir is None:
        return _decode(sample, cfg, nums, limits, rule)
    if not sample.video.is_dir():
        check_file(sample.video, limits)
    identity = cache.file_identity(sample.video)
    paths = {num: _entry(cfg, sample, num, rule, cfg.cache_dir, identity) for num in nums}
    clips: dict[int, CachedClip] = {}
    damaged: set[int] = set()
    for num, path in paths.items():
        try:
            clip = cache.load(path)
        except ValueError:
            clip = None
            damaged.add(num)
        if clip is not None:
            clips[num] = clip
    if todo := [num for num in paths if num not in clips]:
        for num, clip in _decode(sample, cfg, todo, limits, rule).items():
            cache.store(paths[num], clip)
            notes = (*clip.notes, "cache_damaged") if num in damaged else clip.notes
            clips[num] = CachedClip(clip.frames, clip.duration_s, notes)
    return clips


def _entry(
    cfg: ObserveConfig, sample: Sample, num: int, rule: FrameRule, cache_dir: Path, identity: str
) -> Path:
    settings = (
        is_image(sample.video, sample.media_type),
        sample.clip_s,
        num,
        cfg.max_frame_px,
        cfg.min_frame_px,
        cfg.max_image_px,
        cfg.size_factor_px,
        *(() if rule is UNIFORM else (rule.name,)),
        *((fps_of(sample),) if sample.video.is_dir() else ()),
    )
    return cache.cache_file(cache_dir, identity, settings)


def _decode(
    sample: Sample, cfg: ObserveConfig, nums: Sequence[int], limits: DecodeLimits, rule: FrameRule
) -> dict[int, CachedClip]:
    if not limits.isolate:
        return decode_clips(sample, cfg, nums, limits, rule)
    if rule is not UNIFORM:
        raise ValueError(f"frames by the rule {rule.name!r} can't be decoded in a process of their own")
    return {n: decode_isolated(sample, cfg.model_copy(update={"num_frames": n}), limits) for n in nums}


def read_frames_at(
    path: Path,
    times_s: Sequence[float],
    *,
    max_px: int,
    size_factor_px: int | None = None,
    clip_s: tuple[float, float] | None = None,
    folder_fps: float | None = None,
    limits: DecodeLimits = DEFAULT_LIMITS,
) -> tuple[Frame, ...]:
    """The displayed frames nearest to some times, for the teacher's tools.

    Args:
        path: A local video or image, or a folder of pictures.
        times_s: Seconds from the first displayed frame of the file, in any order; times outside are
            moved to the nearest end.
        max_px: Upper limit of the area in pixels.
        size_factor_px: Side granularity; None only shrinks to `max_px`.
        clip_s: Bounds that no frame may leave, seconds (`Sample.clip_s`).
        folder_fps: Pictures per second of a folder (`ffr.observe.folder.folder_fps`); 3 when unset.
        limits: What the file may cost; with `isolate` it is read in a process that is killed after
            `timeout_s`, one of a few that are kept for further reads.

    Returns:
        One frame per time, in the order of `times_s` (a frame may repeat), numbered from 1. A time
        whose frame can't be decoded has no frame in the result.

    Raises:
        MediaError: If nothing can be shown.
    """
    if limits.isolate:
        return POOL.read(
            path,
            times_s,
            max_px=max_px,
            size_factor_px=size_factor_px,
            clip_s=clip_s,
            folder_fps=folder_fps,
            limits=limits,
        )
    if not path.is_dir() and is_image(path):
        pixels = _limited(read_image(path, limits), max_px, size_factor_px)
        return tuple(
            make_frame(pixels, number=k + 1, source_index=0, timestamp_s=0.0) for k in range(len(times_s))
        )
    if not times_s:
        return ()
    index = index_folder(path, folder_fps or FOLDER_FPS) if path.is_dir() else index_video(path, limits)
    first, last = _bounds(index, clip_s, path)
    times = index.times_s
    wanted = [_nearest(times, t, first, last) for t in times_s]
    if path.is_dir():
        decoded, _ = read_folder(path, wanted, lambda file: read_image(file, limits))
    else:
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
