"""Draws MicroWorld timelines: tiles from an atlas, so that a frame is six table look-ups."""

from __future__ import annotations

from functools import cache

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from ffr.data.microworld.world import (
    CELLS,
    COLOURS,
    DIRECTIONS,
    FRAMES_PER_SLOT,
    NUM_COLUMNS,
    NUM_FRAMES,
    NUM_ROWS,
    NUM_SLOTS,
    SHAPES,
    World,
)

Pixels = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]

TILE_PX = 56
"""Side of a tile in the written clip; a frame is 168 x 112."""

_RGB: dict[str, tuple[int, int, int]] = {
    "red": (225, 40, 40),
    "green": (40, 190, 60),
    "blue": (50, 80, 235),
    "yellow": (240, 215, 40),
    "purple": (165, 60, 200),
}
_TINTS = ((22, 0, -14), (-14, 16, 0), (0, -14, 24), (-18, -6, 20), (18, 12, -22), (4, -22, -4))
_STEP = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
_TRAVEL_PX = 10
_SUPERSAMPLE = 4


def floor_rgb(slot: int, cell: int) -> tuple[int, int, int]:
    """Colour of a bare tile: the daylight of the slot plus the tile's own tint."""
    light = 44 + 17 * slot
    red, green, blue = (max(0, min(255, light + tint)) for tint in _TINTS[cell])
    return red, green, blue


def _shape_points(shape: str, x: float, y: float, r: float) -> list[tuple[float, float]]:
    if shape == "cone":
        return [(x, y - r), (x + r, y + r), (x - r, y + r)]
    angles = np.arange(10) * np.pi / 5 - np.pi / 2
    radii = np.where(np.arange(10) % 2 == 0, 1.15 * r, 0.5 * r)
    return [(x + q * float(np.cos(a)), y + q * float(np.sin(a))) for a, q in zip(angles, radii, strict=True)]


def _sprite(shape: str, colour: str, direction: str, phase: int, glow: bool, tile_px: int) -> Floats:
    """RGBA in 0..1, shape (tile_px, tile_px, 4): one object in its tile at one phase of a slot."""
    scale = _SUPERSAMPLE * tile_px / TILE_PX
    side = _SUPERSAMPLE * tile_px
    image = Image.new("RGBA", (side, side), (0, 0, 0, 0))
    draw = ImageDraw.Draw(image)
    along = _TRAVEL_PX * (2 * phase / (FRAMES_PER_SLOT - 1) - 1)
    dx, dy = _STEP[direction]
    x, y = (TILE_PX / 2 + along * dx) * scale, (TILE_PX / 2 + along * dy) * scale
    r = 11 * scale
    if glow:
        halo = 1.62 * r
        draw.ellipse((x - halo, y - halo, x + halo, y + halo), fill=(255, 255, 255, 255))
    fill = (*_RGB[colour], 255)
    outline = (15, 15, 15, 255)
    width = round(1.6 * scale)
    if shape == "ball":
        draw.ellipse((x - r, y - r, x + r, y + r), fill=fill, outline=outline, width=width)
    elif shape == "cube":
        s = 0.95 * r
        draw.rectangle((x - s, y - s, x + s, y + s), fill=fill, outline=outline, width=width)
    else:
        draw.polygon(_shape_points(shape, x, y, r), fill=fill, outline=outline, width=width)
    small = image.resize((tile_px, tile_px), Image.Resampling.BOX)
    return np.asarray(small, dtype=np.float32) / 255.0


@cache
def sprite_atlas(tile_px: int) -> Floats:
    """All sprites: (shape, colour, direction, phase, glow, tile_px, tile_px, RGBA), premultiplied."""
    atlas = np.stack(
        [
            _sprite(shape, colour, direction, phase, glow, tile_px)
            for shape in SHAPES
            for colour in COLOURS
            for direction in DIRECTIONS
            for phase in range(FRAMES_PER_SLOT)
            for glow in (False, True)
        ]
    )
    atlas[..., :3] *= atlas[..., 3:]
    sizes = (len(SHAPES), len(COLOURS), len(DIRECTIONS), FRAMES_PER_SLOT, 2, tile_px, tile_px, 4)
    return atlas.reshape(sizes)


@cache
def _floors(tile_px: int) -> Floats:
    colours = [[floor_rgb(slot, cell) for cell in range(len(CELLS))] for slot in range(NUM_SLOTS)]
    flat = np.asarray(colours, dtype=np.float32)[:, :, None, None, :] / 255.0
    tiles = np.broadcast_to(flat, (NUM_SLOTS, len(CELLS), tile_px, tile_px, 3)).copy()
    tiles[:, :, 0, :] *= 0.8  # a thin joint between tiles: a table people recognise as one
    tiles[:, :, :, 0] *= 0.8
    return tiles


def render_frames(world: World, frames: npt.ArrayLike | None = None, *, tile_px: int = TILE_PX) -> Pixels:
    """Returns RGB frames of a timeline, shape (F, 2 * tile_px, 3 * tile_px, 3).

    Args:
        world: The timeline.
        frames: Source frame indices in 0..47; all 48 when None.
        tile_px: Side of a tile; 56 in the written clips.
    """
    wanted = np.arange(NUM_FRAMES) if frames is None else np.asarray(frames, dtype=np.int64)
    slots, phases = np.divmod(wanted, FRAMES_PER_SLOT)
    tiles = _floors(tile_px)[slots].copy()
    atlas = sprite_atlas(tile_px)
    for index in range(len(SHAPES)):
        shown = np.flatnonzero(world.present[index, slots])
        at = slots[shown]
        sprites = atlas[
            index,
            world.colour[index, at],
            world.direction[index, at],
            phases[shown],
            world.glow[index, at].astype(np.int64),
        ]
        cells = world.cell[index, at]
        tiles[shown, cells] = tiles[shown, cells] * (1 - sprites[..., 3:]) + sprites[..., :3]
    grid = tiles.reshape(len(wanted), NUM_ROWS, NUM_COLUMNS, tile_px, tile_px, 3)
    image = grid.transpose(0, 1, 3, 2, 4, 5).reshape(
        len(wanted), NUM_ROWS * tile_px, NUM_COLUMNS * tile_px, 3
    )
    return np.clip(image * 255.0 + 0.5, 0, 255).astype(np.uint8)
