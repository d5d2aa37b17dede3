"""Rows to tensors: padding, rotary positions, and each clip through the vision tower once.

A row is a prompt and a completion. Prompts are padded on the left and completions on the right, so
that the completions of all rows share the last columns. Rows that show the same medium (the same
`Medium` object) share one pass of the vision tower where the model allows it.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from ffr.engines.encode import EncodedPrompt, Medium
from ffr.engines.features import FeatureCache, fixed_tower, is_sharded, join_output, split_output
from ffr.engines.positions import use_trained_positions

log = logging.getLogger(__name__)
_FEATURES = {"video": "get_video_features", "image": "get_image_features"}
_PIXELS = {"video": "pixel_values_videos", "image": "pixel_values"}
_GRIDS = {"video": "video_grid_thw", "image": "image_grid_thw"}


@dataclass(frozen=True, eq=False)
class Rows:
    """Padded rows on the model's device.

    Example:
        >>> Rows(input_ids=ids, attention_mask=mask, position_ids=pos, num_completion=3)  # doctest: +SKIP
    """

    input_ids: Tensor
    """(B, L): prompts left-padded, completions right-padded."""
    attention_mask: Tensor
    """(B, L), 1 on real tokens."""
    position_ids: Tensor
    """(3, B, L) for models with 3D rotary positions, else (B, L)."""
    num_completion: int
    """T, the width of the completion part."""

    @property
    def completion_ids(self) -> Tensor:
        """(B, T)."""
        return self.input_ids[:, self.input_ids.shape[1] - self.num_completion :]

    @property
    def completion_mask(self) -> Tensor:
        """(B, T), 1 on completion tokens."""
        return self.attention_mask[:, self.attention_mask.shape[1] - self.num_completion :]


def unwrap(model: nn.Module) -> nn.Module:
    """The Hugging Face model inside data-parallel and adapter wrappers (adapters stay active)."""
    inner = model
    while hasattr(inner, "module") and isinstance(inner.module, nn.Module):
        inner = inner.module
    base = getattr(inner, "get_base_model", None)
    return base() if callable(base) else inner


@cache
def _warn_pixels(architecture: str) -> None:
    # Once per architecture: the numbers are the same, a step takes longer.
    log.warning(
        "%s.forward does not take `mm_encoder_outputs` (transformers %s): a clip goes through the vision "
        "tower once per sequence that shows it, and for every question anew",
        architecture,
        transformers.__version__,
    )


class Batcher:
    """Builds `Rows` and visual arguments for one model architecture.

    Args:
        model: the policy or any model of its architecture, wrapped or not.
        pad_id: id that fills the batch.
    """

    def __init__(self, model: nn.Module, pad_id: int) -> None:
        self.pad_id = pad_id
        self.kept = FeatureCache()
        """Features of media that a fixed vision tower has made."""
        inner = unwrap(model)
        use_trained_positions(inner)
        self._rope = getattr(getattr(inner, "model", inner), "get_rope_index", None)
        self._rope_names = frozenset(inspect.signature(self._rope).parameters) if self._rope else frozenset()
        takes = inspect.signature(type(inner).forward).parameters
        self.shares_media = "mm_encoder_outputs" in takes
        self._takes_types = "mm_token_type_ids" in takes
        if not self.shares_media:
            _warn_pixels(type(inner).__name__)

    def rows(
        self,
        prompts: Sequence[EncodedPrompt],
        completions: Sequence[Sequence[int]],
        device: torch.device | str,
    ) -> Rows:
        """Pads prompts and completions into one batch.

        Args:
            prompts: B prompts.
            completions: B completions, empty ones to prefill.
            device: where the tensors go.

        Returns:
            `Rows` of width max prompt length + max completion length.
        """
        width = max(p.num_tokens for p in prompts)
        num_completion = max(map(len, completions))
        positions = [self.positions(prompt) for prompt in prompts]
        dims = positions[0].shape[0]
        ids = torch.full((len(prompts), width + num_completion), self.pad_id, dtype=torch.long)
        mask = torch.zeros_like(ids)
        pos = torch.zeros((dims, *ids.shape), dtype=torch.long)
        for row, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
            start, end = width - prompt.num_tokens, width + len(completion)
            ids[row, start:end] = torch.tensor((*prompt.train_ids, *completion), dtype=torch.long)
            mask[row, start:end] = 1
            pos[:, row, start:width] = positions[row]
            first = int(positions[row][0, -1]) + 1
            pos[:, row, width:end] = torch.arange(first, first + len(completion))
        return Rows(
            input_ids=ids.to(device),
            attention_mask=mask.to(device),
            position_ids=(pos if dims > 1 else pos[0]).to(device),
            num_completion=num_completion,
        )

    def next_positions(self, prompts: Sequence[EncodedPrompt], device: torch.device | str) -> Tensor:
        """Position of each prompt's first completion token, shape (B,)."""
        return torch.tensor([int(self.positions(p)[0, -1]) + 1 for p in prompts], device=device)

    def decode_positions(self, next_B: Tensor) -> Tensor:
        """Position ids of one decoding step: (3, B, 1) or (B, 1)."""
        return next_B[None, :, None].expand(3, -1, -1) if self._rope else next_B[:, None]

    def vision(self, model: nn.Module, prompts: Sequence[EncodedPrompt]) -> dict[str, Any]:
        """Visual arguments of the model's forward pass for left-padded rows, in row order."""
        media = [medium for prompt in prompts for medium in prompt.media]
        return self.visual_inputs(model, media, [prompt.mm_types for prompt in prompts])

    def visual_inputs(
        self, model: nn.Module, media: Sequence[Medium], mm_types: Sequence[Sequence[int]]
    ) -> dict[str, Any]:
        """Visual arguments of a forward pass.

        Each distinct medium is encoded once and its features are repeated, with gradient, unless the
        model's forward takes pixels only or its weights are sharded: then only the model's own forward
        finds them whole.

        Args:
            model: the policy or reference, wrapped or not.
            media: what the rows show, in token order.
            mm_types: 0 text, 1 image, 2 video, for each token of each row (padded on the left).
        """
        if not media or (self.shares_media and not is_sharded(model)):
            return self.encode_media(model, media)
        device = next(model.parameters()).device
        pixels: dict[str, Any] = _joined(media, device)
        if self._takes_types:
            types = [torch.tensor(row) for row in mm_types]
            pixels["mm_token_type_ids"] = nn.utils.rnn.pad_sequence(
                types, batch_first=True, padding_side="left"
            ).to(device)
        return pixels

    def encode_media(self, model: nn.Module, media: Sequence[Medium]) -> dict[str, Any]:
        """Features of media in token order, each distinct one through the vision tower once."""
        if not media:
            return {}
        inner = unwrap(model)
        device = next(inner.parameters()).device
        kinds = [kind for kind in _FEATURES if any(m.kind == kind for m in media)]
        return {
            "mm_encoder_outputs": {
                kind: self._encode_once(inner, kind, [m for m in media if m.kind == kind], device)
                for kind in kinds
            }
        }

    def _encode_once(self, inner: nn.Module, kind: str, media: list[Medium], device: torch.device) -> Any:
        # A tower that nothing changes gives the same features in the policy's, the old policy's and
        # (with adapters) the reference's pass: they are kept. Else each pass has its own, with gradient.
        state = fixed_tower(inner)
        known = {m: self.kept.get((m, state)) for m in media} if state is not None else dict.fromkeys(media)
        new = [m for m, features in known.items() if features is None]
        if new:
            tensors = _joined(new, device)
            with nullcontext() if state is None else torch.no_grad():
                out = getattr(inner, _FEATURES[kind])(
                    tensors[_PIXELS[kind]], tensors[_GRIDS[kind]], return_dict=True
                )
            known |= dict(zip(new, split_output(out), strict=True))
        found = {m: features for m, features in known.items() if features is not None}
        if state is not None:
            self.kept.put({(m, state): features for m, features in found.items()})
        return join_output([found[m] for m in media])

    def positions(self, prompt: EncodedPrompt) -> Tensor:
        """Rotary positions of a prompt's tokens: (3, n), or (1, n) without 3D positions."""
        positions = prompt.memo.get("positions")
        if positions is None:
            if self._rope is None:
                positions = torch.arange(prompt.num_tokens)[None]
            else:
                extra = {k: v for k, v in prompt.features.items() if k in self._rope_names}
                positions = self._rope(
                    torch.tensor([prompt.train_ids]),
                    torch.tensor([prompt.mm_types], dtype=torch.int),
                    **extra,
                )[0][:, 0]
            prompt.memo["positions"] = positions
        return positions


