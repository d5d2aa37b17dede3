"""The sizes of a student, read from its `config.json`: parameters, linear layers, caches. Torch-free.

Known architectures: Qwen2.5-VL and Qwen3-VL. Of the released sizes a table is shipped, so that a run can
be planned on a machine that has neither the weights nor a way to the hub.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

ARCHITECTURES = ("qwen2_5_vl", "qwen3_vl")
_SHIPPED = "micro-student"


class ShapeError(ValueError):
    """A model whose sizes cannot be told; the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class Linear:
    """One kind of linear layer, `count` of them, as PEFT sees them.

    Example:
        >>> Linear("self_attn.q_proj", 3584, 3584, 28).num_weights
        359661568
    """

    name: str
    """End of the module's name."""
    inputs: int
    outputs: int
    count: int
    vision: bool = False

    @property
    def num_weights(self) -> int:
        """Weights of all of them, biases not counted."""
        return self.inputs * self.outputs * self.count


@dataclass(frozen=True, slots=True)
class TextShape:
    """The language model.

    Example:
        >>> KNOWN["Qwen/Qwen2.5-VL-7B-Instruct"].text.num_layers
        28
    """

    hidden: int
    intermediate: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab: int
    tied: bool
    """The head shares the embedding's weights."""
    qkv_bias: bool
    qk_norm: bool

    @property
    def linears(self) -> tuple[Linear, ...]:
        """Its linear layers but the head."""
        h, i, n = self.hidden, self.intermediate, self.num_layers
        queries, keys = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        return (
            Linear("self_attn.q_proj", h, queries, n),
            Linear("self_attn.k_proj", h, keys, n),
            Linear("self_attn.v_proj", h, keys, n),
            Linear("self_attn.o_proj", queries, h, n),
            Linear("mlp.gate_proj", h, i, n),
            Linear("mlp.up_proj", h, i, n),
            Linear("mlp.down_proj", i, h, n),
        )

    @property
    def num_parameters(self) -> int:
        """All of them; a tied head is counted once."""
        queries, keys = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        per_layer = 2 * self.hidden + (queries + 2 * keys) * self.qkv_bias + 2 * self.head_dim * self.qk_norm
        embeddings = self.vocab * self.hidden * (1 if self.tied else 2)
        weights = sum(linear.num_weights for linear in self.linears)
        return weights + self.num_layers * per_layer + self.hidden + embeddings

    @property
    def cache_elements(self) -> int:
        """Numbers that a token leaves in the key-value cache."""
        return 2 * self.num_layers * self.num_kv_heads * self.head_dim


@dataclass(frozen=True, slots=True)
class VisionShape:
    """The vision tower.

    Example:
        >>> KNOWN["Qwen/Qwen2.5-VL-7B-Instruct"].vision.factor_px
        28
    """

    hidden: int
    intermediate: int
    num_layers: int
    num_heads: int
    out_hidden: int
    patch_px: int
    merge: int
    frames_per_patch: int
    channels: int
    gated: bool
    """A gated MLP and RMS norms (Qwen2.5-VL); else two layers and layer norms (Qwen3-VL)."""
    num_full_layers: int
    """Layers that attend over a whole pair of frames; the others attend inside windows."""
    window_px: int
    num_positions: int
    """Learned position embeddings; 0 without."""
    num_mergers: int
    """The merger and those of deep features."""

    @property
    def factor_px(self) -> int:
        """A side of one visual token."""
        return self.patch_px * self.merge

    @property
    def linears(self) -> tuple[Linear, ...]:
        """Its linear layers."""
        h, i, n = self.hidden, self.intermediate, self.num_layers
        wide = h * self.merge**2
        mlp = ("gate_proj", "up_proj", "down_proj") if self.gated else ("linear_fc1", "linear_fc2")
        first, last = ("mlp.0", "mlp.2") if self.gated else ("linear_fc1", "linear_fc2")
        return (
            Linear("attn.qkv", h, 3 * h, n, vision=True),
            Linear("attn.proj", h, h, n, vision=True),
            *(Linear(f"mlp.{name}", h, i, n, vision=True) for name in mlp[:-1]),
            Linear(f"mlp.{mlp[-1]}", i, h, n, vision=True),
            Linear(f"merger.{first}", wide, wide, self.num_mergers, vision=True),
            Linear(f"merger.{last}", wide, self.out_hidden, self.num_mergers, vision=True),
        )

    @property
    def num_parameters(self) -> int:
        """All of them."""
        h, wide = self.hidden, self.hidden * self.merge**2
        patch = self.channels * self.frames_per_patch * self.patch_px**2 * h
        biases = sum(linear.outputs * linear.count for linear in self.linears)
        norms = self.num_layers * 2 * h * (1 if self.gated else 2)
        extra = h if self.gated else h + self.num_positions * h + 2 * h + (self.num_mergers - 1) * 2 * wide
        return patch + sum(linear.num_weights for linear in self.linears) + biases + norms + extra


