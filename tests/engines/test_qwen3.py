"""The second student family: Qwen3-VL writes times into the prompt and feeds deep visual features."""

from __future__ import annotations

import asyncio

import pytest
import tiny
import torch

from ffr.config import FindConfig
from ffr.engines.batch import Batcher, row_logprobs
from ffr.engines.encode import EncodeError, Encoder
from ffr.engines.hf import HFSampler
from ffr.engines.packed import completion_logprobs, plan

VIEWS = [
    tiny.view(0, side=64),
    tiny.view(0, patch="look", side=64),
    tiny.view(3, extra=2, num_frames=5, patch="x", side=64),
    tiny.view(4, num_frames=1, side=64),
    tiny.view(5, num_frames=0),
]


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory):
    from transformers import AutoModelForImageTextToText, AutoProcessor

    path = tiny.build_qwen3(tmp_path_factory.mktemp("qwen3") / "student")
    model = AutoModelForImageTextToText.from_pretrained(path, dtype=torch.float32).eval()
    return model, Encoder(AutoProcessor.from_pretrained(path))


def test_times_are_written_into_the_prompt(student) -> None:
    _, encoder = student
    prompt = encoder.encode(VIEWS[0])
    text = encoder.tokenizer.decode(list(prompt.train_ids))
    # pairs of frames half a second apart: means of 0.0 and 0.5, 1.0 and 1.5, 2.0 and 2.5
    assert all(f"<{t} seconds>" in text for t in ("0.2", "1.2", "2.2"))
    assert prompt.mm_types.count(2) == 12
    assert prompt.gen_ids.count(encoder.processor.video_token_id) == 1
    with pytest.raises(EncodeError, match=r"size_factor_px = 32"):
        encoder.encode(tiny.view(0, side=56))


def test_sampling_and_scoring_agree_with_a_plain_forward(student) -> None:
    model, encoder = student
    sampler = HFSampler(model, encoder, find=FindConfig(max_completion_tokens=8))
    rollouts = [r for group in asyncio.run(sampler.sample(VIEWS, num=2)) for r in group]
    prompts, completions = [encoder.encode(r.observation) for r in rollouts], [r.token_ids for r in rollouts]
    assert next(pack.rows for pack in plan(prompts)) == (0, 1, 2, 3)
    batcher = Batcher(model, encoder.pad_id)
    with torch.no_grad():
        packed, _ = completion_logprobs(model, batcher, prompts, completions)
        by_row, _ = row_logprobs(model, batcher, prompts, completions)
    for k, rollout in enumerate(rollouts):
        plain = tiny.plain_logprobs(model, prompts[k], rollout.token_ids)
        for scored in (torch.tensor(rollout.logprobs), packed[k], by_row[k]):
            assert scored[: rollout.num_tokens] == pytest.approx(plain, abs=1e-5)