def _joined(media: Sequence[Medium], device: torch.device) -> dict[str, Tensor]:
    names = dict.fromkeys(name for m in media for name in m.features)
    # Images and clips carry different features; each name is joined over the media that have it.
    having = {name: [m.features[name] for m in media if name in m.features] for name in names}
    return {name: torch.cat(tensors).to(device) for name, tensors in having.items()}


def row_logprobs(
    model: nn.Module,
    batcher: Batcher,
    prompts: Sequence[EncodedPrompt],
    completions: Sequence[Sequence[int]],
    *,
    temperature: float = 1.0,
    fused: bool = False,
) -> tuple[Tensor, Tensor]:
    """Log-probabilities of given completions, each under its own prompt, one sequence per row.

    Args:
        model: policy or reference, wrapped or not; the wrapper's forward is called.
        batcher: of the same architecture.
        prompts: B prompts.
        completions: B completions.
        temperature: logits are divided by it.
        fused: use TRL's fused head (never materialises the logits); `model` must carry it.

    Returns:
        log pi, shape (B, T), 0 outside the mask; and the mask, shape (B, T).
    """
    device = next(model.parameters()).device
    rows = batcher.rows(prompts, completions, device)
    inputs = {
        "input_ids": rows.input_ids,
        "attention_mask": rows.attention_mask,
        "position_ids": rows.position_ids,
        **batcher.vision(model, prompts),
    }
    if (types := inputs.get("mm_token_type_ids")) is not None:
        inputs["mm_token_type_ids"] = nn.functional.pad(types, (0, rows.num_completion))
    width, mask = rows.num_completion, rows.completion_mask
    if fused:
        labels = rows.input_ids.masked_fill(rows.attention_mask == 0, -100)
        labels[:, :-width] = -100
        out = model(**inputs, labels=labels, fused_lm_head=True)
        return out.log_probs[:, -width:] * mask, mask
    logits = model(**inputs, use_cache=False, logits_to_keep=width + 1).logits[:, -width - 1 : -1]
    logprobs = torch.log_softmax(logits.float() / temperature, dim=-1)
    picked = logprobs.gather(-1, rows.completion_ids.unsqueeze(-1)).squeeze(-1)
    return picked * mask, mask
