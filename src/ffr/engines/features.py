"""Visual features that are still right: kept between passes while nothing can change them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ffr.engines.encode import Medium

_CACHE_BYTES = 256 * 2**20
Key = tuple[Medium, Hashable]


@dataclass(frozen=True, eq=False)
class Features:
    """What the vision tower made of one medium.

    Example:
        >>> Features(dict, torch.zeros(4, 8)).nbytes
        128
    """

    kind: type
    """Class of the tower's output, which the model's forward takes back."""
    pooled: Tensor
    """(visual tokens, hidden)."""
    deep: tuple[Tensor, ...] | None = None
    """The same for each deep layer that is fed in, where the model has them."""

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(x.nbytes for x in (self.pooled, *(self.deep or ())))


def fixed_tower(inner: nn.Module) -> Hashable | None:
    """Names the state of a vision tower whose output is a function of the pixels alone.

    None where the tower is trained, and where its weights are sharded over processes: a rank that finds
    its features kept would then miss a collective that the others wait in. Only towers called `visual`
    (Qwen's) are known to hold everything between pixels and features.
    """
    tower = getattr(getattr(inner, "model", inner), "visual", None)
    if not isinstance(tower, nn.Module):
        return None
    parameters = list(tower.parameters())
    if any(p.requires_grad or _is_sharded(p) for p in parameters):
        return None
    device = parameters[0].device.type
    precision = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
    # Versions count in-place writes: loading other weights makes another state.
    return tower, sum(p._version for p in parameters), precision


def _is_sharded(parameter: nn.Parameter) -> bool:
    return hasattr(parameter, "ds_id") or type(parameter).__name__ in ("FlatParameter", "DTensor")


def is_sharded(model: nn.Module) -> bool:
    """True for a model of whose weights a process holds pieces only (FSDP, ZeRO-3).

    Asked of the model, not of its weights: FSDP2 leaves some of them whole between two passes.
    """
    from torch.distributed.fsdp import FSDPModule

    return isinstance(model, FSDPModule) or any(hasattr(p, "ds_id") for p in model.parameters())


@dataclass
class FeatureCache:
    """Features by medium and state of the tower; the oldest go when the limit is reached.

    Example:
        >>> FeatureCache(limit_bytes=0).num_kept
        0
    """

    limit_bytes: int = _CACHE_BYTES
    _kept: OrderedDict[Key, Features] = field(default_factory=OrderedDict[Key, Features])
    _held: int = 0

    @property
    def num_kept(self) -> int:
        """Media whose features are kept."""
        return len(self._kept)

    def get(self, key: Key) -> Features | None:
        """Features kept under a key."""
        if key in self._kept:
            self._kept.move_to_end(key)
        return self._kept.get(key)

    def clear(self) -> None:
        """Drops everything."""
        self._kept.clear()
        self._held = 0

    def put(self, found: Mapping[Key, Features]) -> None:
        """Keeps features."""
        for key, features in found.items():
            if key not in self._kept:
                self._kept[key] = features
                self._held += features.nbytes
        while self._held > self.limit_bytes and self._kept:
            self._held -= self._kept.popitem(last=False)[1].nbytes


def split_output(out: Any) -> list[Features]:
    """A tower's output as one `Features` per medium."""
    deep = getattr(out, "deepstack_features", None)
    return [
        Features(type(out), pooled, None if deep is None else tuple(layer[k] for layer in deep))
        for k, pooled in enumerate(out.pooler_output)
    ]


def join_output(parts: list[Features]) -> Any:
    """The tower's output for media in this order, each as often as it is named."""
    fields: dict[str, Any] = {"pooler_output": tuple(part.pooled for part in parts)}
    if (deep := parts[0].deep) is not None:
        fields["deepstack_features"] = [
            tuple(part.deep[i] for part in parts if part.deep is not None) for i in range(len(deep))
        ]
    return parts[0].kind(**fields)
