"""Attention over packs: a shared prefix once, and branches that see it and themselves.

    [ prefix ][ branch 1 ][ branch 2 ] ... [ prefix ][ branch 1 ] ...

A dense mask over such a sequence computes every pair of branches only to throw it away. Three ways to
leave those pairs out, all exact and differentiable:

- CPU: two parts, prefix and own branch, each by the fused kernel, merged through their log-sum-exps.
  Backward calls the kernel's own backward with the merged output and log-sum-exp, which gives the
  gradient of the whole softmax; neither a mask nor a copy of the prefix's keys is made.
- CUDA: FlexAttention with a block mask (Triton).
- elsewhere: one scaled-dot-product call per branch over (prefix, branch).

The function is registered in transformers' AttentionInterface under `NAME` and is the model's attention
from its first pack on. Calls without a layout (sampling, evaluation) go to SDPA as before. It is not
swapped in and out around a forward pass, because gradient checkpointing runs the layers again in
backward.
"""

from __future__ import annotations

import importlib.util
import itertools
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask
from transformers.modeling_utils import AttentionInterface

NAME = "ffr_shared_prefix"
KWARG = "ffr_layout"
"""Name under which the layout travels through the model's forward to the attention."""
BLOCK = 128
"""Tokens of a FlexAttention block; packed sequences are padded to it on CUDA."""


@dataclass(frozen=True)
class Span:
    """One pack inside the sequence.

    Example:
        >>> Span((0, 90, 120, 150)).branches
        [(90, 120), (120, 150)]
    """

    bounds: tuple[int, ...]
    """Begin of the prefix, begin of each branch, end; the first two are equal without a prefix."""

    @property
    def prefix(self) -> tuple[int, int]:
        """First token of the prefix, and the one after its last."""
        return self.bounds[0], self.bounds[1]

    @property
    def branches(self) -> list[tuple[int, int]]:
        """The same for each branch."""
        return list(itertools.pairwise(self.bounds[1:]))


