"""MicroWorld: procedural tabletop videos with exact timelines, the embedded default data set."""

from ffr.data.microworld.questions import Question, answer_value, make_question, question_text
from ffr.data.microworld.render import render_frames
from ffr.data.microworld.world import KINDS, World, sample_world, world_rng
from ffr.data.microworld.write import MicroWorld, iter_worlds, write_clip, write_microworld

__all__ = [
    "KINDS",
    "MicroWorld",
    "Question",
    "World",
    "answer_value",
    "iter_worlds",
    "make_question",
    "question_text",
    "render_frames",
    "sample_world",
    "world_rng",
    "write_clip",
    "write_microworld",
]
