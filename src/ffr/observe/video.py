"""Exact frames of a video file: index the packets, seek to key frames, decode, check the result.

The header's frame count and average rate are not trusted (edit lists, variable frame rates and cut
files make them wrong): one pass over the packets, without decoding, gives the presentation time of
each displayed frame, and a decoded frame counts only if its time is the one that was asked for.
Between a key frame and the frame that is wanted, H.264 pictures that no other one is built from are not
decoded. Where a frame is not found by seeking, the file is decoded once from the start, which the notes say.

Files are hostile input: FFmpeg may open nothing but local files in the listed container formats, and
the limits hold before anything is decoded.
"""

from __future__ import annotations

import bisect
import statistics
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import av.error
import numpy as np
import numpy.typing as npt

from ffr.observe.errors import MediaError

FORMATS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,mpegvideo,flv,ogg,asf,gif"
"""Containers that FFmpeg may open: no playlist format is among them."""

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class DecodeLimits:
    """What a file may cost before it is refused.

    Example:
        >>> DecodeLimits().max_px
        8294400
    """

    max_px: int = 3840 * 2160
    """Area of one frame; larger is `too_big`."""
    max_bytes: int = 4 * 1024**3
    """File size; larger is `too_big`."""
    max_duration_s: float = 4 * 3600.0
    """Displayed length; longer is `too_long`."""
    max_packets: int = 2_000_000
    """Packets of the video stream; more is `too_long`."""
    timeout_s: float = 120.0
    """Wall time of one file in this process, looked at between packets; more is `timeout`."""
    threads: int = 2
    """Threads of the decoder."""
    isolate: bool = False
    """Decode in a process of its own, killed after `timeout_s` (`ffr.observe.worker`); for hostile files."""


DEFAULT_LIMITS = DecodeLimits()


@dataclass(frozen=True, slots=True)
class ClipIndex:
    """When each displayed frame of a file is shown, in presentation order.

    Example:
        >>> ClipIndex(pts=(0, 512), keys=(0,), time_base=Fraction(1, 12800)).times_s
        (0.0, 0.04)
    """

    pts: tuple[int, ...]
    """Presentation time stamps, in units of `time_base` seconds."""
    keys: tuple[int, ...]
    """Those of the key frames: where decoding can start. Empty when only a linear pass is possible."""
    time_base: Fraction
    notes: tuple[str, ...] = ()

    @property
    def times_s(self) -> tuple[float, ...]:
        """Seconds from the first displayed frame."""
        return tuple(float((p - self.pts[0]) * self.time_base) for p in self.pts)

    @property
    def duration_s(self) -> float:
        """Displayed length: the last frame lasts as long as the median frame."""
        if len(self.pts) < 2:
            return 0.0
        steps = [b - a for a, b in zip(self.pts, self.pts[1:], strict=False)]
        return float((self.pts[-1] - self.pts[0] + statistics.median(steps)) * self.time_base)


class _Deadline:
    """Wall-clock limit of one file, asked between packets."""

    def __init__(self, path: Path, seconds: float) -> None:
        self.path, self.seconds, self.end = path, seconds, time.monotonic() + seconds

    def check(self) -> None:
        if time.monotonic() > self.end:
            raise MediaError(
                "timeout", self.path, f"decoding took more than {self.seconds:g} s; skip the clip"
            )


def check_file(path: Path, limits: DecodeLimits) -> None:
    """Refuse what is not a readable local file within the size limit.

    Raises:
        MediaError: `missing`, `empty` or `too_big`.
    """
    try:
        is_file, size = path.is_file(), path.stat().st_size if path.is_file() else 0
    except (OSError, ValueError) as error:
        raise MediaError("missing", path, f"not a readable path ({error})") from error
    if not is_file:
        raise MediaError("missing", path, "no such file; check the media root and the row's path")
    if size == 0:
        raise MediaError("empty", path, "the file has 0 bytes; fetch it again")
    if size > limits.max_bytes:
        raise MediaError("too_big", path, f"{size} bytes, limit {limits.max_bytes}; cut or re-encode it")


