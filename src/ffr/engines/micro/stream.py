"""The cold start's demonstrations: an endless stream of timelines, looks and answers.

A demonstrator looks at one pair of frames, says what is on the table there, what follows from it,
and answers accordingly (at random where nothing follows, or no option says it).
Where it looks is a policy: with probability `skill` at the place that answers the question, else at
a random one. What it reports is always what is there. Shown a patch, it looks where the patch
points. Axes: B batch, S tokens, V visual tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from ffr.data.microworld.questions import LETTERS, Question, answer_value, make_question
from ffr.data.microworld.render import render_frames
from ffr.data.microworld.world import (
    CELLS,
    COLOURS,
    DIRECTIONS,
    KINDS,
    NUM_FRAMES,
    NUM_SLOTS,
    SHAPES,
    World,
    sample_world,
    world_rng,
)
from ffr.observe import uniform_indices

NUM_STUDENT_FRAMES = 16
UNSURE = "unsure"
_PATCH_PX = 14
_TILE_PX = 28
_MEAN = np.array([0.48145466, 0.4578275, 0.40821073], dtype=np.float32)
_STD = np.array([0.26862954, 0.26130258, 0.27577711], dtype=np.float32)


@dataclass(frozen=True)
class Demonstration:
    """One row of the stream.

    Example:
        >>> demo = demonstrate(np.random.default_rng(0), index=0, seed=0, skill=1.0, patched=False)
        >>> demo.completion.startswith("<think>frames ")
        True
    """

    world: World
    question: Question
    slot: int
    """Where the demonstrator looked."""
    patched: bool
    completion: str


def describe_slot(world: World, slot: int) -> str:
    """What is on the table in a slot, objects in a fixed order, then how many there are."""
    parts: list[str] = []
    for i, shape in enumerate(SHAPES):
        if not world.present[i, slot]:
            parts.append(f"{shape} none.")
            continue
        glow = " glow" if world.glow[i, slot] else ""
        colour, cell = COLOURS[int(world.colour[i, slot])], CELLS[int(world.cell[i, slot])]
        parts.append(f"{shape} {colour} {cell} {DIRECTIONS[int(world.direction[i, slot])]}{glow}.")
    return " ".join([*parts, f"total {world.count(slot)}."])


def slot_frames(slot: int) -> tuple[int, int]:
    """Student's frame numbers (1-based) that show a slot."""
    per_slot = NUM_STUDENT_FRAMES // NUM_SLOTS
    return slot * per_slot + 1, (slot + 1) * per_slot


def demonstrate(
    rng: np.random.Generator,
    *,
    index: int,
    seed: int,
    skill: float,
    patched: bool,
    shuffle_options: bool = False,
) -> Demonstration:
    """Returns demonstration `index` of the stream.

    Args:
        rng: Of the demonstrator's own choices; the timeline comes from (seed, index).
        index: Position in the stream.
        seed: Of the stream.
        skill: Probability of looking at the right place without a patch.
        patched: Whether a truthful patch is in view.
        shuffle_options: See `make_question`.
    """
    world_seed = world_rng("demonstrations", seed=seed, index=index)
    world = sample_world(world_seed, KINDS[index % len(KINDS)])
    question = make_question(world, world_seed, shuffle_options=shuffle_options)
    slot = world.key_slot
    if not patched and rng.random() >= skill:
        slot = int(rng.integers(NUM_SLOTS))
    value = answer_value(world, slot) or UNSURE
    letter = LETTERS[int(rng.integers(len(LETTERS)))]
    if value in question.options:
        letter = LETTERS[question.options.index(value)]
    start, end = slot_frames(slot)
    thought = f"frames {start}-{end}: {describe_slot(world, slot)} so {value}."
    text = f"<think>{thought}</think><answer>{letter}</answer>"
    return Demonstration(world=world, question=question, slot=slot, patched=patched, completion=text)


def student_pixels(world: World, rng: np.random.Generator, *, noise: float = 2.0) -> npt.NDArray[np.float32]:
    """Normalised video patches of one clip, (192, 1176), in the order of Qwen's video processor.

    A little noise stands for what the codec does.
    """
    frames = render_frames(world, uniform_indices(NUM_FRAMES, NUM_STUDENT_FRAMES), tile_px=_TILE_PX)
    noisy = frames.astype(np.float32) + rng.normal(0.0, noise, frames.shape).astype(np.float32)
    scaled = (np.clip(noisy, 0, 255) / 255.0 - _MEAN) / _STD
    num, height, width = frames.shape[:3]
    grid_h, grid_w = height // _PATCH_PX, width // _PATCH_PX
    split = scaled.reshape(num // 2, 2, grid_h // 2, 2, _PATCH_PX, grid_w // 2, 2, _PATCH_PX, 3)
    ordered = split.transpose(0, 2, 5, 3, 6, 8, 1, 4, 7)
    return np.ascontiguousarray(ordered).reshape(num // 2 * grid_h * grid_w, -1)


def visual_labels(world: World) -> npt.NDArray[np.int64]:
    """What each visual token shows: (48, 6) of slot, tile, shape, colour, direction, glow; 0 is "none"."""
    labels = np.zeros((NUM_SLOTS, len(CELLS), 6), dtype=np.int64)
    labels[:, :, 0] = np.arange(NUM_SLOTS)[:, None]
    labels[:, :, 1] = np.arange(len(CELLS))[None, :]
    for i in range(len(SHAPES)):
        slots = np.flatnonzero(world.present[i])
        cells = world.cell[i, slots]
        labels[slots, cells, 2] = i + 1
        labels[slots, cells, 3] = world.colour[i, slots] + 1
        labels[slots, cells, 4] = world.direction[i, slots] + 1
        labels[slots, cells, 5] = world.glow[i, slots]
    return labels.reshape(-1, 6)


LABEL_SIZES = (NUM_SLOTS, len(CELLS), len(SHAPES) + 1, len(COLOURS) + 1, len(DIRECTIONS) + 1, 2)


def visual_batch(demos: list[Demonstration], rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Pixels (B * 192, 1176) and labels (B * 48, 6) of a batch."""
    pixels = np.concatenate([student_pixels(demo.world, rng) for demo in demos])
    labels = np.concatenate([visual_labels(demo.world) for demo in demos])
    return torch.from_numpy(pixels), torch.from_numpy(labels)
