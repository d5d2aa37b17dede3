"""What a step costs and how far sampler and trainer agree, measured beside the trainer.

Times come from the run's `Clock`; tokens and operations from hooks on the student's parts, which see every
pass, whoever makes it. The hooks read shapes only. Nothing here waits for a GPU, except for four numbers
per micro-batch and, with `report.sync_timings`, at the borders of phases.
"""

from __future__ import annotations

import resource
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ffr.config import Config
from ffr.engines import flops
from ffr.engines.batch import unwrap
from ffr.engines.clock import Clock
from ffr.engines.packed_attention import KWARG
from ffr.engines.shapes import Shape, ShapeError, shape_of
from ffr.engines.trl.rows import TrainRow
from ffr.engines.trl.setup import EngineConfigError, vision_tower

PEAKS = ("mismatch", "ratio", "ratio_inverse", "memory_bytes", "device_bytes", "peak_flops")
"""Largest values of a step, over all ranks."""


class Telemetry:
    """Counts of one rank between two optimiser steps.

    Args:
        cfg: the run.
        clock: shared with the flow and the sampler.
        device: of the student.
        model: the student, wrapped or not; hooked before anything copies it.

    Example:
        >>> telemetry = Telemetry(cfg, Clock(), torch.device("cuda"), model)  # doctest: +SKIP
        >>> telemetry.take()["seconds/update"]  # doctest: +SKIP
        3.2
    """

    def __init__(self, cfg: Config, clock: Clock, device: torch.device, model: nn.Module) -> None:
        self.clock = clock
        self._device = device
        self._sums: Counter[str] = Counter()
        self._peaks: dict[str, float] = {}
        self._backward = flops.backward_factor(lora=bool(cfg.model.lora.rank))
        self._frozen_vision = cfg.model.freeze_vision
        self.shape = _shape(model)
        """None for an architecture whose sizes are not known: no operations are counted then."""
        self.peak: float | None = None
        """Operations per second that the device could do."""
        if device.type == "cuda":
            if cfg.report.sync_timings:
                clock.synchronize = torch.cuda.synchronize
            if cfg.model.dtype == "bfloat16":
                self.peak = flops.peak_flops(torch.cuda.get_device_name(device))
        self.hook(model)

    def hook(self, model: nn.Module) -> None:
        """Counts the passes of a model: the student, or its reference."""
        inner: Any = unwrap(model)
        decoder = inner.get_decoder() if hasattr(inner, "get_decoder") else None
        if isinstance(decoder, nn.Module):
            decoder.register_forward_pre_hook(self._text_hook(), with_kwargs=True)
        try:
            tower = vision_tower(inner, type(inner).__name__)
        except EngineConfigError:
            return  # its time is then part of the phase around it
        before, after = self._vision_hooks()
        tower.register_forward_pre_hook(before, with_kwargs=True)
        tower.register_forward_hook(after, always_call=True)

    # Plain functions, not methods: a copy of the model (sharded runs) must not copy its observer.

    def _text_hook(self) -> Callable[..., None]:
        def count(_module: nn.Module, args: Any, kwargs: Mapping[str, Any]) -> None:
            shown = kwargs.get("inputs_embeds")
            shown = kwargs.get("input_ids", args[0] if args else None) if shown is None else shown
            if shown is not None:
                self._count_text(shown.shape[0], shown.shape[1], kwargs)

        return count

    def _vision_hooks(self) -> tuple[Callable[..., None], Callable[..., None]]:
        tokens: list[object] = []

        def before(_module: nn.Module, args: Any, kwargs: Mapping[str, Any]) -> None:
            """The tower starts: its time and its work are counted apart."""
            outside = self.clock.current
            tokens.append(object())
            self.clock.enter("vision", tokens[-1])
            grid = kwargs.get("grid_thw", args[1] if len(args) > 1 else None)
            if self.shape is not None and isinstance(grid, Tensor):
                self._count_vision(outside, [tuple(row) for row in grid.tolist()])

        def after(*_: Any) -> None:
            if tokens:
                self.clock.leave(tokens.pop())

        return before, after

    def _count_text(self, num_rows: int, num_new: int, kwargs: Mapping[str, Any]) -> None:
        phase = self.clock.current
        self._sums[f"lm_tokens/{phase}"] += num_rows * num_new
        if self.shape is None:
            return
        layout, kept = kwargs.get(KWARG), kwargs.get("past_key_values")
        if layout is None:
            num_before = int(kept.get_seq_length()) if kept is not None else 0
            pairs = num_rows * flops.causal_pairs(num_new, num_before)
        else:
            pairs = layout_pairs(layout)
        work = flops.text_flops(self.shape.text, num_tokens=num_rows * num_new, num_pairs=pairs)
        if phase == "generate":
            work += flops.head_flops(self.shape.text, num_rows)
        self._add_work(phase, work)

    def _count_vision(self, outside: str, grids: Sequence[tuple[int, ...]]) -> None:
        assert self.shape is not None
        work = flops.vision_flops(self.shape.vision, grids)  # type: ignore[arg-type]
        self._sums["flops/vision"] += work  # type: ignore[assignment]
        if torch.is_grad_enabled() and not self._frozen_vision:
            self._sums[f"flops/{outside}"] += self._backward * work  # type: ignore[assignment]

    def _add_work(self, phase: str, work: float) -> None:
        passes = 1.0 + self._backward * torch.is_grad_enabled()
        self._sums[f"flops/{phase}"] += passes * work  # type: ignore[assignment]

    def head(self, num_positions: int) -> None:
        """The head was applied at so many positions, outside of sampling."""
        if self.shape is not None:
            self._add_work(self.clock.current, flops.head_flops(self.shape.text, num_positions))

    @torch.no_grad()
    def loss(self, logprobs_BT: Tensor, old_BT: Tensor, mask_BT: Tensor, rows: Sequence[TrainRow]) -> None:
        """Importance ratios of a micro-batch, and its log-probabilities against the sampler's.

        Args:
            logprobs_BT: of the policy.
            old_BT: of the policy that sampled, as the loss uses them.
            mask_BT: 1 on the tokens that count.
            rows: B rows.
        """
        kept = mask_BT.bool()
        log_ratio = (logprobs_BT - old_BT).masked_fill(~kept, 0.0).double()
        sampled, known = _sampled(rows, old_BT)
        known &= kept
        off = (old_BT - sampled).abs().masked_fill(~known, 0.0).double()
        square = ((2 * log_ratio).exp() * kept).sum()
        numbers = (off.sum(), known.sum(), square, off.max(), log_ratio.max(), -log_ratio.min())
        found = torch.stack([number.double() for number in numbers]).tolist()
        for name, value in zip(("mismatch", "mismatch_tokens", "ratio_square"), found[:3], strict=True):
            self._sums[name] += value  # type: ignore[assignment]
        for name, value in zip(("mismatch", "ratio", "ratio_inverse"), found[3:], strict=True):
            self._peaks[name] = max(value, self._peaks.get(name, 0.0))

    def take(self) -> Counter[str]:
        """Sums of this rank since the last call, `seconds/*` among them; starts anew."""
        sums, self._sums = self._sums, Counter()
        for name, seconds in self.clock.take().items():
            sums[f"seconds/{name}"] += seconds  # type: ignore[assignment]
        return sums

    def take_peaks(self) -> list[float]:
        """Values of `PEAKS` of this rank since the last call; starts anew."""
        peaks, self._peaks = self._peaks, {}
        peaks["memory_bytes"] = peak_memory(self._device)
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
            peaks["device_bytes"] = torch.cuda.get_device_properties(self._device).total_memory
        peaks["peak_flops"] = self.peak or 0.0
        return [float(peaks.get(name, 0.0)) for name in PEAKS]


