"""Frames as a server takes them: pictures or one video, always as data, never as a path or an address."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from fractions import Fraction
from typing import Any, Literal

import av
import numpy as np
from PIL import Image

from ffr.observe.prompt import user_text
from ffr.types import Frame, Observation

Media = Literal["video", "frames"]
ImageFormat = Literal["png", "jpeg"]
JPEG_QUALITY = 95
VIDEO_OPTIONS = {"crf": "4", "preset": "veryfast", "threads": "1", "bf": "0"}
"""Near-lossless H.264 with 4:2:0 colour, which every decoder of a server reads."""


def messages(obs: Observation, media: Media, image_format: ImageFormat = "png") -> list[dict[str, Any]]:
    """The chat messages of one observation: clip or pictures, then the text, then frames shown again.

    Raises:
        ValueError: If a frame has no pixels.
    """
    content: list[dict[str, Any]] = []
    if media == "video" and len(obs.frames) > 1:
        content.append({"type": "video_url", "video_url": {"url": video_uri(obs.frames)}})
    else:
        content += [_picture(frame, image_format) for frame in obs.frames]
    content.append({"type": "text", "text": user_text(obs)})
    content += [_picture(frame, image_format) for frame in obs.extra_frames]
    system = [{"role": "system", "content": obs.system}] if obs.system else []
    return [*system, {"role": "user", "content": content}]


def video_uri(frames: Sequence[Frame]) -> str:
    """The frames as `data:video/mp4;base64,...`, one second of the file for each second of the clip.

    Frames lie at equal steps: their mean distance. A server that reads the file's frame rate knows their
    times as the student does.
    """
    span = frames[-1].timestamp_s - frames[0].timestamp_s
    rate = Fraction((len(frames) - 1) / span if span > 0 else 1.0).limit_denominator(1000)
    rate = max(rate, Fraction(1, 1000))
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream: Any = container.add_stream("libx264", rate=rate)
        stream.width, stream.height = frames[0].width_px, frames[0].height_px
        stream.pix_fmt = "yuv420p"
        stream.time_base = 1 / rate
        stream.options = dict(VIDEO_OPTIONS)
        for number, frame in enumerate(frames):
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(_pixels(frame)), format="rgb24")
            picture.pts, picture.time_base = number, 1 / rate
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
    return "data:video/mp4;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def image_uri(pixels: np.ndarray[Any, Any], image_format: ImageFormat = "png") -> str:
    """RGB pixels as a data URI; PNG loses nothing."""
    buffer = io.BytesIO()
    picture = Image.fromarray(np.ascontiguousarray(pixels))
    if image_format == "png":
        picture.save(buffer, format="PNG", compress_level=1)
    else:
        picture.save(buffer, format="JPEG", quality=JPEG_QUALITY, subsampling=0)
    return f"data:image/{image_format};base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _picture(frame: Frame, image_format: ImageFormat) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": image_uri(_pixels(frame), image_format)}}


def _pixels(frame: Frame) -> np.ndarray[Any, Any]:
    if frame.pixels is None:
        raise ValueError(f"frame {frame.number} has no pixels (read back from a trace?); observe again")
    return frame.pixels
