"""Rotary positions of Qwen2-VL and Qwen2.5-VL, as their checkpoints were trained.

A token has three positions: time, row and column. Text counts all three on together. A clip's patches start
where the text before them ended: time goes on by the seconds of a frame pair times `tokens_per_second`
(Qwen2-VL: by one), rows and columns by one. Text after a clip goes on behind the *largest* of the clip's
positions. So it stands in the models' first release, and so vLLM serves them.

transformers 5 goes on behind the larger of rows and columns instead (a clip of more frames than that shares
its times with the words after it), and before 5.23 cuts the seconds of a pair to a whole number first (all
frames of a clip of less than a second a pair get one time). A student trained so is served with other
positions than it was trained with, and a trained checkpoint is read with other positions than it learned.
Models that write a time stamp before each frame (Qwen3-VL) are not concerned.

`_T` tokens, `_B` rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from types import MethodType
from typing import Any, Final

import torch
from torch import Tensor, nn

TEXT, IMAGE, VIDEO = 0, 1, 2
_CONCERNED: Final = frozenset({"qwen2_vl", "qwen2_5_vl"})


def use_trained_positions(model: nn.Module) -> bool:
    """Gives a Qwen2-VL or Qwen2.5-VL the positions it was trained with; every forward pass then has them.

    Args:
        model: a Hugging Face model, out of its wrappers.

    Returns:
        True if the model is one of the two; others are left alone.
    """
    if getattr(getattr(model, "config", None), "model_type", None) not in _CONCERNED:
        return False
    inner: Any = getattr(model, "model", model)
    inner.get_rope_index = MethodType(_rope_index, inner)
    return True


def mrope_positions(
    types: Sequence[int],
    grids: Sequence[Sequence[int]],
    intervals: Sequence[float],
    *,
    merge: int = 2,
) -> Tensor:
    """Positions of one sequence.

    Args:
        types: for each token 0 (text), 1 (image) or 2 (clip); runs of one kind belong to one medium.
        grids: for each medium in order its patches in time, height and width, before merging.
        intervals: for each medium in order by how much time goes on from one temporal patch to the next.
        merge: patches on a side that become one token.

    Returns:
        (3, T) of time, row and column, int64.

    Raises:
        ValueError: types, grids and intervals do not fit each other.

    Example:
        >>> mrope_positions([0, 2, 2, 2, 0], [(3, 2, 2)], [2.0]).tolist()
        [[0, 1, 3, 5, 6], [0, 1, 1, 1, 6], [0, 1, 1, 1, 6]]
    """
    media = iter(zip(grids, intervals, strict=True))
    parts: list[Tensor] = []
    start = 0
    for kind, run in groupby(types):
        length = len(list(run))
        if kind == TEXT:
            part = torch.arange(length).expand(3, -1)
        else:
            grid, interval = next(media, ((0, 0, 0), 0.0))
            part = _grid_positions(grid, interval, merge)
        if part.shape[1] != length:
            raise ValueError(f"{length} tokens of kind {kind}, but a medium of {part.shape[1]}")
        parts.append(part + start)
        start = int(parts[-1].max()) + 1
    if next(media, None) is not None:
        raise ValueError("more media than runs of their tokens")
    return torch.cat(parts, dim=1) if parts else torch.zeros((3, 0), dtype=torch.long)


def _grid_positions(grid: Sequence[int], interval: float, merge: int) -> Tensor:
    times, height, width = int(grid[0]), int(grid[1]) // merge, int(grid[2]) // merge
    # The product is cut, not the interval: at 0.75 a pair the times are 0, 0, 1, 2, 3.
    time = (torch.arange(times) * interval).long()
    axes = torch.meshgrid(time, torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack(axes).reshape(3, -1)


def _rope_index(
    self: Any,
    input_ids: Tensor,
    mm_token_type_ids: Tensor,
    image_grid_thw: Tensor | None = None,
    video_grid_thw: Tensor | None = None,
    second_per_grid_ts: Tensor | Sequence[float] | None = None,
    attention_mask: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, Tensor]:
    """Stands in for the model's own method: positions (3, B, T) and what to add to a token count (B, 1)."""
    vision = self.config.vision_config
    pace = float(getattr(vision, "tokens_per_second", 0) or 0)
    grids = {IMAGE: _rows(image_grid_thw), VIDEO: _rows(video_grid_thw)}
    seconds = iter([] if second_per_grid_ts is None else [float(s) for s in second_per_grid_ts])
    positions = torch.zeros((3, *input_ids.shape), dtype=torch.long)
    added: list[int] = []
    for row in range(len(input_ids)):
        mask = torch.ones(input_ids.shape[1]) if attention_mask is None else attention_mask[row].cpu()
        kept = mask.bool()
        kinds = mm_token_type_ids[row].cpu()[kept].tolist()
        media = [(kind, next(grids[kind])) for kind, _ in groupby(kinds) if kind != TEXT]
        paces = [pace * next(seconds, 1.0) if kind == VIDEO and pace else 1.0 for kind, _ in media]
        found = mrope_positions(kinds, [grid for _, grid in media], paces, merge=vision.spatial_merge_size)
        positions[:, row, kept] = found
        added.append(int(found.max()) + 1 - len(kinds))
    device = input_ids.device
    return positions.to(device), torch.tensor(added, device=device)[:, None]


def _rows(grids: Tensor | None) -> Iterator[list[int]]:
    return iter([] if grids is None else grids.tolist())