def layout_pairs(layout: Any) -> int:
    """(query, key) pairs of packs: a prefix at itself, each branch at the prefix and at itself."""
    pairs = 0
    for span in layout.spans:
        prefix = span.prefix[1] - span.prefix[0]
        pairs += flops.causal_pairs(prefix)
        pairs += sum(flops.causal_pairs(end - start, prefix) for start, end in span.branches)
    return pairs


def peak_memory(device: torch.device) -> float:
    """Bytes: on CUDA the most that tensors took since the last reset, else the process's largest so far."""
    if device.type == "cuda":
        return float(torch.cuda.max_memory_allocated(device))
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return float(largest if sys.platform == "darwin" else largest * 1024)


def _sampled(rows: Sequence[TrainRow], like_BT: Tensor) -> tuple[Tensor, Tensor]:
    """The sampler's log-probabilities, and where there are any."""
    values, known = torch.zeros(like_BT.shape), torch.zeros(like_BT.shape, dtype=torch.bool)
    for row, given in enumerate(rows):
        if given.sampled_logprobs is not None:
            n = len(given.sampled_logprobs)
            values[row, :n] = torch.tensor(given.sampled_logprobs)
            known[row, :n] = True
    return values.to(like_BT.device), known.to(like_BT.device)


def _shape(model: nn.Module) -> Shape | None:
    config: Any = unwrap(model).config
    try:
        return shape_of(config.to_dict())
    except ShapeError:
        return None