@dataclass(frozen=True)
class Layout:
    """Where the packs of one sequence lie; tokens after the last pack are padding.

    Example:
        >>> Layout((Span((0, 2, 3, 4)),), num_tokens=4).allowed()[3].tolist()
        [True, True, False, True]
    """

    spans: tuple[Span, ...]
    num_tokens: int

    @cached_property
    def pack_and_branch_2L(self) -> Tensor:
        """Pack and branch in it of each token, (2, L): branch 0 is a prefix, pack -1 padding."""
        out = torch.zeros(2, self.num_tokens, dtype=torch.long)
        out[0] = -1
        for at, span in enumerate(self.spans):
            out[0, span.bounds[0] : span.bounds[-1]] = at
            for k, (start, end) in enumerate(span.branches, start=1):
                out[1, start:end] = k
        return out

    def mask_mod(self, device: torch.device | str) -> Any:
        """The mask as FlexAttention's predicate of (batch, head, query, key)."""
        pack, branch = self.pack_and_branch_2L.to(device)

        def seen(_batch: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            own = (branch[key] == branch[query]) | (branch[key] == 0)
            return (key <= query) & (pack[key] == pack[query]) & own

        return seen

    def allowed(self, device: torch.device | str = "cpu") -> Tensor:
        """The mask as a square (L, L), True where a query (row) may look."""
        place = torch.arange(self.num_tokens, device=device)
        return self.mask_mod(device)(place, place, place[:, None], place[None, :])

    @cached_property
    def block_mask(self) -> Any:
        """FlexAttention's block mask on the current CUDA device."""
        from torch.nn.attention.flex_attention import create_block_mask

        device = torch.device("cuda", torch.cuda.current_device())
        size = self.num_tokens
        return create_block_mask(
            self.mask_mod(device), B=None, H=None, Q_LEN=size, KV_LEN=size, device=device, _compile=True
        )


def use_shared_attention(text_config: Any) -> None:
    """Makes `shared_attention` the attention of a model whose text config says SDPA."""
    if text_config._attn_implementation != NAME:
        AttentionInterface.register(NAME, shared_attention)
        AttentionMaskInterface.register(NAME, sdpa_mask)
        text_config._attn_implementation = NAME


def uses_flex(device: torch.device) -> bool:
    """True where packs go through FlexAttention."""
    return device.type == "cuda" and importlib.util.find_spec("triton") is not None


def shared_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention function for transformers: by layout where the call brings one, else SDPA.

    Args:
        module: the attention layer.
        query: (B, heads, L, D); B is 1 with a layout.
        key: (B, key-value heads, L, D).
        value: (B, key-value heads, L, D).
        attention_mask: for SDPA; unread with a layout.
        scaling: of the scores; 1 / sqrt(D) when None.
        dropout: of the attention weights; 0 with a layout.
        **kwargs: the layout under `KWARG`, and what SDPA takes.

    Returns:
        (B, L, heads, D), and None for the weights.

    Raises:
        RuntimeError: the model dropped the layout on its way, or drops attention weights.
    """
    layout: Layout | None = kwargs.pop(KWARG, None)
    if layout is None:
        if attention_mask is not None and attention_mask.numel() == 1 and key.shape[2] > 1:
            raise RuntimeError(
                f"{type(module).__name__} does not hand keyword arguments on to its attention, so a group "
                "cannot share its observation; set model.shared_prefix = false"
            )
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
    if dropout:
        raise RuntimeError(
            f"attention dropout of {dropout} in a shared pass; set model.shared_prefix = false"
        )
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if torch.is_autocast_enabled(query.device.type):
        # Rotary embeddings leave queries in float32 there; SDPA would cast them itself.
        wanted = torch.get_autocast_dtype(query.device.type)
        query, key, value = query.to(wanted), key.to(wanted), value.to(wanted)
    if uses_flex(query.device):
        out = _flex(query, key, value, layout, scale)
    elif query.device.type == "cpu" and has_cpu_kernels():
        out = _TwoParts.apply(query, key, value, layout, scale)
    else:
        out = branch_by_branch(query, key, value, layout, scale)
    return out.transpose(1, 2).contiguous(), None


def branch_by_branch(query: Tensor, key: Tensor, value: Tensor, layout: Layout, scale: float) -> Tensor:
    """One SDPA call per prefix and per branch; shapes as `shared_attention`, result (1, heads, L, D)."""
    key, value = (repeat_kv(x, query.shape[1] // x.shape[1]) for x in (key, value))
    parts: list[Tensor] = []
    for span in layout.spans:
        start, end = span.prefix
        if end > start:
            own = slice(start, end)
            parts.append(
                scaled_dot_product_attention(
                    query[:, :, own], key[:, :, own], value[:, :, own], is_causal=True, scale=scale
                )
            )
        for first, last in span.branches:
            rows, size = last - first, end - start
            mask = torch.ones(rows, size + rows, dtype=torch.bool, device=query.device).tril(size)
            keys, values = (torch.cat([x[:, :, start:end], x[:, :, first:last]], dim=2) for x in (key, value))
            parts.append(
                scaled_dot_product_attention(
                    query[:, :, first:last], keys, values, attn_mask=mask, scale=scale
                )
            )
    done = layout.spans[-1].bounds[-1]
    return torch.cat([*parts, torch.zeros_like(query[:, :, done:])], dim=2)


@cache
def _compiled_flex() -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention)


def _flex(query: Tensor, key: Tensor, value: Tensor, layout: Layout, scale: float) -> Tensor:
    # Not run on a GPU so far. Checked without one: the block mask against `Layout.allowed`, and the eager
    # and the compiled CPU forward; FlexAttention has no backward on CPU.
    grouped = query.shape[1] != key.shape[1]
    return _compiled_flex()(query, key, value, block_mask=layout.block_mask, scale=scale, enable_gqa=grouped)


# -- CPU ---------------------------------------------------------------------------------------------


@cache
def has_cpu_kernels() -> bool:
    """True if this torch has the CPU kernel that returns log-sum-exps, with the signature in use."""
    aten = torch.ops.aten
    names = [
        "_scaled_dot_product_flash_attention_for_cpu",
        "_scaled_dot_product_flash_attention_for_cpu_backward",
    ]
    if not all(hasattr(aten, name) for name in names):
        return False
    forward, backward = (getattr(aten, name).default._schema for name in names)
    wanted = ["grad_out", "query", "key", "value", "out", "logsumexp", "dropout_p", "is_causal"]
    return len(forward.returns) == 2 and [a.name for a in backward.arguments][:8] == wanted


def _part(query: Tensor, key: Tensor, value: Tensor, causal: bool, scale: float) -> tuple[Tensor, Tensor]:
    return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        query, key, value, 0.0, causal, scale=scale
    )


def _part_backward(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, out: Tensor, lse: Tensor, *rest: Any
) -> tuple[Tensor, Tensor, Tensor]:
    causal, scale = rest
    return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
        grad, query, key, value, out, lse, 0.0, causal, scale=scale
    )


class _TwoParts(torch.autograd.Function):
    """Prefix part and own part of each branch, merged: softmax over both from the two log-sum-exps."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, layout: Layout, scale: float) -> Tensor:
        """Shapes as `shared_attention`, result (1, heads, L, D)."""
        num = query.shape[1] // key.shape[1]
        keys, values = repeat_kv(key, num), repeat_kv(value, num)
        # Memory order (1, L, heads, D): the caller's transpose back is then free.
        out = torch.zeros_like(query.transpose(1, 2)).transpose(1, 2)
        lse = torch.zeros(query.shape[:3], dtype=torch.float32)

        def at(part: tuple[int, int], seen: tuple[int, int], causal: bool) -> tuple[Tensor, Tensor]:
            q, k = slice(*part), slice(*seen)
            return _part(query[:, :, q], keys[:, :, k], values[:, :, k], causal, scale)

        for span in layout.spans:
            for part in (span.prefix, *span.branches):
                if part[1] > part[0]:
                    here = slice(*part)
                    out[:, :, here], lse[:, :, here] = at(part, part, True)
            if span.prefix[1] > span.prefix[0]:
                all_branches = (span.bounds[1], span.bounds[-1])
                _merge_(slice(*all_branches), out, lse, *at(all_branches, span.prefix, False))
        ctx.save_for_backward(query, key, value, out, lse)
        ctx.layout, ctx.scale = layout, scale
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        """Gradients of queries, keys and values, part by part, from the saved log-sum-exp."""
        query, key, value, out, lse = ctx.saved_tensors
        num = query.shape[1] // key.shape[1]
        keys, values = repeat_kv(key, num), repeat_kv(value, num)
        grads = torch.zeros_like(query), torch.zeros_like(keys), torch.zeros_like(values)

        def add(part: tuple[int, int], seen: tuple[int, int], causal: bool) -> None:
            q, k = slice(*part), slice(*seen)
            args = (grad[:, :, q], query[:, :, q], keys[:, :, k], values[:, :, k], out[:, :, q], lse[:, :, q])
            found = _part_backward(*args, causal, ctx.scale)
            for total, piece, where in zip(grads, found, (q, k, k), strict=True):
                total[:, :, where] += piece

        for span in ctx.layout.spans:
            for part in (span.prefix, *span.branches):
                if part[1] > part[0]:
                    add(part, part, True)
            if span.prefix[1] > span.prefix[0]:
                add((span.bounds[1], span.bounds[-1]), span.prefix, False)
        heads = (key.shape[0], key.shape[1], num, *key.shape[2:])
        return grads[0], grads[1].view(heads).sum(2), grads[2].view(heads).sum(2), None, None


def _merge_(where: slice, out: Tensor, lse: Tensor, other: Tensor, other_lse: Tensor) -> None:
    mine = lse[:, :, where]
    both = torch.logaddexp(mine, other_lse)
    weights = [(x - both).exp().unsqueeze(-1) for x in (mine, other_lse)]
    out[:, :, where] = (out[:, :, where] * weights[0] + other * weights[1]).to(out.dtype)
    lse[:, :, where] = both
