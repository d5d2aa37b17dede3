"""MicroWorld questions: one of six kinds per clip, four options, and where the answer can be seen."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ffr.data.microworld.world import (
    CELLS,
    COLOURS,
    DIRECTIONS,
    FPS,
    FRAMES_PER_SLOT,
    NUM_COLUMNS,
    NUM_ROWS,
    SHAPES,
    World,
)
from ffr.types import Box, Evidence

LETTERS = "ABCD"


@dataclass(frozen=True)
class Question:
    """A question about one timeline.

    Example:
        >>> from ffr.data.microworld.world import sample_world, world_rng
        >>> rng = world_rng("train", seed=0, index=0)
        >>> len(make_question(sample_world(rng, "logic"), rng).options)
        4
    """

    text: str
    options: tuple[str, ...]
    answer: str
    """The letter of the right option."""
    evidence: Evidence


def question_text(world: World) -> str:
    """The question without its options."""
    shape = SHAPES[world.key_object]
    return {
        "counting": f"How many objects are on the table when the {shape} glows?",
        "dynamics": f"Which way does the {shape} drift when it glows?",
        "temporal": f"Which object glows {'last' if world.glow_last else 'first'}?",
        "spatial": f"Where is the {shape} when it glows?",
        "attribute": f"What colour is the {shape} when it glows?",
        "logic": f"Which object is missing when the {shape} glows?",
    }[world.kind]


def answer_value(world: World, slot: int) -> str | None:
    """What an observer of `slot` alone would answer; None if that slot cannot tell.

    At `world.key_slot` this is the right answer; elsewhere it is what a careless look yields.
    """
    key = world.key_object
    if world.kind == "counting":
        return str(max(1, world.count(slot)))
    if world.kind == "temporal":
        glowing = np.flatnonzero(world.glow[:, slot])
        return SHAPES[int(glowing[0])] if len(glowing) else None
    if world.kind == "logic":
        missing = np.flatnonzero(~world.present[:, slot])
        return SHAPES[int(missing[0])] if len(missing) else None
    if not world.present[key, slot]:
        return None
    if world.kind == "dynamics":
        return DIRECTIONS[int(world.direction[key, slot])]
    if world.kind == "spatial":
        return CELLS[int(world.cell[key, slot])]
    return COLOURS[int(world.colour[key, slot])]


_PLACES: dict[str, tuple[tuple[str, ...], ...]] = {
    "counting": (("1",), ("2",), ("3",), ("4",)),
    "dynamics": tuple((word,) for word in DIRECTIONS),
    "temporal": tuple((word,) for word in SHAPES),
    "spatial": (("northwest", "north"), ("northeast",), ("southwest", "south"), ("southeast",)),
    "attribute": (("red",), ("green", "blue"), ("yellow",), ("purple",)),
    "logic": tuple((word,) for word in SHAPES),
}
"""Which values may stand at A, B, C and D when options are not shuffled."""


def make_question(world: World, rng: np.random.Generator, *, shuffle_options: bool = False) -> Question:
    """Returns the timeline's question with four options, one of them right.

    Args:
        world: The timeline.
        rng: Chooses the wrong options.
        shuffle_options: Options in random order. By default a value always has the same letter: the
            tiny student is to find evidence, and reading a list is a skill of its own.
    """
    gold = answer_value(world, world.key_slot)
    assert gold is not None, "the generator makes the key slot answer the question"
    places = _PLACES[world.kind]
    if shuffle_options:
        wrong = [value for place in places for value in place if value != gold]
        chosen = [gold, *(wrong[i] for i in rng.permutation(len(wrong))[: len(LETTERS) - 1])]
        options = tuple(chosen[i] for i in rng.permutation(len(chosen)))
    else:
        options = tuple(gold if gold in place else place[int(rng.integers(len(place)))] for place in places)
    return Question(
        text=question_text(world),
        options=options,
        answer=LETTERS[options.index(gold)],
        evidence=make_evidence(world),
    )


def cell_box(cell: int) -> Box:
    """The tile's box as fractions of the frame."""
    row, column = divmod(cell, NUM_COLUMNS)
    return (
        round(column / NUM_COLUMNS, 4),
        round(row / NUM_ROWS, 4),
        round((column + 1) / NUM_COLUMNS, 4),
        round((row + 1) / NUM_ROWS, 4),
    )


def make_evidence(world: World) -> Evidence:
    """The key slot's span, and the key object's tile where the tile is not itself the answer."""
    start = world.key_slot * FRAMES_PER_SLOT
    span = (round(start / FPS, 4), round((start + FRAMES_PER_SLOT - 1) / FPS, 4))
    pointable = world.kind in ("attribute", "dynamics", "temporal")
    boxes = (cell_box(int(world.cell[world.key_object, world.key_slot])),) if pointable else ()
    return Evidence(spans_s=(span,), boxes=boxes, note="")
