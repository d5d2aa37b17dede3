from __future__ import annotations

import pytest
import tiny
import torch

from ffr.engines.batch import Batcher, row_logprobs
from ffr.engines.encode import EncodedPrompt, Encoder
from ffr.engines.packed import can_pack, completion_logprobs, lay_out, packed_logprobs, plan

VIEWS = [
    tiny.view(0),
    tiny.view(0, patch="look at frames 1-3"),
    tiny.view(0, extra=2, patch="again"),
    tiny.view(0, extra=2, patch="again, and frame 5"),
    tiny.view(1),
    tiny.view(2, num_frames=1),
    tiny.view(3, num_frames=0),
    tiny.view(0),
    tiny.view(3, num_frames=0),
]


def _rows(encoder: Encoder):
    rng = torch.Generator().manual_seed(0)
    prompts = [encoder.encode(view) for view in VIEWS]
    completions = [
        tuple(torch.randint(7, 260, (3 + k % 4,), generator=rng).tolist()) for k in range(len(prompts))
    ]
    return prompts, completions


def test_rows_of_one_clip_share_a_sequence(encoder: Encoder) -> None:
    prompts, _ = _rows(encoder)
    packs = plan(prompts)
    assert [pack.rows for pack in packs] == [(0, 1, 2, 3, 7), (4,), (5,), (6, 8)]
    assert [pack.num_shared_media for pack in packs] == [1, 0, 0, 0]
    shared = packs[0].prefix
    assert len({prompt.train_ids[:shared] for prompt in prompts[:4]}) == 1
    assert shared > prompts[0].mm_types.index(2) + 12 and packs[1].prefix == 0
    assert packs[3].prefix == prompts[6].num_tokens - 1


def test_equal_tokens_of_different_images_are_not_shared(encoder: Encoder) -> None:
    from dataclasses import replace

    one = tiny.view(0, extra=1, patch="again")
    other = replace(one, extra_frames=tiny.view(9, num_frames=1).frames, view_id="other")
    prompts = [encoder.encode(one), encoder.encode(other)]
    assert prompts[0].train_ids == prompts[1].train_ids
    [pack] = plan(prompts)
    assert pack.prefix <= prompts[0].mm_types.index(1) and pack.num_shared_media == 1


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_packed_equals_one_sequence_per_row(model, encoder: Encoder, temperature: float) -> None:
    tiny.require_shared_media(model)
    prompts, completions = _rows(encoder)
    batcher = Batcher(model, encoder.pad_id)
    assert can_pack(model, batcher)
    out = []
    for score in (row_logprobs, completion_logprobs):
        model.zero_grad()
        logprobs, mask = score(model, batcher, prompts, completions, temperature=temperature)
        (logprobs * torch.arange(1, len(prompts) + 1)[:, None]).sum().backward()
        grads = {name: p.grad.clone() for name, p in model.named_parameters()}
        out.append((logprobs.detach(), mask, grads))
    assert torch.equal(out[0][1], out[1][1])
    assert out[1][0] == pytest.approx(out[0][0], abs=1e-5)
    for name, grad in out[0][2].items():
        scale = float(grad.abs().max())
        assert out[1][2][name] == pytest.approx(grad, abs=1e-5 * max(1.0, scale)), name


def test_fused_head_on_packs(model, encoder: Encoder) -> None:
    from trl.trainer.utils import add_fused_lm_head

    prompts, completions = _rows(encoder)
    batcher = Batcher(model, encoder.pad_id)
    with torch.no_grad():
        plain, _ = completion_logprobs(model, batcher, prompts, completions, temperature=0.7)
        add_fused_lm_head(model, temperature=0.7)
        fused, _ = completion_logprobs(model, batcher, prompts, completions, fused=True)
    assert fused == pytest.approx(plain, abs=1e-5)


def test_branches_do_not_see_each_other(model, encoder: Encoder) -> None:
    prompts, completions = _rows(encoder)
    batcher = Batcher(model, encoder.pad_id)
    packs = plan(prompts)
    with torch.no_grad():
        before, _ = packed_logprobs(model, batcher, packs, prompts, completions, temperature=1.0, fused=False)
        changed = [completions[0], (9,) * len(completions[1]), *completions[2:]]
        after, _ = packed_logprobs(model, batcher, packs, prompts, changed, temperature=1.0, fused=False)
    others = [k for k in range(len(prompts)) if k != 1]
    assert after[others] == pytest.approx(before[others], abs=1e-6)
    assert float((after[1] - before[1]).abs().max()) > 1e-3


def test_prefix_is_read_once(model, encoder: Encoder) -> None:
    prompt = encoder.encode(tiny.view(0))
    prompts, completions = [prompt] * 8, [(9, 10, 11)] * 8
    packed = lay_out(plan(prompts), prompts, completions, Batcher(model, encoder.pad_id), "cpu")
    assert packed.input_ids.shape == (1, prompt.num_tokens - 1 + 8 * 4)
    assert len(packed.media) == 1


def test_other_attention_is_scored_row_by_row(model, encoder: Encoder) -> None:
    model.config.get_text_config()._attn_implementation = "eager"
    assert not can_pack(model, Batcher(model, encoder.pad_id))


def test_one_token_prompts_stand_alone() -> None:
    blank = EncodedPrompt("", "s", (0,), (), (0,))
    assert [pack.rows for pack in plan([blank, blank])] == [(0,), (1,)]
