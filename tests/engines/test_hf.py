from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
import tiny
import torch

from ffr.config import FindConfig
from ffr.engines.batch import Batcher
from ffr.engines.encode import Encoder
from ffr.engines.hf import HFSampler, sample_tokens
from ffr.engines.packed import completion_logprobs

FIND = FindConfig(max_completion_tokens=12)
VIEWS = [
    tiny.view(0),
    tiny.view(0, patch="look at frames 1-3"),
    tiny.view(3, num_frames=5, extra=2, patch="again"),
    tiny.view(4, num_frames=1),
    tiny.view(5, num_frames=0),
]


def _sample(model, encoder, views, *, num=3, find=FIND, seed=0, greedy=False, max_rows=64):
    sampler = HFSampler(model, encoder, find=find, seed=seed, greedy=greedy, max_rows=max_rows)
    return asyncio.run(sampler.sample(views, num=num))


def _full_logprobs(model, encoder: Encoder, rollout, temperature=1.0):
    return tiny.plain_logprobs(model, encoder.encode(rollout.observation), rollout.token_ids, temperature)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_stored_logprobs_equal_a_plain_forward_per_row(model, encoder: Encoder, temperature: float) -> None:
    find = FindConfig(max_completion_tokens=12, temperature=temperature)
    for group in _sample(model, encoder, VIEWS, find=find):
        for rollout in group:
            expected = _full_logprobs(model, encoder, rollout, temperature)
            assert torch.tensor(rollout.logprobs) == pytest.approx(expected, abs=1e-5)


def test_batched_scoring_equals_a_plain_forward_per_row(model, encoder: Encoder) -> None:
    rollouts = [r for group in _sample(model, encoder, VIEWS, num=2) for r in group]
    rollouts[1] = replace(rollouts[1], token_ids=rollouts[1].token_ids[:4])
    prompts = [encoder.encode(r.observation) for r in rollouts]
    with torch.no_grad():
        logprobs, mask = completion_logprobs(
            model, Batcher(model, encoder.pad_id), prompts, [r.token_ids for r in rollouts]
        )
    for row, rollout in enumerate(rollouts):
        assert int(mask[row].sum()) == rollout.num_tokens
        expected = _full_logprobs(model, encoder, rollout)
        assert logprobs[row, : rollout.num_tokens] == pytest.approx(expected, abs=1e-5)
        assert float(logprobs[row, rollout.num_tokens :].abs().sum()) == 0.0


def test_vision_tower_runs_once_for_a_group(model, encoder: Encoder) -> None:
    tiny.require_shared_media(model)
    patches: list[int] = []
    hook = model.model.visual.register_forward_hook(lambda _m, args, _out: patches.append(args[0].shape[0]))
    _sample(model, encoder, [VIEWS[0], VIEWS[1]], num=4)
    hook.remove()
    assert patches == [48]  # one clip of 3 x 4 x 4 patches for two views and eight rollouts


def test_greedy_equals_generate(model, encoder: Encoder, processor) -> None:
    sampler = HFSampler(model, encoder, find=FIND, greedy=True)
    for obs in VIEWS:
        prompt = encoder.encode(obs)
        ids = torch.tensor([prompt.train_ids])
        out = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            mm_token_type_ids=torch.tensor([prompt.mm_types]),
            do_sample=False,
            max_new_tokens=FIND.max_completion_tokens,
            suppress_tokens=sampler._banned.nonzero()[:, 0].tolist(),
            **prompt.features,
        )
        [[rollout]] = asyncio.run(sampler.sample([obs], num=1))
        assert list(rollout.token_ids) == out[0, ids.shape[1] :].tolist()