@dataclass(frozen=True, slots=True)
class Shape:
    """A student's sizes.

    Example:
        >>> round(KNOWN["Qwen/Qwen2.5-VL-7B-Instruct"].num_parameters / 1e9, 2)
        8.29
    """

    text: TextShape
    vision: VisionShape

    @property
    def num_parameters(self) -> int:
        """Language model and vision tower."""
        return self.text.num_parameters + self.vision.num_parameters

    def adapter_parameters(self, rank: int, targets: tuple[str, ...], *, frozen_vision: bool) -> int:
        """Parameters of low-rank adapters: rank * (inputs + outputs) for each layer that has one.

        Args:
            rank: of the adapters.
            targets: ends of module names, or `all-linear` (`model.lora.target_modules`).
            frozen_vision: the vision tower gets none.
        """
        linears = (*self.text.linears, *(() if frozen_vision else self.vision.linears))
        chosen = [x for x in linears if targets == ("all-linear",) or _ends_with(x.name, targets)]
        return sum(rank * (x.inputs + x.outputs) * x.count for x in chosen)


def _ends_with(name: str, targets: tuple[str, ...]) -> bool:
    return any(name == target or name.endswith(f".{target}") for target in targets)


def shape_of(config: Mapping[str, Any]) -> Shape:
    """The sizes that a `config.json` states.

    Args:
        config: Its content; text sizes may lie in `text_config` or beside `vision_config`.

    Raises:
        ShapeError: Another architecture, or a size that is missing.
    """
    kind = config.get("model_type")
    if kind not in ARCHITECTURES:
        raise ShapeError(f"model_type {kind!r}: sizes are known of {' and '.join(ARCHITECTURES)} only")
    try:
        text = _text(config.get("text_config") or config, config, kind)
        return Shape(text, _vision(config["vision_config"], kind))
    except (KeyError, TypeError) as error:
        raise ShapeError(f"config.json of a {kind} without {error}") from error


