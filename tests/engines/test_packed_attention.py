"""Attention over packs: the ways to compute it agree with a dense mask, in numbers and gradients."""

from __future__ import annotations

from typing import Any

import pytest
import tiny
import torch
from torch.nn.functional import scaled_dot_product_attention

from ffr.engines import packed_attention
from ffr.engines.batch import Batcher, row_logprobs
from ffr.engines.encode import Encoder
from ffr.engines.packed import completion_logprobs, packed_logprobs, plan
from ffr.engines.packed_attention import KWARG, Layout, Span, branch_by_branch, shared_attention

LAYOUTS = {
    "one group": Layout((Span((0, 9, 13, 14, 21)),), 21),
    "two groups and a row alone": Layout((Span((0, 5, 8, 12)), Span((12, 12, 17)), Span((17, 20, 22))), 22),
    "padding": Layout((Span((0, 4, 6, 9)),), 16),
}


def _qkv(length: int, *, heads: int = 4, kv_heads: int = 2, width: int = 8) -> Any:
    rng = torch.Generator().manual_seed(length)
    shapes = [(1, length, heads, width), *[(1, length, kv_heads, width)] * 2]
    # As a model makes them: heads and positions transposed views.
    return [torch.randn(s, generator=rng).transpose(1, 2).requires_grad_() for s in shapes]


def _dense(query, key, value, layout: Layout, scale: float):
    mask = layout.allowed()
    key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], dim=1) for x in (key, value))
    return scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale)


def test_who_sees_whom_token_by_token() -> None:
    # pack 0: prefix 0-1, branches 2-3 and 4; pack 1: no prefix, one branch 5-6; 7 is padding
    layout = Layout((Span((0, 2, 4, 5)), Span((5, 5, 7))), 8)
    seen = [[int(k) for k in row.nonzero()[:, 0]] for row in layout.allowed()]
    assert seen == [[0], [0, 1], [0, 1, 2], [0, 1, 2, 3], [0, 1, 4], [5], [5, 6], [7]]


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("way", ["two parts", "branch by branch"])
def test_values_and_gradients_equal_a_dense_mask(name: str, way: str) -> None:
    layout = LAYOUTS[name]
    assert packed_attention.has_cpu_kernels()
    real = layout.spans[-1].bounds[-1]
    weights = torch.randn(1, 4, layout.num_tokens, 8, generator=torch.Generator().manual_seed(1))
    weights[:, :, real:] = 0.0
    results = []
    compute = packed_attention._TwoParts.apply if way == "two parts" else branch_by_branch
    for function in (_dense, compute):
        leaves = _qkv(layout.num_tokens)
        out = function(*leaves, layout, 0.3)
        grads = torch.autograd.grad((out * weights).sum(), leaves)
        results.append((out.detach()[:, :, :real], *grads))
    for expected, found in zip(*results, strict=True):
        assert found == pytest.approx(expected, abs=2e-6)


def test_large_scores_do_not_overflow() -> None:
    layout = LAYOUTS["one group"]
    leaves: Any = [x.detach() * 60 for x in _qkv(21)]
    found = packed_attention._TwoParts.apply(*leaves, layout, 1.0)
    assert found == pytest.approx(_dense(*leaves, layout, 1.0), abs=1e-4)


def test_flex_block_mask_is_the_same_mask() -> None:
    """What runs on CUDA is compiled there; its predicate and eager forward are checked here."""
    from torch.nn.attention.flex_attention import create_block_mask, create_mask, flex_attention

    layout = Layout((Span((0, 150, 190, 260)), Span((260, 260, 300))), 384)
    predicate = layout.mask_mod("cpu")
    dense = create_mask(predicate, None, None, 384, 384, device="cpu")[0, 0]
    assert torch.equal(dense, layout.allowed())
    block = create_block_mask(predicate, None, None, 384, 384, device="cpu")
    # Blocks of 128: rows 0-127 see column 0; 128-255 the prefix and themselves; the last one its own
    # pack (260-299) and the end of branch 2 (256-259), which sees the prefix.
    assert block.to_dense()[0, 0].tolist() == [[1, 0, 0], [1, 1, 0], [1, 1, 1]]
    leaves: Any = [x.detach() for x in _qkv(384)]
    with torch.no_grad():
        out = flex_attention(*leaves, block_mask=block, scale=0.3, enable_gqa=True)
    assert out == pytest.approx(_dense(*leaves, layout, 0.3), abs=2e-6)