def open_video(path: Path, limits: DecodeLimits) -> tuple[Any, Any]:
    """Open a local file with the whitelists and return (container, first video stream).

    The absolute path behind `file:` can't be read as another protocol (`concat:`, `http:`).

    Raises:
        MediaError: `missing`, `empty`, `too_big`, `undecodable`.
    """
    check_file(path, limits)
    options = {"protocol_whitelist": "file", "format_whitelist": FORMATS}
    try:
        container: Any = av.open(
            f"file:{path.absolute()}",
            options={"max_pixels": str(limits.max_px)},
            container_options=options,
            metadata_errors="replace",
        )
    except (av.error.FFmpegError, ValueError, OSError) as error:
        raise MediaError("undecodable", path, f"FFmpeg can't open it as video ({error})") from error
    if not container.streams.video:
        container.close()
        raise MediaError("undecodable", path, "the file has no video stream")
    stream: Any = container.streams.video[0]
    if stream.codec_context is None:
        container.close()
        raise MediaError("undecodable", path, "this FFmpeg has no decoder for the video stream")
    if stream.width * stream.height > limits.max_px:
        container.close()
        raise MediaError(
            "too_big",
            path,
            f"{stream.width}x{stream.height} px, limit {limits.max_px} px; re-encode it smaller",
        )
    stream.thread_type = "AUTO"
    stream.codec_context.thread_count = limits.threads
    stream.codec_context.options = {"max_pixels": str(limits.max_px)}
    return container, stream


def index_video(path: Path, limits: DecodeLimits = DEFAULT_LIMITS) -> ClipIndex:
    """Presentation times of all displayed frames of a file, without decoding it.

    Args:
        path: A local video file.
        limits: What the file may cost.

    Returns:
        The index; `notes` has `truncated` when the file ends early, `linear` when the container has
        no usable time stamps and the frames had to be counted by decoding.

    Raises:
        MediaError: If there is no frame to show or a limit is passed.
    """
    deadline = _Deadline(path, limits.timeout_s)
    container, stream = open_video(path, limits)
    with container:
        pts, keys, num_packets, num_bare, notes = _scan(container, stream, path, limits, deadline)
        # Only the mp4 family counts packets in its header; others count time slots.
        header_frames = stream.frames if "mp4" in container.format.name else 0
        time_base = stream.time_base
    if num_packets == 0:
        raise MediaError("empty", path, "the video stream has no packets")
    if header_frames and num_packets < header_frames:
        notes.append("truncated")
    if num_bare or not pts or not keys:
        pts, keys, notes = _count_linear(path, limits, deadline), [], [*notes, "linear"]
    index = ClipIndex(
        pts=tuple(sorted(set(pts))),
        keys=tuple(sorted(set(keys))),
        time_base=time_base,
        notes=tuple(dict.fromkeys(notes)),
    )
    if not index.pts:
        raise MediaError("undecodable", path, "no frame could be decoded")
    if index.duration_s > limits.max_duration_s:
        raise MediaError(
            "too_long", path, f"{index.duration_s:.0f} s, limit {limits.max_duration_s:.0f} s; cut the clip"
        )
    return index


def _scan(
    container: Any, stream: Any, path: Path, limits: DecodeLimits, deadline: _Deadline
) -> tuple[list[int], list[int], int, int, list[str]]:
    """One pass over the packets: displayed times, key times, packets, packets without a time, notes."""
    pts: list[int] = []
    keys: list[int] = []
    num_packets = num_bare = 0
    notes: list[str] = []
    try:
        for packet in container.demux(stream):
            if not packet.size:
                continue
            num_packets += 1
            if num_packets % 256 == 0:
                deadline.check()
            if num_packets > limits.max_packets:
                raise MediaError("too_long", path, f"more than {limits.max_packets} packets; cut the clip")
            if packet.pts is None:
                num_bare += 1
                continue
            if packet.is_keyframe:
                keys.append(packet.pts)
            if not packet.is_discard:
                pts.append(packet.pts)
    except av.error.FFmpegError:
        notes.append("truncated")
    return pts, keys, num_packets, num_bare, notes


def _packets_decoded(container: Any, stream: Any, deadline: _Deadline) -> Iterator[Any]:
    """Frames of a linear pass; a packet that can't be decoded loses its own frame only.

    The loss is not silent: the caller finds the frame missing and says so in its notes.
    """
    packets = container.demux(stream)
    while True:
        deadline.check()
        try:
            packet = next(packets)
        except (StopIteration, av.error.FFmpegError):
            return
        try:
            frames = packet.decode()
        except av.error.FFmpegError:
            frames = []
        yield from frames


def _count_linear(path: Path, limits: DecodeLimits, deadline: _Deadline) -> list[int]:
    container, stream = open_video(path, limits)
    with container:
        return [f.pts for f in _packets_decoded(container, stream, deadline) if f.pts is not None]


def _to_rgb(frame: Any) -> Pixels:
    """RGB pixels in display orientation, shape (height, width, 3)."""
    pixels = frame.to_ndarray(format="rgb24")
    turns = round(frame.rotation / 90) % 4 if frame.rotation else 0
    return np.ascontiguousarray(np.rot90(pixels, turns)) if turns else pixels


