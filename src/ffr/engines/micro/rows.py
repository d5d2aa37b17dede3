"""Demonstrations as token rows: the prompt is rendered by the same templates as in training."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from ffr.data.microworld.questions import LETTERS
from ffr.data.microworld.world import CELLS, COLOURS, DIRECTIONS, NUM_SLOTS, SHAPES
from ffr.engines.micro.stream import Demonstration, demonstrate, describe_slot, slot_frames
from ffr.engines.micro.student import TAG_TOKENS
from ffr.fix.oracle import GUIDANCE, error_type_of
from ffr.observe.prompt import render_patch, render_prompt, user_text
from ffr.types import ErrorType, EvidencePatch, Observation, Option, ProblemType, Sample, SpatialRegion

NUM_VISUAL = 48
_LOOKS = 3
_IGNORED = -100
_FIELDS: dict[str, tuple[str, ...]] = {
    "shape": SHAPES,
    "colour": COLOURS,
    "tile": CELLS,
    "drift": DIRECTIONS,
    "none": ("none",),
    "glow": ("glow",),
    "number": tuple(str(i) for i in range(17)),
    "letter": tuple(LETTERS),
}


@dataclass(frozen=True)
class Row:
    """Token ids of one training row and the targets, -100 where nothing is learned.

    Example:
        >>> Row(ids=(1, 2, 3), targets=(-100, -100, 3)).ids[-1]
        3
    """

    ids: tuple[int, ...]
    targets: tuple[int, ...]


_CORPUS_GUIDANCE = {
    ErrorType.ATTRIBUTE: "Look closely at the object in these frames.",
    ErrorType.COUNTING: "Count again, one frame after another.",
    ErrorType.DYNAMICS: "Follow the motion from frame to frame.",
    ErrorType.TEMPORAL: "Check the order of the events again.",
    ErrorType.SPATIAL: "Compare the positions in these frames.",
    ErrorType.LOGIC: "Check each condition in these frames.",
}
"""Frozen wording for the tokenizer: its words must not move when the oracle's sentences are reworded."""


def oracle_patch(demo: Demonstration, guidance: Mapping[ErrorType, str] = GUIDANCE) -> EvidencePatch:
    """The patch that the oracle teacher gives for this question."""
    kind = error_type_of(demo.world.kind)
    frames = slot_frames(demo.world.key_slot)
    regions = tuple(SpatialRegion(frames=frames, box=box) for box in demo.question.evidence.boxes)
    return EvidencePatch(
        error_types=(kind,), key_frames=(frames,), spatial_regions=regions, guidance=guidance[kind]
    )


def student_text(demo: Demonstration, guidance: Mapping[ErrorType, str] = GUIDANCE) -> str:
    """The user text of a demonstration, patch included when it has one."""
    options = tuple(Option(LETTERS[i], text) for i, text in enumerate(demo.question.options))
    sample = Sample(
        uid="demonstration",
        question=demo.question.text,
        answer=demo.question.answer,
        problem_type=ProblemType.MULTIPLE_CHOICE,
        video=Path("demonstration.mp4"),
        options=options,
    )
    prompt = render_prompt(sample, (), style="brief", state_frames=False)
    obs = Observation(sample_uid=sample.uid, frames=(), prompt=prompt, view_id="", prompt_style="brief")
    if demo.patched:
        obs = replace(obs, patch_text=render_patch(oracle_patch(demo, guidance), obs))
    return user_text(obs)


