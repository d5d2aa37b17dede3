"""The cold start: its demonstrations, its pixels, and the shipped checkpoint's promises."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest
import torch

import ffr
from ffr.data.microworld import render_frames
from ffr.data.microworld.questions import LETTERS
from ffr.engines.encode import Encoder
from ffr.engines.micro.evaluate import demo_settings, held_out, load_student, measure, summarize
from ffr.engines.micro.recipe import PHASES, ColdStart, Recipe, run
from ffr.engines.micro.rows import RowMaker, oracle_patch, student_text
from ffr.engines.micro.stream import demonstrate, student_pixels, visual_labels
from ffr.engines.micro.student import StudentSize, build_processor, build_tokenizer
from ffr.find import verify
from ffr.fix import check_leak
from ffr.observe import observe, uniform_indices
from ffr.types import Frame, Observation, Option, ProblemType, Sample

STUDENT = Path(ffr.__file__).parent / "assets" / "micro-student"


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer(RowMaker.corpus(0))


def as_sample(demo) -> Sample:
    options = tuple(Option(LETTERS[i], text) for i, text in enumerate(demo.question.options))
    return Sample(
        uid="demo",
        question=demo.question.text,
        answer=demo.question.answer,
        problem_type=ProblemType.MULTIPLE_CHOICE,
        video=Path("demo.mp4"),
        options=options,
    )


def test_a_skilled_or_patched_demonstrator_is_always_right():
    rng = np.random.default_rng(0)
    for index in range(240):
        demo = demonstrate(rng, index=index, seed=0, skill=float(index % 2), patched=index % 2 == 0)
        verdict = verify(as_sample(demo), demo.completion)
        assert verdict.correct, demo.completion
        assert verdict.format_score == 1.0


def test_a_careless_demonstrator_is_often_wrong_but_never_lies():
    rng = np.random.default_rng(1)
    demos = [demonstrate(rng, index=i, seed=0, skill=0.0, patched=False) for i in range(600)]
    right = sum(verify(as_sample(d), d.completion).correct for d in demos) / len(demos)
    assert 0.2 < right < 0.55
    for demo in demos:
        count = int(demo.world.present[:, demo.slot].sum())
        assert f"total {count}." in demo.completion


def test_the_oracles_patches_pass_the_leak_gate():
    rng = np.random.default_rng(2)
    for index in range(60):
        demo = demonstrate(rng, index=index, seed=0, skill=1.0, patched=True)
        report = check_leak(oracle_patch(demo), as_sample(demo))
        assert not report.leaked, (demo.question.text, report.reasons)


def test_the_patch_is_in_the_prompt_as_training_shows_it():
    rng = np.random.default_rng(3)
    demo = demonstrate(rng, index=4, seed=0, skill=1.0, patched=True)
    text = student_text(demo)
    start = 2 * demo.slot + 1
    assert f"Look again at frames {start}-{start + 1}." in text
    assert demo.question.text in text


def test_streamed_pixels_are_what_the_processor_makes(tokenizer):
    rng = np.random.default_rng(4)
    demo = demonstrate(rng, index=0, seed=0, skill=1.0, patched=False)
    indices = uniform_indices(48, 16)
    drawn = render_frames(demo.world, indices, tile_px=28)
    frames = tuple(
        Frame(i + 1, indices[i], indices[i] / 12, f"sha{i}", 84, 56, pixels=drawn[i]) for i in range(16)
    )
    obs = Observation(sample_uid="x", frames=frames, prompt="q", view_id="v", prompt_style="brief")
    encoded = Encoder(build_processor(tokenizer, StudentSize())).encode(obs)
    ours = torch.from_numpy(student_pixels(demo.world, rng, noise=0.0))
    torch.testing.assert_close(encoded.features["pixel_values_videos"], ours, rtol=1e-5, atol=1e-5)


def test_visual_labels_name_every_object_once_per_slot():
    rng = np.random.default_rng(5)
    for index in range(30):
        demo = demonstrate(rng, index=index, seed=0, skill=1.0, patched=False)
        labels = visual_labels(demo.world).reshape(8, 6, 6)
        for slot in range(8):
            shown = sorted(label for label in labels[slot, :, 2].tolist() if label)
            assert shown == [i + 1 for i in range(4) if demo.world.present[i, slot]]


def test_rows_supervise_the_completion_alone(tokenizer):
    rng = np.random.default_rng(6)
    maker = RowMaker(tokenizer)
    demo = demonstrate(rng, index=1, seed=0, skill=1.0, patched=True)
    row = maker.answering(demo)
    learned = [token for token in row.targets if token != -100]
    assert tokenizer.decode(learned, skip_special_tokens=False) == demo.completion + "<|im_end|>"
    described = maker.describing(demo, rng)
    words = tokenizer.decode([t for t in described.targets if t != -100])
    assert "frames" not in words
    assert words.count("total") == 3


def test_the_recipe_runs_each_phase_and_goes_on_where_it_stopped(tmp_path):
    recipe = Recipe(vision_steps=2, describe_steps=1, answer_steps=1, habit_steps=1, batch_size=2)
    run(recipe, tmp_path / "a", tmp_path / "log.jsonl", tmp_path / "work")
    assert {p.name for p in (tmp_path / "work").iterdir()} == {f"{phase}.pt" for phase in PHASES}
    (tmp_path / "work" / "habit.pt").unlink()
    run(recipe, tmp_path / "b", None, tmp_path / "work")
    first = (tmp_path / "a" / "model.safetensors").read_bytes()
    assert first == (tmp_path / "b" / "model.safetensors").read_bytes()


def test_the_loss_is_the_sft_algorithms():
    start = ColdStart(Recipe())
    logits = torch.tensor([[2.0, 0.0], [0.0, 0.0]])
    wanted = torch.tensor([0, 1])
    expected = (np.log1p(np.exp(-2.0)) + np.log(2.0)) / 2
    assert start.loss(logits, wanted).item() == pytest.approx(expected, abs=1e-6)


def test_checkpoint_is_small_and_ordinary():
    weights = STUDENT / "model.safetensors"
    assert weights.stat().st_size < 12_000_000
    assert not list(STUDENT.glob("*.bin"))
    assert (STUDENT / "tokenizer.json").exists()
    assert list(STUDENT.glob("*processor*.json"))


def test_checkpoint_keeps_its_promises(tmp_path):
    """Neither hopeless nor done, well-formed, and a truthful patch helps more than a second try."""
    cfg = demo_settings()
    samples = held_out(tmp_path, 240, seed=77)
    summary = summarize(asyncio.run(measure(samples, load_student(STUDENT, cfg, seed=5), cfg)))
    assert summary["num_questions"] == 240
    assert 0.35 <= summary["first_pass_accuracy"] <= 0.65
    assert summary["format_rate"] >= 0.9
    assert summary["num_patched"] == summary["num_failed"]
    assert summary["patched_accuracy_on_failed"] >= summary["reroll_accuracy_on_failed"] + 0.15


def test_frames_matter_to_the_student(tmp_path):
    """Shown another clip's frames, the student does worse: it reads the video, not the question."""
    cfg = demo_settings()
    samples = held_out(tmp_path, 96, seed=78)
    sampler = load_student(STUDENT, cfg, seed=6)
    observations = [observe(sample, cfg.observe) for sample in samples]
    swapped = [
        Observation(
            sample_uid=obs.sample_uid,
            frames=observations[(i + 7) % len(observations)].frames,
            prompt=obs.prompt,
            view_id=f"swapped{i}",
            prompt_style=obs.prompt_style,
        )
        for i, obs in enumerate(observations)
    ]

    def accuracy(views) -> float:
        groups = asyncio.run(sampler.sample(views, num=2))
        hits = [verify(s, r.text).correct for s, group in zip(samples, groups, strict=True) for r in group]
        return sum(hits) / len(hits)

    assert accuracy(observations) > accuracy(swapped) + 0.05
