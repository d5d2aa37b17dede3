"""Key-value states of prompts that were read, for prompts that begin in the same way.

A patched prompt is the un-patched one up to the end of the question; the patch comes after. What the
language model computed for the clip and the question in the first pass is therefore what it would
compute again for every repair, as long as its weights are the same: a repair reads its patch only.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ffr.engines.batch import Batcher, Rows, unwrap
from ffr.engines.encode import EncodedPrompt, Medium

ROUND_BYTES = 2 * 2**30
"""What a round of training keeps at most: 30 questions of 1,200 tokens with a 7B Qwen2.5-VL in bf16."""


@dataclass(frozen=True, eq=False)
class Prefix:
    """What the language model made of one prompt.

    Example:
        >>> Prefix(prompt, keys=(k,), values=(v,)).nbytes  # doctest: +SKIP
        1048576
    """

    prompt: EncodedPrompt
    keys: tuple[Tensor, ...]
    """One tensor a layer, (heads, tokens of the prompt, head size)."""
    values: tuple[Tensor, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of all layers."""
        return sum(x.nbytes for x in (*self.keys, *self.values))


@dataclass(frozen=True, eq=False)
class Start:
    """Where a prompt goes on from a kept one.

    Example:
        >>> Start(prefix, num_tokens=1045, num_media=1)  # doctest: +SKIP
    """

    prefix: Prefix
    num_tokens: int
    """Tokens that need not be read again."""
    num_media: int
    """Media among them."""


class PrefixCache:
    """Kept prompts of one policy; the oldest go when the limit is reached.

    Args:
        limit_bytes: how much is kept, on the model's device; 0 keeps nothing.

    Example:
        >>> PrefixCache(0).num_kept
        0
    """

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.counters: Counter[str] = Counter()
        """`hit`, `miss` (prompts that went on from a kept one, or not), `reused_tokens`, `evicted`, `stale`
        (dropped because the weights had changed), `unsupported` (caches of another kind)."""
        self._kept: OrderedDict[int, Prefix] = OrderedDict()
        self._held = 0
        self._state: Hashable = None

    @property
    def num_kept(self) -> int:
        """Prompts that are kept."""
        return len(self._kept)

    @property
    def held_bytes(self) -> int:
        """Memory that they take."""
        return self._held

    def clear(self) -> None:
        """Drops everything."""
        self._kept.clear()
        self._held = 0

    def enter(self, model: nn.Module) -> None:
        """Drops what another policy version computed; to be called before `find` and `put`."""
        state = weights_state(model) if self.limit_bytes else None
        if state != self._state:
            self.counters["stale"] += len(self._kept)
            self.clear()
            self._state = state

    def put(self, prompts: Sequence[EncodedPrompt], cache: Any) -> None:
        """Keeps copies of what a forward pass over left-padded prompts left in its cache."""
        if not self.limit_bytes:
            return
        layers = _full_layers(cache)
        if layers is None:
            self.counters["unsupported"] += len(prompts)
            return
        for row, prompt in enumerate(prompts):
            n = prompt.num_tokens
            size = sum(x[row, :, -n:].nbytes for layer in layers for x in layer)
            self._make_room(size, id(prompt))
            if size > self.limit_bytes:
                self.counters["evicted"] += 1
                continue
            keys, values = (tuple(layer[k][row, :, -n:].clone() for layer in layers) for k in (0, 1))
            self._kept[id(prompt)] = Prefix(prompt, keys, values)
            self._held += size

    def find(self, prompt: EncodedPrompt, batcher: Batcher) -> Start | None:
        """The kept prompt that saves the most tokens of this one, if any has the same clip."""
        best: Start | None = None
        for prefix in self._kept.values():
            if prefix.prompt.media[:1] == prompt.media[:1]:
                num_tokens, num_media = shared_beginning(prefix.prompt, prompt, batcher)
                if num_tokens > (best.num_tokens if best else 0):
                    best = Start(prefix, num_tokens, num_media)
        if best is not None:
            self._kept.move_to_end(id(best.prefix.prompt))
        self.counters["miss" if best is None else "hit"] += 1
        self.counters["reused_tokens"] += 0 if best is None else best.num_tokens
        return best

    def _make_room(self, size: int, key: int) -> None:
        if key in self._kept:
            self._held -= self._kept.pop(key).nbytes
        while self._kept and self._held + size > self.limit_bytes:
            self._held -= self._kept.popitem(last=False)[1].nbytes
            self.counters["evicted"] += 1


def weights_state(model: nn.Module) -> Hashable:
    """Names what a forward pass computes with: the model, the version of its weights, adapters, precision.

    Versions count writes in place (an optimiser's step, loading other weights). Writes through `.data`
    are not counted; whoever trains that way clears the cache (`HFSampler.reseed` does).
    """
    inner = unwrap(model)
    parameters = list(inner.parameters())
    versions = sum(p._version for p in parameters)
    addresses = sum(p.data_ptr() for p in parameters)
    adapters = tuple(
        (bool(module.disable_adapters), tuple(getattr(module, "active_adapters", ())))
        for module in inner.modules()
        if isinstance(getattr(module, "disable_adapters", None), bool)
    )
    device = parameters[0].device.type
    precision = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
    return id(inner), versions, addresses, adapters, precision


