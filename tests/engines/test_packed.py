from __future__ import annotations

import re

import pytest
import tiny
import torch

from ffr.engines.batch import Batcher, row_logprobs
from ffr.engines.encode import EncodedPrompt, Encoder
from ffr.engines.packed import (
    completion_logprobs,
    lay_out,
    packed_logprobs,
    plan,
    warn_unshared,
    why_not_shared,
)

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
    prompts, completions = _rows(encoder)
    batcher = Batcher(model, encoder.pad_id)
    assert why_not_shared(model) == ""
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


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"_attn_implementation": "eager"}, r"model.attention = 'eager'"),
        ({"layer_types": ["sliding_attention", "full_attention"]}, r"attend by sliding_attention"),
        ({"attention_dropout": 0.1}, r"attention_dropout = 0.1"),
    ],
)
def test_what_cannot_share_is_scored_row_by_row_and_says_why(
    model, encoder: Encoder, change: dict, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    prompts, completions = _rows(encoder)
    batcher = Batcher(model, encoder.pad_id)
    expected, _ = completion_logprobs(model, batcher, prompts, completions, shared=False)
    for name, value in change.items():
        setattr(model.config.get_text_config(), name, value)
    model.eval()
    warn_unshared.cache_clear()
    if "layer_types" in change:
        model.model.language_model.has_sliding_layers = True
        model.config.get_text_config().sliding_window = 4096
    lengths: list[int] = []
    model.model.language_model.register_forward_pre_hook(
        lambda _m, _args, kwargs: lengths.append(len(kwargs["inputs_embeds"])), with_kwargs=True
    )
    for _ in range(2):
        logprobs, _ = completion_logprobs(model, batcher, prompts, completions)
        assert logprobs.detach() == pytest.approx(expected.detach(), abs=1e-5)
    assert lengths == [len(prompts)] * 2
    [record] = caplog.records
    assert record.levelname == "WARNING" and "Qwen2_5_VLForConditionalGeneration" in record.message
    assert re.search(reason, record.message)


def test_the_switch_scores_row_by_row(model, encoder: Encoder) -> None:
    prompts, completions = _rows(encoder)
    widths: list[tuple[int, ...]] = []
    model.model.language_model.register_forward_pre_hook(
        lambda _m, _args, kwargs: widths.append(kwargs["inputs_embeds"].shape[:2]), with_kwargs=True
    )
    batcher = Batcher(model, encoder.pad_id)
    out = [
        completion_logprobs(model, batcher, prompts, completions, shared=shared)[0].detach()
        for shared in (True, False)
    ]
    assert widths[0][0] == 1 and widths[1][0] == len(prompts)
    assert widths[0][1] < widths[1][0] * widths[1][1] / 2
    assert out[0] == pytest.approx(out[1], abs=1e-5)


def test_one_token_prompts_stand_alone() -> None:
    blank = EncodedPrompt("", "s", (0,), (), (0,))
    assert [pack.rows for pack in plan([blank, blank])] == [(0,), (1,)]


def test_packs_without_shared_features_are_right_too(model, encoder: Encoder) -> None:
    """Releases whose forward takes pixels only: a pack shows its clip once, so the pixels go in once."""
    prompts, completions = _rows(encoder)
    batcher = Batcher(model, encoder.pad_id)
    expected, _ = completion_logprobs(model, batcher, prompts, completions, shared=False)
    batcher.shares_media = False
    seen: list[int] = []
    model.model.visual.register_forward_hook(lambda _m, args, _o: seen.append(len(args[0])))
    logprobs, _ = completion_logprobs(model, batcher, prompts, completions)
    assert logprobs.detach() == pytest.approx(expected.detach(), abs=1e-5)
    # frames of 4 x 4 patches: clips of 6 frames (two questions), images of 1 frame twice
    assert sum(seen) == 2 * 3 * 16 + (2 + 2 + 1) * 16


def test_a_frozen_tower_runs_once_for_all_passes(model, encoder: Encoder) -> None:
    prompts, completions = _rows(encoder)
    batcher = Batcher(model, encoder.pad_id)
    tiny.require_shared_media(model)
    expected, _ = completion_logprobs(model, batcher, prompts, completions)
    runs: list[int] = []
    model.model.visual.register_forward_hook(lambda _m, args, _o: runs.append(len(args[0])))
    model.model.visual.requires_grad_(False)
    passes = [completion_logprobs(model, batcher, prompts, completions)[0] for _ in range(3)]
    passes[2].sum().backward()
    assert len(runs) == 2  # the clips, and the images
    assert passes[2].detach() == pytest.approx(expected.detach(), abs=1e-6)
    assert float(model.lm_head.weight.grad.abs().max()) > 0
    with torch.no_grad():
        model.model.visual.merger.ln_q.weight.mul_(2.0)  # other weights, other features
    moved, _ = completion_logprobs(model, batcher, prompts, completions)
    assert len(runs) == 4 and float((moved - expected).detach().abs().max()) > 1e-3


def test_the_model_is_saved_and_sampled_as_before(model, encoder: Encoder, tmp_path) -> None:
    prompts, completions = _rows(encoder)
    inputs = {"input_ids": torch.tensor([prompts[0].train_ids]), **prompts[0].features}
    inputs["mm_token_type_ids"] = torch.tensor([prompts[0].mm_types])
    batcher = Batcher(model, encoder.pad_id)
    with torch.no_grad():
        before = model(**inputs).logits
        completion_logprobs(model, batcher, prompts, completions)
        assert model.config.get_text_config()._attn_implementation == "ffr_shared_prefix"
        assert torch.equal(model(**inputs).logits, before)
    model.save_pretrained(tmp_path)
    assert "ffr" not in (tmp_path / "config.json").read_text()
    again = type(model).from_pretrained(tmp_path)
    assert again.config.get_text_config()._attn_implementation == "sdpa"
