"""The shipped student in this process: greedy and seeded answers that a resume repeats word for word."""

from __future__ import annotations

import asyncio
import shutil

import numpy as np
import pytest
import torch

from ffr.eval.base import EvalDataError
from ffr.eval.clips import ClipLoader, make_observation
from ffr.eval.models import Generation
from ffr.eval.models.checkpoint import find_checkpoint, fingerprint
from ffr.eval.models.hf import HFAnswerer
from ffr.eval.rows import read_rows
from ffr.eval.run import load_questions
from ffr.eval.runner import plain
from ffr.observe import make_frame
from ffr.types import Observation
from tests.eval.fakes import FakeModel, by_view, config, evaluate, world

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def student():
    return HFAnswerer(find_checkpoint("micro-student"))


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return world(tmp_path_factory.mktemp("data"), 10)


@pytest.fixture(scope="module")
def views(root):
    cfg = config(root)
    loader = ClipLoader(cfg.observe, (8,))
    items = load_questions(cfg).items
    clips = [loader.start(item.sample).result().by_num[8] for item in items]
    loader.close()
    return [make_observation(item.sample, clip, cfg.observe) for item, clip in zip(items, clips, strict=True)]


def ask(student, views, **changes):
    generation = Generation(**{"max_tokens": 48, **changes})
    return asyncio.run(student.answer(views, generation))


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_an_answer_depends_on_the_view_and_the_seed_alone(student, views, temperature):
    together = ask(student, views, temperature=temperature)
    assert all(reply.ok and reply.num_tokens > 5 and reply.num_prompt_tokens > 40 for reply in together)
    assert ask(student, views, temperature=temperature) == together
    alone = [ask(student, [view], temperature=temperature)[0] for view in views[:3]]
    turned = ask(student, views[::-1][:7], temperature=temperature)[::-1]
    assert alone == together[:3] and turned == together[3:]
    other = ask(student, views, temperature=temperature, seed=7)
    assert (other == together) == (temperature == 0.0)


def test_a_view_that_cannot_be_shown_hurts_no_other(student, views):
    pixels = np.zeros((30, 30, 3), np.uint8)
    frames = tuple(make_frame(pixels, number=k + 1, source_index=k, timestamp_s=k) for k in range(2))
    odd = Observation("odd", frames, "Which?", "odd")
    first, failed, last = ask(student, [views[0], odd, views[1]])
    assert [first, last] == ask(student, views[:2])
    assert failed.error.startswith("encode: ") and "30x30" in failed.error


def test_a_call_that_fails_is_repeated_without_the_culprit(student, views, monkeypatch):
    student_sampler = student._sampler(Generation(max_tokens=48))
    real = student_sampler.sample
    sizes = []

    async def fragile(observations, *, num, source="policy"):
        sizes.append(len(observations))
        if views[2] in observations:
            raise RuntimeError("the kernel died")
        return await real(observations, num=num, source=source)

    expected = ask(student, views[:4])
    monkeypatch.setattr(student_sampler, "sample", fragile)
    replies = ask(student, views[:4])
    assert replies[2].error == "model: RuntimeError: the kernel died" and sizes == [4, 2, 2, 1, 1]
    assert [replies[k] for k in (0, 1, 3)] == [expected[k] for k in (0, 1, 3)]


@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_a_resumed_run_has_the_rows_of_an_unbroken_one(student, root, tmp_path, temperature):
    cfg = config(root, frames=(4, 8), seeds=(1, 2), temperature=temperature)
    dummy = FakeModel(by_view)
    evaluate(cfg, tmp_path / "whole", dummy, respond=plain(student))
    part = evaluate(cfg, tmp_path / "run", dummy, respond=plain(student), stop_after=9)
    assert part.stopped and part.counters["rows"] < 20 * (2 if temperature else 1)
    path = tmp_path / "run" / "rows.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:2] + lines[3:]))  # a row of a batch is lost
    evaluate(cfg, tmp_path / "run", dummy, respond=plain(student), resume=True)
    whole = {row.key: row for row in read_rows(tmp_path / "whole")}
    assert {row.key: row for row in read_rows(tmp_path / "run")} == whole
    assert not any(row.error for row in whole.values())
    assert max(row.scores["robust"].value for row in whole.values()) == 1.0


def test_what_is_known_of_a_checkpoint(tmp_path):
    packaged = find_checkpoint("micro-student")
    assert packaged.size_factor_px == 28 and len(packaged.template_sha256) == 64
    assert packaged.trained["observe"]["prompt"] == "brief"
    run = tmp_path / "run"
    shutil.copytree(packaged.path, run / "student")
    (run / "config.json").write_text('{"observe": {"num_frames": 12}, "find": {"max_completion_tokens": 64}}')
    found = find_checkpoint(str(run))
    assert found.path == run / "student" == find_checkpoint(str(run / "student")).path
    assert found.weights_sha256 == packaged.weights_sha256
    assert found.trained == {"observe": {"num_frames": 12}, "find": {"max_completion_tokens": 64}}
    weights = run / "student" / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 100_000] = bytes(100_000)
    weights.write_bytes(data)
    assert fingerprint(run / "student") != packaged.weights_sha256
    with pytest.raises(EvalDataError, match=r"no config\.json"):
        find_checkpoint(str(tmp_path))
    with pytest.raises(EvalDataError, match="hf download"):
        find_checkpoint("nobody/no-such-model")
