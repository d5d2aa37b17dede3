"""A group in one sequence: the clip and the question once, then every rollout as its own branch.

    [ shared prefix ][ rest of prompt 1, completion 1 ][ rest of prompt 2, completion 2 ] ...

A branch attends to the prefix and to itself, and its rotary positions go on from the prefix, so each
token has exactly the log-probability that it has in a sequence of its own. A patched prompt shares the
clip and the question with the un-patched one (a patch comes after them), so repaired and first-pass
rollouts of a question share a sequence. With a prompt of n tokens and G completions of m tokens the
language model reads n + G m tokens instead of G (n + m).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ffr.engines.batch import Batcher, row_logprobs, unwrap
from ffr.engines.encode import EncodedPrompt, Medium


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
    """Sequences of packs, padded on the right.

    Example:
        >>> lay_out(plan(prompts), prompts, completions, batcher, "cpu").input_ids.shape  # doctest: +SKIP
    """

    input_ids: Tensor
    """(P, L)."""
    attention: Tensor
    """(P, 1, L, L), True where a query may look."""
    position_ids: Tensor
    """(3, P, L) or (P, L)."""
    media: list[Medium]
    """In token order."""
    where: Tensor
    """(4, N): pack, position, row and completion index of each completion token."""


def can_pack(model: nn.Module, batcher: Batcher) -> bool:
    """True if the architecture takes our attention mask and shares visual features."""
    config: Any = unwrap(model).config
    text = config.get_text_config()
    kinds = set(getattr(text, "layer_types", None) or ["full_attention"])
    return batcher.shares_media and text._attn_implementation == "sdpa" and kinds == {"full_attention"}


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
) -> Packed:
    """Tokens, positions and mask of the packs."""
    ids: list[list[int]] = []
    positions: list[Tensor] = []
    branches: list[list[int]] = []
    media: list[Medium] = []
    where: list[tuple[int, int, int, int]] = []
    for at, pack in enumerate(packs):
        head = prompts[pack.rows[0]]
        tokens = list(head.train_ids[: pack.prefix])
        pos = [batcher.positions(head)[:, : pack.prefix]]
        branch = [0] * pack.prefix
        media += head.media[: pack.num_shared_media]
        for k, row in enumerate(pack.rows, start=1):
            prompt, completion = prompts[row], completions[row]
            tokens += prompt.train_ids[pack.prefix :]
            where += [(at, len(tokens) + t, row, t) for t in range(len(completion))]
            tokens += completion
            own = batcher.positions(prompt)
            after = int(own[0, -1]) + 1 + torch.arange(len(completion))
            pos += [own[:, pack.prefix :], after.expand(len(own), -1)]
            branch += [k] * (len(tokens) - len(branch))
            media += prompt.media[pack.num_shared_media :]
        ids.append(tokens)
        positions.append(torch.cat(pos, dim=1))
        branches.append(branch)
    width = max(map(len, ids))
    pad = nn.functional.pad
    position_ids = torch.stack([pad(p, (0, width - p.shape[1])) for p in positions], dim=1)
    return Packed(
        input_ids=torch.tensor([row + [batcher.pad_id] * (width - len(row)) for row in ids], device=device),
        attention=_attention(torch.tensor([b + [-1] * (width - len(b)) for b in branches], device=device)),
        position_ids=(position_ids if len(position_ids) > 1 else position_ids[0]).to(device),
        media=media,
        where=torch.tensor(where, dtype=torch.long, device=device).T,
    )


def _attention(branch_PL: Tensor) -> Tensor:
    query, key = branch_PL[:, :, None], branch_PL[:, None, :]
    width = branch_PL.shape[1]
    causal = torch.ones(width, width, dtype=torch.bool, device=branch_PL.device).tril()
    seen = causal & ((key == query) | (key == 0)) & (key >= 0)
    # Padding looks at itself: a query without any key would be NaN.
    return (seen | torch.eye(width, dtype=torch.bool, device=branch_PL.device))[:, None]


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
    """As `completion_logprobs`, in one sequence per pack.

    Returns:
        log pi, shape (B, T), 0 outside the mask; and the mask, shape (B, T).
    """
    device = next(model.parameters()).device
    packed = lay_out(packs, prompts, completions, batcher, device)
    inputs = {
        "input_ids": packed.input_ids,
        "attention_mask": packed.attention,
        "position_ids": packed.position_ids,
        **batcher.encode_media(model, packed.media),
    }
    pack, position, row, t = packed.where
    tokens = packed.input_ids[pack, position]
    if fused:
        labels = torch.full_like(packed.input_ids, -100)
        labels[pack, position] = tokens
        picked = model(**inputs, labels=labels, fused_lm_head=True).log_probs[pack, position - 1]
    else:
        keep, column = torch.unique(position - 1, return_inverse=True)
        logits = model(**inputs, use_cache=False, logits_to_keep=keep).logits[pack, column]
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

    Returns:
        log pi, shape (B, T), 0 outside the mask; and the mask, shape (B, T).
    """
    packs = plan(prompts) if can_pack(model, batcher) else []
    if any(pack.prefix for pack in packs):
        return packed_logprobs(
            model, batcher, packs, prompts, completions, temperature=temperature, fused=fused
        )
    return row_logprobs(model, batcher, prompts, completions, temperature=temperature, fused=fused)