def test_sampling_depends_on_the_seed_and_not_on_the_batch(model, encoder: Encoder) -> None:
    together = _sample(model, encoder, VIEWS[:3])
    alone = [_sample(model, encoder, [obs])[0] for obs in VIEWS[:3]]
    split = _sample(model, encoder, VIEWS[:3], max_rows=3)
    tokens = [[r.token_ids for r in group] for group in together]
    assert tokens == [[r.token_ids for r in group] for group in alone]
    assert tokens == [[r.token_ids for r in group] for group in split]
    assert len({ids for group in tokens for ids in group}) == 9
    other = _sample(model, encoder, VIEWS[:3], seed=1)
    assert tokens != [[r.token_ids for r in group] for group in other]


def test_equal_views_in_one_step_get_different_rollouts(model, encoder: Encoder) -> None:
    first, second = _sample(model, encoder, [VIEWS[1], VIEWS[1]], num=1)
    assert first[0].token_ids != second[0].token_ids


def test_visual_and_padding_tokens_are_never_sampled(model, encoder: Encoder, processor) -> None:
    banned = {"<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>", "<|endoftext|>"}
    ids = {processor.tokenizer.convert_tokens_to_ids(token) for token in banned}
    with torch.no_grad():
        model.lm_head.weight[sorted(ids)] *= 30  # would win about every other draw
    rollouts = [r for group in _sample(model, encoder, VIEWS[:2], num=8) for r in group]
    assert not ids & {token for r in rollouts for token in r.token_ids}


def test_stop_token_ends_a_rollout(model, encoder: Encoder, processor) -> None:
    end = processor.tokenizer.eos_token_id
    with torch.no_grad():
        model.lm_head.weight[end] *= 4
    rollouts = [r for group in _sample(model, encoder, VIEWS, num=8) for r in group]
    stopped = [r for r in rollouts if r.finish == "stop"]
    assert stopped and len(stopped) < len(rollouts)
    for r in rollouts:
        assert (r.token_ids[-1] == end) == (r.finish == "stop")
        assert end not in r.token_ids[:-1]
        assert "<|im_end|>" not in r.text and len(r.logprobs or ()) == r.num_tokens
        assert torch.tensor(r.logprobs) == pytest.approx(_full_logprobs(model, encoder, r), abs=1e-5)


def test_training_mode_is_restored(model, encoder: Encoder) -> None:
    model.train()
    _sample(model, encoder, VIEWS[:1])
    assert model.training


def test_sample_tokens_inverts_the_nucleus() -> None:
    probs = torch.tensor([0.5, 0.3, 0.15, 0.05])
    banned = torch.zeros(4, dtype=torch.bool)
    logits = probs.log().expand(5, 4)
    uniform = torch.tensor([0.0, 0.5, 0.55, 0.9, 0.9999])
    # nucleus of 0.9: {0, 1, 2} with mass 0.95; thresholds at 0.5 / 0.95 = 0.526 and 0.8 / 0.95 = 0.842
    tokens, logprobs = sample_tokens(logits, uniform, temperature=1.0, top_p=0.9, banned_V=banned)
    assert tokens.tolist() == [0, 0, 1, 2, 2]
    assert logprobs == pytest.approx(probs.log()[tokens], abs=1e-6)
    banned[0] = True
    tokens, logprobs = sample_tokens(logits, uniform, temperature=1.0, top_p=1.0, banned_V=banned)
    assert tokens.tolist() == [1, 1, 1, 2, 3]  # 0.6, 0.3, 0.1 of what is left
    assert logprobs == pytest.approx(probs.log()[tokens], abs=1e-6)  # of the policy, ban not included


def test_sample_tokens_follows_the_distribution() -> None:
    probs = torch.tensor([0.6, 0.25, 0.1, 0.05])
    uniform = torch.arange(2000) / 2000
    tokens, _ = sample_tokens(
        probs.log().expand(2000, 4), uniform, temperature=1.0, top_p=1.0,
        banned_V=torch.zeros(4, dtype=torch.bool),
    )  # fmt: skip
    assert torch.bincount(tokens, minlength=4) / 2000 == pytest.approx(probs, abs=1e-3)