class RowMaker:
    """Turns demonstrations into rows for one tokenizer.

    Args:
        tokenizer: The student's.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self.tokenizer = tokenizer
        self.video_id = int(tokenizer.convert_tokens_to_ids("<|video_pad|>"))
        self._field_of = {
            self._word(prefix + word): name
            for name, words in _FIELDS.items()
            for word in words
            for prefix in ("", " ")
            if len(self._ids(prefix + word)) == 1
        }

    @staticmethod
    def corpus(seed: int) -> Iterator[str]:
        """Prompts and completions from which the tokenizer learns its words."""
        rng = np.random.default_rng([seed, 2])
        for index in range(3000):
            demo = demonstrate(
                rng, index=index, seed=seed + 1, skill=0.3, patched=index % 2 == 0, shuffle_options=True
            )
            text = f"user\n{student_text(demo, _CORPUS_GUIDANCE)}\nassistant\n{demo.completion}"
            for tag in TAG_TOKENS:
                text = text.replace(tag, "\n")
            yield text

    def _ids(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False).input_ids

    def _word(self, text: str) -> int:
        ids = self._ids(text)
        if len(ids) != 1:
            raise ValueError(f"{text!r} is not one token of the student's tokenizer: {ids}")
        return ids[0]

    def label_words(self) -> list[list[int]]:
        """Token ids of the words of each visual label, in the order of `stream.LABEL_SIZES`."""
        none = self._word(" none")
        return [
            [self._word(f" {slot_frames(slot)[0]}") for slot in range(NUM_SLOTS)],
            [self._word(f" {cell}") for cell in CELLS],
            [none, *(self._word(f" {shape}") for shape in SHAPES)],
            [none, *(self._word(f" {colour}") for colour in COLOURS)],
            [none, *(self._word(f" {direction}") for direction in DIRECTIONS)],
            [none, self._word(" glow")],
        ]

    def prompt_ids(self, text: str) -> list[int]:
        """A user turn with one clip before the text, visual tokens expanded."""
        message = [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": text}]}]
        rendered = self.tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
        ids = self._ids(str(rendered))
        at = ids.index(self.video_id)
        return [*ids[:at], *[self.video_id] * NUM_VISUAL, *ids[at + 1 :]]

    def answering(self, demo: Demonstration) -> Row:
        """The whole task: prompt, look, description, answer; learned on the whole completion."""
        prompt = self.prompt_ids(student_text(demo))
        completion = [*self._ids(demo.completion), self.tokenizer.eos_token_id]
        return Row((*prompt, *completion), (*[_IGNORED] * len(prompt), *completion))

    def describing(self, demo: Demonstration, rng: np.random.Generator) -> Row:
        """Descriptions of random moments of the clip; where to look is given, not learned."""
        ids = [*self.prompt_ids(demo.question.text), *self._ids("<think>")]
        targets = [_IGNORED] * len(ids)
        for turn, slot in enumerate(rng.permutation(NUM_SLOTS)[:_LOOKS].tolist()):
            start, end = slot_frames(slot)
            where = self._ids(f"{' ' if turn else ''}frames {start}-{end}:")
            what = self._ids(f" {describe_slot(demo.world, slot)}")
            ids += [*where, *what]
            targets += [*[_IGNORED] * len(where), *what]
        return Row(tuple(ids), tuple(targets))

    def accuracy_by_field(self, wanted: Tensor, got: Tensor) -> dict[str, float]:
        """Share of right tokens, apart for shapes, colours, tiles, drifts, glows, numbers and letters."""
        hits: dict[str, list[bool]] = {}
        for token, guess in zip(wanted.tolist(), got.tolist(), strict=True):
            hits.setdefault(self._field_of.get(token, "other"), []).append(token == guess)
        return {name: round(sum(found) / len(found), 3) for name, found in sorted(hits.items())}


def collate(rows: Sequence[Row], pad_id: int) -> tuple[Tensor, Tensor, Tensor]:
    """Right-padded ids, targets and attention mask, each (B, S)."""
    length = max(len(row.ids) for row in rows)
    ids = torch.full((len(rows), length), pad_id)
    targets = torch.full((len(rows), length), _IGNORED)
    mask = torch.zeros((len(rows), length), dtype=torch.long)
    for i, row in enumerate(rows):
        ids[i, : len(row.ids)] = torch.tensor(row.ids)
        targets[i, : len(row.targets)] = torch.tensor(row.targets)
        mask[i, : len(row.ids)] = 1
    return ids, targets, mask