def shared_beginning(known: EncodedPrompt, prompt: EncodedPrompt, batcher: Batcher) -> tuple[int, int]:
    """Tokens that two prompts have in common at their beginning, and whole media inside it.

    The last token of `prompt` is never among them: somebody has to predict the first token. Equal visual
    tokens may stand for different pixels, so the beginning ends before the first medium that is not the
    same object in both or not whole.
    """
    n = min(known.num_tokens, prompt.num_tokens - 1)
    differs = np.flatnonzero(np.asarray(known.train_ids[:n]) != np.asarray(prompt.train_ids[:n]))
    n = int(differs[0]) if len(differs) else n
    moved = (batcher.positions(known)[:, :n] != batcher.positions(prompt)[:, :n]).any(dim=0).nonzero()
    n = int(moved[0]) if len(moved) else n
    visual = np.flatnonzero(np.asarray(prompt.mm_types))
    end = num_media = 0
    for mine, theirs in zip(prompt.media, known.media, strict=False):
        begin, end = end, end + mine.num_features
        if mine is not theirs or visual[end - 1] >= n:
            return min(n, int(visual[begin])), num_media
        num_media += 1
    return (min(n, int(visual[end])) if len(visual) > end else n), num_media


@dataclass(frozen=True, eq=False)
class Continuation:
    """The model's inputs to read what is new in each prompt.

    Example:
        >>> go_on(prompts, starts, batcher, model).rows.input_ids.shape  # doctest: +SKIP
        torch.Size([3, 41])
    """

    rows: Rows
    """New tokens, padded on the left; the mask covers the kept tokens too."""
    cache: Any
    """Kept states of each row, padded on the left."""
    vision: dict[str, Any]
    """Of the new media."""


def go_on(
    prompts: Sequence[EncodedPrompt], starts: Sequence[Start], batcher: Batcher, model: nn.Module
) -> Continuation:
    """Lays kept states and new tokens side by side, one row per prompt.

    Columns: the longest kept beginning, then the longest rest. Both parts are padded on the left, so that
    the last column holds the last token of every row; positions are those of the whole prompt.

    Args:
        prompts: B prompts.
        starts: what is kept of each, of `PrefixCache.find`.
        batcher: of the model's architecture.
        model: the policy, wrapped or not.
    """
    device = next(model.parameters()).device
    kept = max(start.num_tokens for start in starts)
    rests = [prompt.num_tokens - start.num_tokens for prompt, start in zip(prompts, starts, strict=True)]
    new = max(rests)
    dims = batcher.positions(prompts[0]).shape[0]
    ids = torch.full((len(prompts), new), batcher.pad_id, dtype=torch.long)
    mask = torch.zeros((len(prompts), kept + new), dtype=torch.long)
    positions = torch.zeros((dims, len(prompts), new), dtype=torch.long)
    for row, (prompt, start, rest) in enumerate(zip(prompts, starts, rests, strict=True)):
        ids[row, new - rest :] = torch.tensor(prompt.train_ids[start.num_tokens :])
        mask[row, kept - start.num_tokens : kept] = 1
        mask[row, kept + new - rest :] = 1
        positions[:, row, new - rest :] = batcher.positions(prompt)[:, start.num_tokens :]
    media: list[Medium] = []
    types: list[tuple[int, ...]] = []
    for prompt, start in zip(prompts, starts, strict=True):
        media += prompt.media[start.num_media :]
        types.append(prompt.mm_types[start.num_tokens :])
    rows = Rows(
        input_ids=ids.to(device),
        attention_mask=mask.to(device),
        position_ids=(positions if dims > 1 else positions[0]).to(device),
        num_completion=0,
    )
    return Continuation(rows, _joined(starts, kept), batcher.visual_inputs(model, media, types))


def _joined(starts: Sequence[Start], width: int) -> Any:
    from transformers import DynamicCache

    cache = DynamicCache()
    for layer in range(len(starts[0].prefix.keys)):
        both = ([start.prefix.keys[layer] for start in starts], [s.prefix.values[layer] for s in starts])
        cache.update(*(_padded(parts, starts, width) for parts in both), layer)
    return cache


def _padded(parts: Sequence[Tensor], starts: Sequence[Start], width: int) -> Tensor:
    heads, _, size = parts[0].shape
    out = parts[0].new_zeros((len(parts), heads, width, size))
    for row, (part, start) in enumerate(zip(parts, starts, strict=True)):
        out[row, :, width - start.num_tokens :] = part[:, : start.num_tokens]
    return out


def _full_layers(cache: Any) -> list[tuple[Tensor, Tensor]] | None:
    """Keys and values of each layer; None where a layer does not keep every token."""
    from transformers.cache_utils import DynamicLayer

    layers = getattr(cache, "layers", None)
    if not layers or any(type(layer) is not DynamicLayer for layer in layers):
        return None
    return [(layer.keys, layer.values) for layer in layers]
