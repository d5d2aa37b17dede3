"""Floating-point operations of a pass, counted from the student's sizes, and what a GPU could do. Torch-free.

A multiplication and an addition are two operations. Counted are matrix products and attention; norms,
activations and the optimiser are not. Passes are counted as they are made: padding included, and what
gradient checkpointing computes again left out, as is the custom for model FLOPs utilisation (MFU).
"""

from __future__ import annotations

from collections.abc import Sequence

from ffr.engines.shapes import TextShape, VisionShape

PEAK_TFLOPS: tuple[tuple[str, float], ...] = (
    ("B200", 2250.0),
    ("H200", 989.4),
    ("H100 PCIe", 756.0),
    ("H100 NVL", 835.0),
    ("H100", 989.4),
    ("H800 PCIe", 756.0),
    ("H800", 989.4),
    ("H20", 148.0),
    ("A100", 311.9),
    ("A800", 311.9),
    ("L40S", 362.0),
    ("L40", 181.0),
    ("L4", 121.0),
    ("A40", 149.7),
    ("A10G", 70.0),
    ("A10", 125.0),
    ("RTX 6000 Ada", 364.2),
    ("RTX A6000", 154.8),
    ("RTX 5090", 209.5),
    ("RTX 4090", 165.2),
    ("RTX 3090", 71.0),
)
"""Part of the device's name and dense bfloat16 tensor-core peak (no sparsity); the first match counts."""


def peak_flops(device_name: str) -> float | None:
    """bfloat16 peak of a GPU in operations per second; None for one that the table does not have.

    Example:
        >>> peak_flops("NVIDIA H100 80GB HBM3") / 1e12
        989.4
    """
    return next((peak * 1e12 for name, peak in PEAK_TFLOPS if name in device_name), None)


def text_flops(text: TextShape, *, num_tokens: int, num_pairs: int) -> float:
    """One forward pass of the language model without its head.

    Args:
        text: Its sizes.
        num_tokens: Tokens read.
        num_pairs: (query, key) pairs that attention looks at: n (n + 1) / 2 for a sequence of its own.
    """
    weights = sum(linear.num_weights for linear in text.linears)
    # Scores and weighted values: two products of head_dim a pair, head and layer.
    attention = 4 * text.num_layers * text.num_heads * text.head_dim * num_pairs
    return 2.0 * weights * num_tokens + attention


def head_flops(text: TextShape, num_positions: int) -> float:
    """One forward pass of the head, at so many positions."""
    return 2.0 * text.hidden * text.vocab * num_positions


def vision_flops(vision: VisionShape, grids: Sequence[tuple[int, int, int]]) -> float:
    """One forward pass of the vision tower.

    Args:
        vision: Its sizes.
        grids: Patches of each medium as (pairs of frames, rows, columns).
    """
    per_unit = vision.merge**2
    in_blocks = sum(x.num_weights for x in vision.linears if not x.name.startswith("merger"))
    in_mergers = sum(x.num_weights for x in vision.linears if x.name.startswith("merger"))
    embed = vision.channels * vision.frames_per_patch * vision.patch_px**2 * vision.hidden
    total = 0.0
    for t, rows, columns in grids:
        patches = t * rows * columns
        total += 2.0 * patches * (in_blocks + embed) + 2.0 * patches / per_unit * in_mergers
        whole = t * (rows * columns) ** 2
        side = vision.window_px // vision.patch_px if vision.window_px else 0
        inside = patches * min(side**2, rows * columns) if side else whole
        windowed = vision.num_layers - vision.num_full_layers
        total += 4.0 * vision.hidden * (vision.num_full_layers * whole + windowed * inside)
    return total


def backward_factor(*, lora: bool) -> float:
    """Operations of a backward pass over those of its forward pass.

    The gradient of a layer's input costs as much as the layer, and so does that of its weights. Under
    low-rank adapters the weights' is left out (the adapters' own is below 2 % at rank 64 and 7B).
    """
    return 1.0 if lora else 2.0


def causal_pairs(num_new: int, num_before: int = 0) -> int:
    """Pairs that `num_new` tokens look at, each at itself, the new ones before it and `num_before` older.

    Example:
        >>> causal_pairs(3), causal_pairs(1, 9)
        (6, 10)
    """
    return num_new * num_before + num_new * (num_new + 1) // 2