def test_a_model_that_drops_the_layout_is_told_to_switch_it_off() -> None:
    query, key, value = _qkv(5)
    with pytest.raises(RuntimeError, match=r"model.shared_prefix = false"):
        shared_attention(torch.nn.Linear(1, 1), query, key, value, torch.ones(1, 1, 1, 1, dtype=torch.bool))
    layout = {KWARG: LAYOUTS["one group"]}
    with pytest.raises(RuntimeError, match=r"dropout of 0.1"):
        shared_attention(torch.nn.Linear(1, 1), *_qkv(21), None, dropout=0.1, **layout)


def _student(family: str, path):
    from transformers import AutoModelForImageTextToText, AutoProcessor

    build = {"qwen2.5": tiny.build, "qwen3": tiny.build_qwen3}[family]
    path = build(path / "student")
    model = AutoModelForImageTextToText.from_pretrained(path, dtype=torch.float32)
    return model, Encoder(AutoProcessor.from_pretrained(path))


def _mixed_group(encoder: Encoder, side: int):
    """Two questions: first-pass rows, text patches, patches that show frames again."""
    patches = [("", 0), ("look at frames 1-3", 0), ("", 0), ("again", 2), ("and frame 5", 1), ("", 0)]
    views = [
        tiny.view(seed, patch=patch, extra=extra, side=side, num_frames=4 + 2 * seed)
        for seed in (0, 1)
        for patch, extra in patches
    ]
    rng = torch.Generator().manual_seed(0)
    completions = [
        tuple(torch.randint(7, 260, (4 + k % 5,), generator=rng).tolist()) for k in range(len(views))
    ]
    return [encoder.encode(view) for view in views], completions


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("family", ["qwen2.5", "qwen3"])
def test_mixed_groups_equal_rows_on_their_own(family: str, checkpointing: bool, tmp_path) -> None:
    """Log-probabilities to 1e-5, every gradient to 1e-4 of its size, fp32."""
    model, encoder = _student(family, tmp_path)
    prompts, completions = _mixed_group(encoder, 56 if family == "qwen2.5" else 64)
    packs = plan(prompts)
    assert [pack.rows for pack in packs] == [tuple(range(6)), tuple(range(6, 12))]
    assert all(pack.num_shared_media == 1 and pack.prefix > 12 for pack in packs)
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.train()
    batcher = Batcher(model, encoder.pad_id)
    weights = torch.linspace(-1.0, 2.0, len(prompts))[:, None]
    found = []
    for shared in (False, True):
        model.zero_grad(set_to_none=True)
        logprobs, _ = completion_logprobs(model, batcher, prompts, completions, shared=shared)
        (logprobs * weights).sum().backward()
        found.append((logprobs.detach(), {n: p.grad for n, p in model.named_parameters()}))
    assert float((found[0][0] - found[1][0]).abs().max()) <= 1e-5
    for name, grad in found[0][1].items():
        error = float((grad - found[1][1][name]).norm())
        assert float(grad.norm()) > 0 and error <= 1e-4 * float(grad.norm()), name


def test_portable_way_in_the_model(model, encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts, completions = _mixed_group(encoder, 56)
    batcher = Batcher(model, encoder.pad_id)
    monkeypatch.setattr(packed_attention, "has_cpu_kernels", lambda: False)
    with torch.no_grad():
        expected, _ = row_logprobs(model, batcher, prompts, completions)
        found, _ = completion_logprobs(model, batcher, prompts, completions)
    assert found == pytest.approx(expected, abs=1e-5)


def test_padding_after_the_packs_changes_nothing(
    model, encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On CUDA sequences are filled up to whole blocks; the same layout here."""
    from ffr.engines import packed

    prompts, completions = _mixed_group(encoder, 56)
    batcher = Batcher(model, encoder.pad_id)
    lay_out, lengths = packed.lay_out, []

    def filled(*args, **kwargs):
        out = lay_out(*args, **{**kwargs, "multiple_of": 128})
        lengths.append(out.input_ids.shape[1])
        return out

    with torch.no_grad():
        plain = completion_logprobs(model, batcher, prompts, completions)[0]
        monkeypatch.setattr(packed, "lay_out", filled)
        args = (model, batcher, plan(prompts), prompts, completions)
        padded = packed_logprobs(*args, temperature=1.0, fused=False)[0]
    assert lengths[0] % 128 == 0
    assert padded == pytest.approx(plain, abs=1e-6)


def test_bfloat16_autocast(model, encoder: Encoder) -> None:
    prompts, completions = _mixed_group(encoder, 56)
    batcher = Batcher(model, encoder.pad_id)
    with torch.no_grad():
        exact, _ = completion_logprobs(model, batcher, prompts, completions)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rough, _ = completion_logprobs(model, batcher, prompts, completions)
            by_row, _ = row_logprobs(model, batcher, prompts, completions)
    # bfloat16 moves both paths by about as much from float32
    assert float((rough - exact).abs().mean()) < 2 * float((by_row - exact).abs().mean()) + 1e-3
