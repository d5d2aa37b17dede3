"""MicroWorld timelines: what every object on the table does at every moment.

A clip shows a table of 2 x 3 tiles for 4 seconds, cut into 8 slots of half a second. Up to four
objects (a ball, a cube, a cone, a star) hop between tiles and change colour from slot to slot,
drift a little inside their tile during a slot, come and go, and now and then one of them glows for
one slot. The daylight on the floor rises from slot to slot, so that every tile shows the time.

Axes: objects in the order of `SHAPES` (4), slots (8).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

SHAPES = ("ball", "cube", "cone", "star")
COLOURS = ("red", "green", "blue", "yellow", "purple")
CELLS = ("northwest", "north", "northeast", "southwest", "south", "southeast")
DIRECTIONS = ("left", "right", "up", "down")
KINDS = ("counting", "dynamics", "temporal", "spatial", "attribute", "logic")

NUM_ROWS, NUM_COLUMNS = 2, 3
NUM_SLOTS = 8
FRAMES_PER_SLOT = 6
FPS = 12
NUM_FRAMES = NUM_SLOTS * FRAMES_PER_SLOT

_SPLITS = {"train": 0, "test": 1, "demonstrations": 2}
_CHANGE = 0.6
_PRESENT = 0.75

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class World:
    """One clip's exact timeline; all arrays are (4 objects, 8 slots).

    Example:
        >>> world = sample_world(world_rng("train", seed=0, index=0), "attribute")
        >>> world.present[world.key_object, world.key_slot].item()
        True
    """

    kind: str
    present: Bools
    colour: Ints
    cell: Ints
    direction: Ints
    glow: Bools
    key_object: int
    """The object the question is about (temporal: the one that glows first or last)."""
    key_slot: int
    """The slot in which the answer can be seen."""
    glow_last: bool = False
    """Temporal questions: ask for the last glow instead of the first."""

    def count(self, slot: int) -> int:
        """Number of objects on the table in a slot."""
        return int(self.present[:, slot].sum())


def world_rng(split: str, *, seed: int, index: int) -> np.random.Generator:
    """Returns the generator of one clip; streams of different splits never share a seed.

    Args:
        split: `train`, `test` or `demonstrations` (the cold start's own stream).
        seed: Of the whole data set.
        index: Of the clip inside its split.

    Raises:
        KeyError: For an unknown split.
    """
    return np.random.default_rng([_SPLITS[split], seed, index])


def sample_world(rng: np.random.Generator, kind: str) -> World:
    """Returns a random timeline on which a question of `kind` has exactly one answer."""
    key_slot = int(rng.integers(NUM_SLOTS))
    key_object = int(rng.integers(len(SHAPES)))
    glow = np.zeros((len(SHAPES), NUM_SLOTS), dtype=np.bool_)
    glow_last = bool(rng.random() < 0.5)
    if kind == "temporal":
        key_object, key_slot = _place_glows(rng, glow, glow_last)
    else:
        glow[key_object, key_slot] = True
        if rng.random() < 0.7:
            other = (key_object + 1 + int(rng.integers(len(SHAPES) - 1))) % len(SHAPES)
            glow[other, (key_slot + 1 + int(rng.integers(NUM_SLOTS - 1))) % NUM_SLOTS] = True
    present = rng.random(glow.shape) < _PRESENT
    if kind == "counting":
        _set_present(rng, present, key_object, key_slot, num_missing=int(rng.integers(len(SHAPES))))
    if kind == "logic":
        _set_present(rng, present, key_object, key_slot, num_missing=1)
    present |= glow
    return World(
        kind=kind,
        present=present,
        colour=_walk(rng, len(COLOURS)),
        cell=_cells(rng),
        direction=rng.integers(len(DIRECTIONS), size=glow.shape),
        glow=glow,
        key_object=key_object,
        key_slot=key_slot,
        glow_last=glow_last,
    )


def _place_glows(rng: np.random.Generator, glow: Bools, last: bool) -> tuple[int, int]:
    """Lets two or three objects glow in distinct slots; returns the one asked for and its slot."""
    num = int(rng.integers(2, 4))
    objects = rng.permutation(len(SHAPES))[:num]
    slots = np.sort(rng.permutation(NUM_SLOTS)[:num])
    glow[objects, slots] = True
    pick = -1 if last else 0
    return int(objects[pick]), int(slots[pick])


def _set_present(
    rng: np.random.Generator, present: Bools, key_object: int, slot: int, *, num_missing: int
) -> None:
    """Makes exactly `num_missing` of the other objects absent in `slot`."""
    others = np.array([i for i in range(len(SHAPES)) if i != key_object])
    present[:, slot] = True
    present[rng.permutation(others)[:num_missing], slot] = False


def _walk(rng: np.random.Generator, num_values: int) -> Ints:
    """A piecewise constant series per object: at each slot a new value with probability 0.6."""
    series = rng.integers(num_values, size=(len(SHAPES), NUM_SLOTS))
    change = rng.random(series.shape) < _CHANGE
    for slot in range(1, NUM_SLOTS):
        series[:, slot] = np.where(change[:, slot], series[:, slot], series[:, slot - 1])
    return series


def _cells(rng: np.random.Generator) -> Ints:
    """A tile per object and slot, no two objects on one tile; an object hops with probability 0.6."""
    cells = np.zeros((len(SHAPES), NUM_SLOTS), dtype=np.int64)
    cells[:, 0] = rng.permutation(len(CELLS))[: len(SHAPES)]
    for slot in range(1, NUM_SLOTS):
        cells[:, slot] = cells[:, slot - 1]
        for index in rng.permutation(len(SHAPES)):
            if rng.random() < _CHANGE:
                free = sorted(set(range(len(CELLS))) - set(cells[:, slot].tolist()))
                cells[index, slot] = free[int(rng.integers(len(free)))]
    return cells
