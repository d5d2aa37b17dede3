"""Pictures and clips of a request: as data, or as files under one root; nothing else is opened."""

from __future__ import annotations

import asyncio
import base64
import binascii
import os
import re
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final, TypeVar
from urllib.parse import unquote

from ffr.config import ObserveConfig
from ffr.observe import (
    DecodeLimits,
    MediaError,
    decode_image,
    fit_size,
    load_clip,
    make_frame,
    read_image,
    resize,
)
from ffr.observe.cache import CachedClip
from ffr.serve.app import BadRequest
from ffr.serve.chat_request import ChatRequest, ContentPart, Message
from ffr.types import Frame, ProblemType, Sample

MAX_CLIPS: Final = 8
MAX_PX: Final = 2_560_000
"""Of one frame or picture: what `mm_processor_kwargs.max_pixels` may ask for at most."""
DECODES: Final = 4
_DATA: Final = re.compile(
    r"data:(image|video)/[a-z0-9.+-]{1,40}(?:;[a-z0-9=.+-]{1,60})*;base64,", re.IGNORECASE
)
T = TypeVar("T")


@dataclass(frozen=True)
class MediaRules:
    """What a request may show, and how it is shown to the model.

    Example:
        >>> MediaRules().max_frames
        256
    """

    root: Path | None = None
    """Only files under it are opened; none when unset."""
    observe: ObserveConfig = field(default_factory=ObserveConfig)
    """Frames of a clip where the request names no number, pixel limits, frame cache."""
    max_images: int = 256
    """Pictures of one request."""
    max_frames: int = 256
    """Frames of one clip."""
    images_as_video: bool = False
    """Several pictures of one turn are the frames of one clip, in order."""
    images_fps: float = 1.0
    """Of such a clip, where the request has no `mm_processor_kwargs.fps`."""
    isolate: bool = False
    """Decode each clip in a process that can be killed."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """Pixel limits of one request.

    Example:
        >>> Sizes(max_px=100_352, min_px=12_544, max_image_px=401_408).max_px
        100352
    """

    max_px: int
    min_px: int
    max_image_px: int


class MediaReader:
    """Reads what requests show, in threads, a few clips at a time.

    Args:
        rules: What may be read.

    Example:
        >>> reader = MediaReader(MediaRules(root=Path("data")))
    """

    def __init__(self, rules: MediaRules) -> None:
        self.rules = rules
        self._root = rules.root.resolve() if rules.root is not None else None
        self._places = asyncio.Semaphore(DECODES)
        self._limits = DecodeLimits(timeout_s=60.0, isolate=rules.isolate)

    def check(self, request: ChatRequest) -> None:
        """Refuse too many pictures, frames or pixels before anything is decoded.

        Raises:
            BadRequest: With the limit.
        """
        kinds = [part.type for message in request.messages for part in message.parts]
        unknown = sorted(set(kinds) - {"text", "image_url", "video_url"})
        if unknown:
            words = ", ".join(unknown)[:80]
            raise BadRequest("bad_request", f"content type {words}: send text, image_url or video_url", 400)
        for kind, limit in (("image_url", self.rules.max_images), ("video_url", MAX_CLIPS)):
            if kinds.count(kind) > limit:
                raise BadRequest(
                    "too_many", f"{kinds.count(kind)} {kind} parts, this server takes {limit}", 413
                )
        num = request.number("media_io_kwargs", "num_frames") or 0
        if num > self.rules.max_frames:
            raise BadRequest("too_many", f"{num:.0f} frames, this server takes {self.rules.max_frames}", 413)
        self.sizes(request)

    def sizes(self, request: ChatRequest) -> Sizes:
        """The pixel limits that hold for a request.

        Raises:
            BadRequest: It asks for more than `MAX_PX`, or for a lower limit above the upper one.
        """
        cfg = self.rules.observe
        asked = request.number("mm_processor_kwargs", "max_pixels")
        least = request.number("mm_processor_kwargs", "min_pixels")
        max_px = int(asked or cfg.max_frame_px)
        min_px = int(least) if least else min(cfg.min_frame_px, max_px)
        if max_px > MAX_PX or min_px > max_px or max_px < cfg.size_factor_px**2:
            raise BadRequest(
                "bad_request",
                f"mm_processor_kwargs: pixels from {min_px} to {max_px} can't be had; "
                f"{cfg.size_factor_px**2} to {MAX_PX} are possible",
                400,
            )
        return Sizes(max_px, min_px, int(asked or cfg.max_image_px))

    def path_of(self, url: str) -> Path:
        """The file that a `file://` address names, links resolved.

        Raises:
            BadRequest: 403 for anything outside the root, 404 if there is no such file.
        """
        if self._root is None:
            raise BadRequest("no_files", "this server opens no files: start it with --media-root DIR", 403)
        rest = url[len("file://") :].removeprefix("localhost")
        names = (rest, unquote(rest))  # clients write `file://` before a path, quoted or not
        inside = all(name.startswith("/") and "\0" not in name for name in names)
        reals = [Path(os.path.realpath(name)) for name in names] if inside else []
        if not reals or any(self._root not in real.parents for real in reals):
            raise BadRequest("outside_root", "name a file under the media root by its absolute path", 403)
        found = next((real for real in reals if real.is_file()), None)
        if found is None:
            raise BadRequest("missing", "there is no such file under the media root", 404)
        return found

    def data_of(self, url: str, kind: str) -> bytes | None:
        """The bytes of a data address; None if it is a file's.

        Raises:
            BadRequest: It is neither, or of another kind than `kind` (`image`, `video`), or no base64.
        """
        if url[:5].lower() == "file:":
            return None
        match = _DATA.match(url[:200])
        if match is None or match[1].lower() != kind:
            raise BadRequest(
                "bad_url", f"{kind}_url: send data:{kind}/...;base64,... or file://; nothing is fetched", 400
            )
        try:
            return base64.b64decode(url[match.end() :], validate=True)
        except (binascii.Error, ValueError) as error:
            raise BadRequest("bad_url", f"{kind}_url: the data are no base64", 400) from error

    async def image(self, part: ContentPart, sizes: Sizes, *, as_frame: bool) -> Frame:
        """A picture at the model's size; `as_frame` with the limits of a clip's frames."""
        return await self._aside(lambda: self._image(part, sizes, as_frame=as_frame))

    async def clip(self, part: ContentPart, request: ChatRequest, sizes: Sizes) -> CachedClip:
        """A clip's frames at the model's size.

        Raises:
            BadRequest: It can't be read.
        """
        return await self._aside(lambda: self._clip(part, request, sizes))

    async def frames_of(self, message: Message, request: ChatRequest, sizes: Sizes) -> tuple[Frame, ...]:
        """The pictures of a turn as the frames of one clip.

        Raises:
            BadRequest: A picture can't be read, or they differ in size.
        """
        parts = [part for part in message.parts if part.type == "image_url"]
        fps = request.number("mm_processor_kwargs", "fps") or self.rules.images_fps
        frames = [await self.image(part, sizes, as_frame=True) for part in parts]
        if len({(frame.width_px, frame.height_px) for frame in frames}) > 1:
            raise BadRequest("bad_request", "pictures of different sizes are no frames of one video", 400)
        return tuple(
            replace(frame, number=k + 1, source_index=k, timestamp_s=k / fps)
            for k, frame in enumerate(frames)
        )

    async def _aside(self, read: Callable[[], T]) -> T:
        try:
            async with self._places:
                return await asyncio.to_thread(read)
        except MediaError as error:
            detail = "no such file" if error.status == "missing" else error.detail[:200]
            raise BadRequest(error.status, f"a picture or clip can't be read: {detail}", 400) from error

    def _image(self, part: ContentPart, sizes: Sizes, *, as_frame: bool) -> Frame:
        data = self.data_of(part.link, "image")
        pixels = (
            read_image(self.path_of(part.link), self._limits)
            if data is None
            else decode_image(data, self._limits)
        )
        factor = self.rules.observe.size_factor_px
        max_px = sizes.max_px if as_frame else sizes.max_image_px
        size = fit_size(
            pixels.shape[1], pixels.shape[0], max_px=max_px, min_px=min(sizes.min_px, max_px), factor=factor
        )
        return make_frame(resize(pixels, size), number=1, source_index=0, timestamp_s=0.0)

    def _clip(self, part: ContentPart, request: ChatRequest, sizes: Sizes) -> CachedClip:
        data = self.data_of(part.link, "video")
        num = request.number("media_io_kwargs", "num_frames") or self.rules.observe.num_frames
        cfg = self.rules.observe.model_copy(
            update={
                "num_frames": max(1, int(num)),
                "max_frame_px": sizes.max_px,
                "min_frame_px": sizes.min_px,
                "max_image_px": sizes.max_image_px,
            }
        )
        if data is None:
            return load_clip(_sample(self.path_of(part.link)), cfg, self._limits)
        with tempfile.TemporaryDirectory(prefix="ffr-serve-") as folder:
            path = Path(folder) / "clip.mp4"
            path.write_bytes(data)
            # A file that is seen once needs no place in the cache.
            return load_clip(_sample(path), cfg.model_copy(update={"cache_dir": None}), self._limits)


def _sample(path: Path) -> Sample:
    return Sample("request", "", "", ProblemType.FREE_FORM, path)
