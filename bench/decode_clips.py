"""Long H.264 clips with content that costs a decoder what a camera's does; made once and kept."""

from __future__ import annotations

import os
from pathlib import Path

import av
import numpy as np

RATE, GOP = 25, 250
PRESET, CRF = "veryfast", "23"


def ready(folder: Path, seconds: int, size: tuple[int, int]) -> Path:
    """The clip of this length, encoded at its first use.

    Args:
        folder: where clips are kept between runs.
        seconds: length.
        size: width and height, px.
    """
    width, height = size
    path = folder / f"pan_{width}x{height}_{seconds}s_g{GOP}_{PRESET}_crf{CRF}.mp4"
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part.mp4")
        write(part, seconds * RATE, size)
        os.replace(part, path)
    return path


def write(path: Path, num_frames: int, size: tuple[int, int]) -> None:
    """A camera that wanders over a textured plane, with sensor noise and a thing that moves."""
    width, height = size
    rng = np.random.default_rng(0)
    plane, noise = texture(rng, width * 2, height * 2), grain(rng, width, height)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=RATE)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.options = {"preset": PRESET, "crf": CRF, "g": str(GOP), "sc_threshold": "0"}
        for k in range(num_frames):
            yuv = picture(k, plane, noise, width, height)
            for packet in stream.encode(av.VideoFrame.from_ndarray(yuv, format="yuv420p")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)


def texture(rng: np.random.Generator, width: int, height: int) -> np.ndarray:
    """Luma with detail at every scale, shape (height, width)."""
    out = np.zeros((height, width), np.float32)
    for scale, weight in ((128, 60.0), (32, 30.0), (8, 14.0), (2, 6.0)):
        coarse = rng.standard_normal((height // scale + 2, width // scale + 2)).astype(np.float32)
        out += weight * np.kron(coarse, np.ones((scale, scale), np.float32))[:height, :width]
    return np.clip(128 + out, 20, 232).astype(np.uint8)


def grain(rng: np.random.Generator, width: int, height: int) -> np.ndarray:
    """Eight pictures of sensor noise, shape (8, height, width)."""
    return rng.integers(0, 5, (8, height, width), dtype=np.uint8)


def picture(k: int, plane: np.ndarray, noise: np.ndarray, width: int, height: int) -> np.ndarray:
    """Planes of frame k, shape (1.5 height, width)."""
    out = np.empty((height * 3 // 2, width), np.uint8)
    x = round(width / 2 * (1 + np.sin(k / 97.0)))
    y = round(height / 2 * (1 + np.cos(k / 131.0)))
    np.add(plane[y : y + height, x : x + width], noise[k % 8], out=out[:height])
    side = height // 6
    at = (k * 7) % (width - side)
    out[height // 3 : height // 3 + side, at : at + side] = 40 + k % 160
    out[height:] = 128 + round(20 * np.sin(k / 50.0))
    return out
