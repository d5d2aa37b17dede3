"""Indices, sizes, hashes: golden tables and properties."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ffr.observe import fit_size, make_frame, pixel_hash, resize, uniform_indices

GOLDEN = json.loads((Path(__file__).parent / "golden" / "selection.json").read_text())


@pytest.mark.parametrize("row", GOLDEN["indices"], ids=lambda r: f"{r['total']}-{r['n']}")
def test_golden_indices(row):
    assert list(uniform_indices(row["total"], row["n"])) == row["expected"]


@pytest.mark.parametrize("row", GOLDEN["sizes"], ids=lambda r: f"{r['width']}x{r['height']}")
def test_golden_sizes(row):
    got = fit_size(row["width"], row["height"], max_px=row["max_px"], min_px=row["min_px"], factor=28)
    assert list(got) == row["expected"]


@given(total=st.integers(1, 100_000), n=st.integers(1, 200))
def test_indices_cover_the_clip_evenly(total, n):
    indices = uniform_indices(total, n)
    assert len(indices) == min(total, n)
    assert indices[0] == 0
    assert n == 1 or indices[-1] == total - 1
    steps = np.diff(indices)
    assert (steps >= 1).all()
    assert len(steps) == 0 or steps.max() - steps.min() <= 1
    if n <= total:
        assert list(indices) == np.linspace(0, total - 1, n).round().astype(int).tolist()


@pytest.mark.parametrize(("total", "n"), [(0, 4), (4, 0), (-1, 2)])
def test_indices_refuse_nothing(total, n):
    with pytest.raises(ValueError, match="total >= 1 and n >= 1"):
        uniform_indices(total, n)


@given(
    width=st.integers(1, 4000),
    height=st.integers(1, 4000),
    factor=st.sampled_from([14, 28, 32]),
    max_tiles=st.integers(1, 600),
    min_tiles=st.integers(0, 100),
)
def test_sizes_keep_the_limits(width, height, factor, max_tiles, min_tiles):
    max_px, min_px = max_tiles * factor**2, min_tiles * factor**2
    w, h = fit_size(width, height, max_px=max_px, min_px=min_px, factor=factor)
    assert w % factor == 0 and h % factor == 0 and w > 0 and h > 0
    assert w * h <= max_px
    if width * height <= max_px and width * height >= min_px and width > factor and height > factor:
        # Nothing forces a change: each side moves by at most one tile.
        assert abs(w - width) <= factor and abs(h - height) <= factor


def test_size_refuses_less_than_one_tile():
    with pytest.raises(ValueError, match="28x28 tile"):
        fit_size(100, 100, max_px=700, factor=28)
    with pytest.raises(ValueError, match="at least 1 px"):
        fit_size(0, 100, max_px=7000, factor=28)


def test_resize_keeps_uniform_colour_and_returns_equal_sizes_untouched():
    pixels = np.full((30, 40, 3), 77, np.uint8)
    assert resize(pixels, (40, 30)) is pixels
    out = resize(pixels, (84, 56))
    assert out.shape == (56, 84, 3) and (out == 77).all()


def test_hash_names_shape_and_bytes():
    a = np.zeros((2, 4, 3), np.uint8)
    assert pixel_hash(a) != pixel_hash(a.reshape(4, 2, 3))
    b = a.copy()
    assert pixel_hash(a) == pixel_hash(b)
    b[1, 2, 0] = 1
    assert pixel_hash(a) != pixel_hash(b)


def test_frame_pixels_are_read_only():
    frame = make_frame(np.zeros((2, 4, 3), np.uint8), number=1, source_index=0, timestamp_s=0.0)
    assert (frame.width_px, frame.height_px) == (4, 2)
    with pytest.raises(ValueError, match="read-only"):
        frame.pixels[0, 0, 0] = 1