def _text(text: Mapping[str, Any], config: Mapping[str, Any], kind: str) -> TextShape:
    heads = int(text["num_attention_heads"])
    return TextShape(
        hidden=int(text["hidden_size"]),
        intermediate=int(text["intermediate_size"]),
        num_layers=int(text["num_hidden_layers"]),
        num_heads=heads,
        num_kv_heads=int(text.get("num_key_value_heads") or heads),
        head_dim=int(text.get("head_dim") or text["hidden_size"] // heads),
        vocab=int(text["vocab_size"]),
        tied=bool(config.get("tie_word_embeddings", text.get("tie_word_embeddings", False))),
        qkv_bias=kind == "qwen2_5_vl" or bool(text.get("attention_bias", False)),
        qk_norm=kind == "qwen3_vl",
    )


def _vision(vision: Mapping[str, Any], kind: str) -> VisionShape:
    gated, depth = kind == "qwen2_5_vl", int(vision["depth"])
    return VisionShape(
        hidden=int(vision["hidden_size"]),
        intermediate=int(vision["intermediate_size"]),
        num_layers=depth,
        num_heads=int(vision["num_heads"]),
        out_hidden=int(vision["out_hidden_size"]),
        patch_px=int(vision.get("patch_size") or vision["spatial_patch_size"]),
        merge=int(vision.get("spatial_merge_size", 2)),
        frames_per_patch=int(vision.get("temporal_patch_size", 2)),
        channels=int(vision.get("in_channels", 3)),
        gated=gated,
        num_full_layers=len(vision.get("fullatt_block_indexes", ())) if gated else depth,
        window_px=int(vision.get("window_size", 112)) if gated else 0,
        num_positions=0 if gated else int(vision["num_position_embeddings"]),
        num_mergers=1 if gated else 1 + len(vision["deepstack_visual_indexes"]),
    )


def find_shape(path: str) -> tuple[Shape, str]:
    """The sizes of the model that `model.path` names, and where they were read.

    Looked at, in this order: the directory, the student inside this package, the hub's local cache, the
    shipped table. Nothing is fetched.

    Raises:
        ShapeError: None of them has it.
    """
    for file in (Path(packaged(path)) / "config.json", _cached(path)):
        if file is not None and file.is_file():
            return shape_of(_read(file)), str(file)
    if path in KNOWN:
        return KNOWN[path], "the table of released sizes"
    raise ShapeError(
        f"model.path = {path!r}: no config.json there nor in the hub's local cache, and not in the shipped "
        f"table ({', '.join(KNOWN)}); download it first, or name a directory"
    )


def packaged(path: str) -> str:
    """`path`, or the directory of the student inside this package if it names that."""
    return path if path != _SHIPPED else str(Path(str(resources.files("ffr"))) / "assets" / _SHIPPED)


def _read(file: Path) -> dict[str, Any]:
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ShapeError(f"{file}: {error}; restore the file") from error
    if not isinstance(config, dict):
        raise ShapeError(f"{file}: not a JSON object; restore the file")
    return config


def _cached(path: str) -> Path | None:
    try:
        from huggingface_hub import try_to_load_from_cache
    except ImportError:
        return None
    if path.count("/") != 1 or path.startswith("."):
        return None
    found = try_to_load_from_cache(path, "config.json")
    return Path(found) if isinstance(found, str) else None


def _qwen2_5(
    hidden: int, intermediate: int, layers: int, heads: int, kv_heads: int, *, vocab: int, wide: int = 3420
) -> Shape:
    text = TextShape(
        hidden, intermediate, layers, heads, kv_heads, 128, vocab, vocab == 151_936, qkv_bias=True,
        qk_norm=False,
    )  # fmt: skip
    vision = VisionShape(
        1280, wide, 32, 16, hidden, 14, 2, 2, 3, gated=True, num_full_layers=4, window_px=112,
        num_positions=0, num_mergers=1,
    )  # fmt: skip
    return Shape(text, vision)


def _qwen3(
    hidden: int, intermediate: int, layers: int, heads: int, *, tied: bool, tower: tuple[int, int, int]
) -> Shape:
    text = TextShape(hidden, intermediate, layers, heads, 8, 128, 151_936, tied, qkv_bias=False, qk_norm=True)
    depth, width, wide = tower
    vision = VisionShape(
        width, wide, depth, 16, hidden, 16, 2, 2, 3, gated=False, num_full_layers=depth, window_px=0,
        num_positions=2304, num_mergers=4,
    )  # fmt: skip
    return Shape(text, vision)


_SMALL, _LARGE = (24, 1024, 4096), (27, 1152, 4304)
KNOWN: Mapping[str, Shape] = {
    "Qwen/Qwen2.5-VL-3B-Instruct": _qwen2_5(2048, 11_008, 36, 16, 2, vocab=151_936),
    "Qwen/Qwen2.5-VL-7B-Instruct": _qwen2_5(3584, 18_944, 28, 28, 4, vocab=152_064),
    "Qwen/Qwen2.5-VL-32B-Instruct": _qwen2_5(5120, 27_648, 64, 40, 8, vocab=152_064, wide=3456),
    "Qwen/Qwen2.5-VL-72B-Instruct": _qwen2_5(8192, 29_568, 80, 64, 8, vocab=152_064, wide=3456),
    "Qwen/Qwen3-VL-2B-Instruct": _qwen3(2048, 6144, 28, 16, tied=True, tower=_SMALL),
    "Qwen/Qwen3-VL-4B-Instruct": _qwen3(2560, 9728, 36, 32, tied=True, tower=_SMALL),
    "Qwen/Qwen3-VL-8B-Instruct": _qwen3(4096, 12_288, 36, 32, tied=False, tower=_LARGE),
    "Qwen/Qwen3-VL-32B-Instruct": _qwen3(5120, 25_600, 64, 64, tied=False, tower=_LARGE),
}
"""Sizes of the released models, as their config.json states them."""