def decode_frames(
    path: Path, index: ClipIndex, wanted: Iterable[int], limits: DecodeLimits = DEFAULT_LIMITS
) -> tuple[dict[int, Pixels], tuple[str, ...]]:
    """Exactly the wanted displayed frames of a file.

    Args:
        path: The file that `index` was made from.
        index: Its packet index.
        wanted: Positions in `index.pts` (0-based displayed frames).
        limits: What the file may cost.

    Returns:
        RGB pixels by position, and notes: `fallback` if seeking gave other frames than asked and the
        file was decoded from the start, `partial:<k>` if k frames can't be decoded at all (they are
        absent from the result, never replaced), `corrupt:<k>` if k frames were damaged and concealed.

    Raises:
        MediaError: If no wanted frame can be decoded, or a limit is passed.
    """
    deadline = _Deadline(path, limits.timeout_s)
    positions = sorted(set(wanted))
    by_pts = {index.pts[i]: i for i in positions}
    notes: list[str] = []
    damaged: set[int] = set()
    got: dict[int, Pixels] = {}
    if index.keys:
        got = _decode_seeking(path, index, sorted(by_pts), limits, deadline, damaged)
    if len(got) < len(by_pts):
        if index.keys:
            notes.append("fallback")
        got = _decode_linear(path, set(by_pts), limits, deadline, damaged)
    missing = len(by_pts) - len(got)
    if not got:
        raise MediaError("undecodable", path, f"none of {len(by_pts)} frames could be decoded")
    if missing:
        notes.append(f"partial:{missing}")
    if damaged:
        notes.append(f"corrupt:{len(damaged)}")
    return {by_pts[p]: pixels for p, pixels in got.items()}, tuple(notes)


def _decode_seeking(
    path: Path,
    index: ClipIndex,
    targets: Sequence[int],
    limits: DecodeLimits,
    deadline: _Deadline,
    damaged: set[int],
) -> dict[int, Pixels]:
    """Frames found by seeking; stops at the first one whose time is not the one asked for."""
    for thrifty in (True, False):
        container, stream = open_video(path, limits)
        with container:
            # The only decoder here that knows exactly which pictures no other one is built from.
            thrifty = thrifty and stream.codec_context.name == "h264"
            reader = _Reader(container, stream, frozenset(targets) if thrifty else None, deadline)
            got = _seek_each(reader, index, targets, damaged)
        if not thrifty or (len(got) == len(targets) and not damaged):
            return got
        damaged.clear()  # how a damaged picture is concealed may depend on all pictures before it
    raise AssertionError("unreachable: the second pass is not thrifty")


@dataclass(frozen=True, slots=True)
class _Reader:
    """Frames of an open file from some key frame on."""

    container: Any
    stream: Any
    needed: frozenset[int] | None
    """Times of the pictures that are wanted; others are decoded only if some picture is built from them.
    None decodes all."""
    deadline: _Deadline

    def frames_from(self, key: int) -> Iterator[Any]:
        """Frames in display order; none when thrift could cost one of them a field."""
        self.container.seek(key, stream=self.stream, backward=True)
        if self.needed is None:
            yield from self.container.decode(self.stream)
            return
        decoder = self.stream.codec_context
        for packet in self.container.demux(self.stream):
            self.deadline.check()
            unwanted = packet.pts is not None and packet.pts not in self.needed
            decoder.skip_frame = "NONREF" if unwanted else "DEFAULT"
            for frame in packet.decode():
                if frame.interlaced_frame:
                    return  # its second field may have come as a packet with a time of its own
                yield frame


def _seek_each(
    reader: _Reader, index: ClipIndex, targets: Sequence[int], damaged: set[int]
) -> dict[int, Pixels]:
    got: dict[int, Pixels] = {}
    frames: Iterator[Any] | None = None
    cursor, last_key = index.pts[0], None
    try:
        for target in targets:
            key = index.keys[max(0, bisect.bisect_right(index.keys, target) - 1)]
            if frames is None or (key != last_key and key > cursor):
                frames, last_key = reader.frames_from(key), key
            frame = None
            for frame in frames:
                reader.deadline.check()
                cursor = cursor if frame.pts is None else frame.pts
                if cursor >= target:
                    break
            if frame is None or frame.pts != target:
                return got
            if frame.is_corrupt:
                damaged.add(target)
            got[target] = _to_rgb(frame)
    except av.error.FFmpegError:
        return got
    return got


def _decode_linear(
    path: Path, targets: set[int], limits: DecodeLimits, deadline: _Deadline, damaged: set[int]
) -> dict[int, Pixels]:
    got: dict[int, Pixels] = {}
    damaged.clear()
    container, stream = open_video(path, limits)
    with container:
        for frame in _packets_decoded(container, stream, deadline):
            if frame.pts in targets and frame.pts not in got:
                got[frame.pts] = _to_rgb(frame)
                if frame.is_corrupt:
                    damaged.add(frame.pts)
                if len(got) == len(targets):
                    break
    return got
