"""A group in one sequence: the clip and the question once, then every rollout as its own branch.

    [ shared prefix ][ rest of prompt 1, completion 1 ][ rest of prompt 2, completion 2 ] ...

A branch attends to the prefix and to itself, and its rotary positions go on from the prefix, so each
token has exactly the log-probability that it has in a sequence of its own. A patched prompt shares the
clip and the question with the un-patched one (a patch comes after them), so repaired and first-pass
rollouts of a question share a sequence. With a prompt of n tokens and G completions of m tokens the
language model reads n + G m tokens instead of G (n + m), and the clip passes the vision tower once.

Several packs (questions) of one call lie one after another in the same sequence, without padding; how
the attention keeps them and their branches apart is in `packed_attention`.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ffr.engines.batch import Batcher, row_logprobs, unwrap
from ffr.engines.encode import EncodedPrompt, Medium
from ffr.engines.packed_attention import BLOCK, KWARG, NAME, Layout, Span, use_shared_attention, uses_flex

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Pack:
    """Rows of one sequence.

    Example:
        >>> Pack(rows=(0, 1, 2), prefix=90, num_shared_media=1).prefix
        90
    """

    rows: tuple[int, ...]
    prefix: int
    """Prompt tokens that the rows share; 0 for a row by itself."""
    num_shared_media: int
    """Media inside the prefix."""


@dataclass(frozen=True, eq=False)
class Packed:
    """Packs one after another in one sequence.

    Example:
        >>> lay_out(plan(prompts), prompts, completions, batcher, "cpu").input_ids.shape  # doctest: +SKIP
    """

    input_ids: Tensor
    """(1, L)."""
    position_ids: Tensor
    """(3, 1, L) or (1, L)."""
    layout: Layout
    """Who attends to whom."""
    media: list[Medium]
    """In token order."""
    mm_types: list[int]
    """0 text, 1 image, 2 video, for each of the L tokens."""
    where: Tensor
    """(3, N): position, row and completion index of each completion token, ordered by position."""


def why_not_shared(model: nn.Module) -> str:
    """Why a group of this model cannot share its observation; empty if it can."""
    inner: Any = unwrap(model)
    text = inner.config.get_text_config()
    implementation = text._attn_implementation
    kinds = set(getattr(text, "layer_types", None) or ["full_attention"]) - {"full_attention"}
    parameters = inspect.signature(type(inner).forward).parameters.values()
    if kinds:
        return f"its layers attend by {', '.join(sorted(kinds))}"
    if implementation not in ("sdpa", NAME):
        return f"model.attention = {implementation!r}, and packs need 'sdpa'"
    if getattr(text, "attention_dropout", 0.0):
        return f"it drops attention weights (attention_dropout = {text.attention_dropout})"
    if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return "its forward takes no keyword arguments for the attention"
    if not getattr(inner, "_can_set_attn_implementation", lambda: True)():
        return "its attention does not come from transformers' AttentionInterface"
    return ""


@cache
def warn_unshared(architecture: str, reason: str) -> None:
    """Says once that groups of this architecture are scored row by row, and why."""
    log.warning(
        "%s: a group cannot share its observation, because %s; every rollout is a whole sequence of its own "
        "(the numbers are the same, a step takes longer and more memory: train.micro_batch_size bounds it)",
        architecture,
        reason,
    )


def plan(prompts: Sequence[EncodedPrompt]) -> list[Pack]:
    """Groups rows that begin with the same clip (or are the same text prompt), in order of appearance."""
    groups: dict[object, list[int]] = {}
    for row, prompt in enumerate(prompts):
        groups.setdefault(id(prompt.media[0]) if prompt.media else prompt.train_ids, []).append(row)
    packs: list[Pack] = []
    for rows in groups.values():
        prefix, media = _shared([prompts[row] for row in rows])
        if prefix:
            packs.append(Pack(tuple(rows), prefix, media))
        else:
            packs += [Pack((row,), 0, 0) for row in rows]
    return packs


def _shared(prompts: Sequence[EncodedPrompt]) -> tuple[int, int]:
    """Length of the common prefix and the media in it; (0, 0) where nothing is gained."""
    distinct = list({id(prompt): prompt for prompt in prompts}.values())
    # Each branch keeps a prompt token: its output predicts the branch's first completion token.
    prefix = min(prompt.num_tokens for prompt in distinct) - 1
    if len(prompts) < 2 or prefix < 1:
        return 0, 0
    first = _ids(distinct[0])
    for prompt in distinct[1:]:
        differs = np.flatnonzero(first[:prefix] != _ids(prompt)[:prefix])
        prefix = int(differs[0]) if len(differs) else prefix
    num_media = len(distinct[0].media)
    if len(distinct) > 1 and num_media:
        # Equal visual tokens may stand for different pixels: share the first medium, which is the same.
        num_media = 1
        for prompt in distinct:
            visual = np.flatnonzero(np.asarray(prompt.mm_types))
            end = prompt.media[0].num_features
            if prefix <= visual[end - 1]:
                return 0, 0
            if len(visual) > end:
                prefix = min(prefix, int(visual[end]))
    return prefix, num_media


def _ids(prompt: EncodedPrompt) -> np.ndarray:
    found = prompt.memo.get("ids")
    if found is None:
        found = prompt.memo["ids"] = np.asarray(prompt.train_ids)
    return found


def lay_out(
    packs: Sequence[Pack],
    prompts: Sequence[EncodedPrompt],
    completions: Sequence[Sequence[int]],
    batcher: Batcher,
    device: torch.device | str,
    *,
    multiple_of: int = 1,
) -> Packed:
    """Tokens, positions and layout of the packs.

    Args:
        packs: of `plan`.
        prompts: B prompts.
        completions: B completions.
        batcher: of the model's architecture.
        device: where the tensors go.
        multiple_of: the sequence is filled up with padding to a multiple of this length.
    """
    tokens: list[int] = []
    types: list[int] = []
    positions: list[Tensor] = []
    media: list[Medium] = []
    spans: list[Span] = []
    where: list[tuple[int, int, int]] = []
    for pack in packs:
        head = prompts[pack.rows[0]]
        bounds = [len(tokens)]
        tokens += head.train_ids[: pack.prefix]
        types += head.mm_types[: pack.prefix]
        positions.append(batcher.positions(head)[:, : pack.prefix])
        media += head.media[: pack.num_shared_media]
        for row in pack.rows:
            prompt, completion = prompts[row], completions[row]
            bounds.append(len(tokens))
            tokens += prompt.train_ids[pack.prefix :]
            where += [(len(tokens) + t, row, t) for t in range(len(completion))]
            tokens += completion
            types += prompt.mm_types[pack.prefix :] + (0,) * len(completion)
            own = batcher.positions(prompt)
            after = int(own[0, -1]) + 1 + torch.arange(len(completion))
            positions += [own[:, pack.prefix :], after.expand(len(own), -1)]
            media += prompt.media[pack.num_shared_media :]
        spans.append(Span((*bounds, len(tokens))))
    fill = -len(tokens) % multiple_of
    position_ids = nn.functional.pad(torch.cat(positions, dim=1), (0, fill))[:, None]
    return Packed(
        input_ids=torch.tensor([tokens + [batcher.pad_id] * fill], device=device),
        position_ids=(position_ids if len(position_ids) > 1 else position_ids[0]).to(device),
        layout=Layout(tuple(spans), len(tokens) + fill),
        media=media,
        mm_types=types + [0] * fill,
        where=torch.tensor(where, dtype=torch.long, device=device).T,
    )


def packed_logprobs(
    model: nn.Module,
    batcher: Batcher,
    packs: Sequence[Pack],
    prompts: Sequence[EncodedPrompt],
    completions: Sequence[Sequence[int]],
    *,
    temperature: float,
    fused: bool,
) -> tuple[Tensor, Tensor]:
    """As `completion_logprobs`, with all packs in one sequence.

    Returns:
        log pi, shape (B, T), 0 outside the mask; and the mask, shape (B, T).
    """
    inner: Any = unwrap(model)
    device = next(model.parameters()).device
    use_shared_attention(inner.config.get_text_config())
    block = BLOCK if uses_flex(device) else 1
    packed = lay_out(packs, prompts, completions, batcher, device, multiple_of=block)
    inputs = {
        "input_ids": packed.input_ids,
        # Whoever builds masks leaves a mask of four dimensions alone; the attention reads the layout.
        "attention_mask": torch.ones(1, 1, 1, 1, dtype=torch.bool, device=device),
        "position_ids": packed.position_ids,
        KWARG: packed.layout,
        **batcher.visual_inputs(model, packed.media, [packed.mm_types]),
    }
    position, row, t = packed.where
    tokens = packed.input_ids[0, position]
    if fused:
        labels = torch.full_like(packed.input_ids, -100)
        labels[0, position] = tokens
        picked = model(**inputs, labels=labels, fused_lm_head=True).log_probs[0, position - 1]
    else:
        logits = model(**inputs, use_cache=False, logits_to_keep=position - 1).logits[0]
        logprobs = torch.log_softmax(logits.float() / temperature, dim=-1)
        picked = logprobs.gather(-1, tokens[:, None])[:, 0]
    shape = (len(prompts), max(map(len, completions)))
    zeros = torch.zeros(shape, dtype=picked.dtype, device=device)
    mask = torch.zeros(shape, dtype=packed.input_ids.dtype, device=device)
    mask[row, t] = 1
    return zeros.index_put((row, t), picked), mask


def completion_logprobs(
    model: nn.Module,
    batcher: Batcher,
    prompts: Sequence[EncodedPrompt],
    completions: Sequence[Sequence[int]],
    *,
    temperature: float = 1.0,
    fused: bool = False,
    shared: bool = True,
) -> tuple[Tensor, Tensor]:
    """Log-probabilities of given completions, each under its own prompt.

    Rows with a common beginning share one sequence where the architecture allows it; the numbers are the
    same either way.

    Args:
        model: policy or reference, wrapped or not; the wrapper's forward is called.
        batcher: of the same architecture.
        prompts: B prompts.
        completions: B completions.
        temperature: logits are divided by it (a fused head has its own).
        fused: use TRL's fused head (never materialises the logits); `model` must carry it.
        shared: False scores every row in a sequence of its own (`model.shared_prefix`).

    Returns:
        log pi, shape (B, T), 0 outside the mask; and the mask, shape (B, T).
    """
    packs = plan(prompts) if shared else []
    if any(pack.prefix for pack in packs):
        reason = why_not_shared(model)
        if not reason:
            return packed_logprobs(
                model, batcher, packs, prompts, completions, temperature=temperature, fused=fused
            )
        warn_unshared(type(unwrap(model)).__name__, reason)
    return row_logprobs(model, batcher, prompts, completions, temperature=temperature, fused=fused)
