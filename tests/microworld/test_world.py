"""MicroWorld's timelines: every question has exactly one answer, seen where the evidence says."""

from __future__ import annotations

import json

import numpy as np
import pytest

from ffr.config import ObserveConfig
from ffr.data import read_video_r1
from ffr.data.microworld import KINDS, iter_worlds, render_frames, sample_world, world_rng, write_microworld
from ffr.data.microworld.questions import LETTERS, answer_value, cell_box, make_question
from ffr.data.microworld.world import CELLS, FPS, FRAMES_PER_SLOT, NUM_FRAMES, SHAPES
from ffr.fix.oracle import span_to_range
from ffr.observe import observe


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    root = tmp_path_factory.mktemp("world")
    return write_microworld(root, num_train=12, num_test=6, seed=3)


@pytest.mark.parametrize("kind", KINDS)
def test_the_key_slot_answers_the_question(kind):
    for index in range(200):
        rng = world_rng("train", seed=9, index=index)
        world = sample_world(rng, kind)
        question = make_question(world, rng)
        gold = question.options[LETTERS.index(question.answer)]
        assert answer_value(world, world.key_slot) == gold
        assert len(set(question.options)) == 4
        assert world.present[world.key_object, world.key_slot]
        assert world.glow[world.key_object, world.key_slot]


def test_only_one_slot_shows_the_key_object_glowing():
    for index in range(300):
        world = sample_world(world_rng("train", seed=4, index=index), KINDS[index % 6])
        assert world.glow[world.key_object].sum() == 1
        assert (world.glow <= world.present).all()


def test_temporal_questions_ask_for_the_extreme_glow():
    for index in range(200):
        world = sample_world(world_rng("train", seed=5, index=index), "temporal")
        slots = np.flatnonzero(world.glow.any(axis=0))
        assert world.key_slot == (slots[-1] if world.glow_last else slots[0])
        assert (world.glow.sum(axis=0)[slots] == 1).all()


def test_objects_never_share_a_tile():
    for index in range(100):
        world = sample_world(world_rng("train", seed=6, index=index), "spatial")
        assert all(len(set(world.cell[:, slot].tolist())) == len(SHAPES) for slot in range(8))


def test_looking_elsewhere_often_gives_another_answer():
    """The demonstrator's careless looks must cost accuracy, or there would be nothing to repair."""
    right = total = 0
    for index in range(600):
        rng = world_rng("train", seed=7, index=index)
        world = sample_world(rng, KINDS[index % 6])
        gold = answer_value(world, world.key_slot)
        for slot in range(8):
            if slot != world.key_slot:
                total += 1
                right += answer_value(world, slot) == gold
    assert right / total < 0.4


def test_splits_never_share_a_stream():
    streams = [
        tuple(world_rng(split, seed=seed, index=index).integers(1 << 62, size=4).tolist())
        for split in ("train", "test", "demonstrations")
        for seed in range(3)
        for index in range(100)
    ]
    assert len(set(streams)) == len(streams)


def test_worlds_are_deterministic_and_kinds_take_turns():
    first, again = list(iter_worlds("test", 12, seed=1)), list(iter_worlds("test", 12, seed=1))
    assert [q for _, q in first] == [q for _, q in again]
    assert [w.kind for w, _ in first] == [*KINDS, *KINDS]


def test_evidence_boxes_never_are_the_answer():
    """A box on the table is a place: for questions of place it would be the answer itself."""
    for world, question in iter_worlds("train", 60, seed=2):
        if world.kind in ("spatial", "counting", "logic"):
            assert question.evidence.boxes == ()
        else:
            assert question.evidence.boxes == (cell_box(int(world.cell[world.key_object, world.key_slot])),)


def test_clips_come_back_through_the_reader_and_the_decoder(written):
    result = read_video_r1(written.train, written.root, name="microworld")
    assert len(result.samples) == 12
    assert not result.skipped
    cfg = ObserveConfig(max_frame_px=4704, min_frame_px=784, prompt="brief")
    for (world, question), sample in zip(iter_worlds("train", 12, seed=3), result.samples, strict=True):
        obs = observe(sample, cfg)
        assert [f.width_px for f in obs.frames] == [84] * 16
        assert sample.answer == question.answer
        assert sample.scenario == world.kind
        assert question.text in obs.prompt
        start, end = span_to_range(sample.evidence.spans_s[0], obs.frames)
        assert (start, end) == (2 * world.key_slot + 1, 2 * world.key_slot + 2)


def test_decoded_pixels_are_the_drawn_ones(written):
    sample = read_video_r1(written.train, written.root, name="microworld").samples[0]
    obs = observe(sample, ObserveConfig(max_frame_px=168 * 112, min_frame_px=784, size_factor_px=28))
    world, _ = next(iter(iter_worlds("train", 1, seed=3)))
    drawn = render_frames(world, [frame.source_index for frame in obs.frames])
    decoded = np.stack([frame.pixels for frame in obs.frames])
    assert decoded.shape == drawn.shape
    assert np.abs(decoded.astype(int) - drawn.astype(int)).mean() < 4.0


def test_a_second_call_keeps_the_clips(written):
    clip = written.root / "clips" / "train" / "00003.mp4"
    before = clip.stat().st_mtime_ns
    write_microworld(written.root, num_train=12, num_test=6, seed=3)
    assert clip.stat().st_mtime_ns == before
    write_microworld(written.root, num_train=12, num_test=6, seed=3)
    rows = json.loads(written.train.read_text())
    assert rows[0]["path"] == "./clips/train/00000.mp4"


def test_another_seed_rewrites_the_clips(tmp_path):
    write_microworld(tmp_path, num_train=1, num_test=0, seed=0)
    one = (tmp_path / "clips/train/00000.mp4").read_bytes()
    write_microworld(tmp_path, num_train=1, num_test=0, seed=1)
    assert (tmp_path / "clips/train/00000.mp4").read_bytes() != one


def test_geometry_constants_agree():
    assert NUM_FRAMES == 8 * FRAMES_PER_SLOT
    assert NUM_FRAMES / FPS == 4.0
    assert cell_box(CELLS.index("southeast")) == (0.6667, 0.5, 1.0, 1.0)
