"""Keeping the ranks of a run together: every rank takes part in the same collectives, whatever happens on it.

What differs between ranks (failures, lost clips, images beside clips, rows that need stored
log-probabilities) is decided by a sum over all ranks before anybody acts on it, and an error on one rank
ends all of them instead of leaving the others waiting.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch

from ffr.engines.encode import EncodedPrompt, Encoder
from ffr.types import Frame, Observation

T = TypeVar("T")
KINDS = ("video", "image")
"""Media in the order in which they pass the vision tower."""


class PeerError(RuntimeError):
    """Another rank stopped; the message names it and its reason."""


@dataclass(frozen=True)
class Chunk:
    """What one micro-batch needs, on one rank or on any of them.

    Example:
        >>> Chunk(kinds=frozenset({"video"}), scored=False).numbers
        [1.0, 0.0, 0.0]
    """

    kinds: frozenset[str] = frozenset()
    """Kinds of media that its rows show."""
    scored: bool = False
    """Some row needs the log-probabilities of the policy that sampled it."""

    @property
    def numbers(self) -> list[float]:
        """For a sum over ranks; `from_numbers` reads the sum back."""
        return [*(float(kind in self.kinds) for kind in KINDS), float(self.scored)]

    @classmethod
    def from_numbers(cls, numbers: Sequence[float]) -> Chunk:
        kinds = frozenset(kind for kind, number in zip(KINDS, numbers, strict=False) if number)
        return cls(kinds, bool(numbers[len(KINDS)]))


def agree(
    accelerator: Any, error: BaseException | None, norm: float, chunks: Sequence[Chunk]
) -> tuple[float, list[Chunk]]:
    """Joins what the ranks found out about their rows.

    Args:
        accelerator: of the run.
        error: what went wrong on this rank, if anything did.
        norm: tokens or rows of this rank.
        chunks: one per micro-batch; as many on every rank.

    Returns:
        The mean of `norm` over ranks, and for each micro-batch what any rank needs.

    Raises:
        BaseException: this rank's error.
        PeerError: another rank's.
    """
    width = len(KINDS) + 1
    numbers = [float(error is not None), norm, *(n for chunk in chunks for n in chunk.numbers)]
    local = torch.tensor(numbers, dtype=torch.float64, device=accelerator.device)
    total = accelerator.reduce(local, reduction="sum").tolist()
    if total[0]:
        raise_together(accelerator, error)
    starts = range(2, len(total), width)
    return total[1] / accelerator.num_processes, [Chunk.from_numbers(total[at : at + width]) for at in starts]


def raise_together(accelerator: Any, error: BaseException | None) -> None:
    """Raises on every rank if there is an error on any; all ranks must call it.

    Raises:
        BaseException: this rank's error.
        PeerError: another rank's.
    """
    from accelerate.utils import gather_object

    said = f"rank {accelerator.process_index}: {type(error).__name__}: {error}" if error else ""
    everyone = gather_object([said]) if accelerator.num_processes > 1 else [said]
    if error is not None:
        raise error
    if others := [words for words in everyone if words]:
        raise PeerError(f"stopped because of another rank; {'; '.join(others)}")


def main_does(accelerator: Any, work: Callable[[], None]) -> None:
    """Runs `work` on the main process while the others wait; all ranks must call it.

    Raises:
        BaseException: on the main process, what `work` raised.
        PeerError: elsewhere.
    """
    error: BaseException | None = None
    if accelerator.is_main_process:
        try:
            work()
        except Exception as caught:
            error = caught
    raise_together(accelerator, error)


def from_main(compute: Callable[[], T]) -> T:
    """What the main process computes, on all of them: file systems need not show the same to every node.

    Raises:
        BaseException: on the main process, what `compute` raised.
        PeerError: elsewhere.
    """
    from accelerate import PartialState
    from accelerate.utils import broadcast_object_list

    state = PartialState()
    value: list[Any] = [None, ""]
    error: BaseException | None = None
    if state.is_main_process:
        try:
            value[0] = compute()
        except Exception as caught:
            error, value[1] = caught, f"{type(caught).__name__}: {caught}"
    if state.num_processes > 1:
        broadcast_object_list(value)
    if error is not None:
        raise error
    if value[1]:
        raise PeerError(f"stopped because of another rank; rank 0: {value[1]}")
    return value[0]


def stream_of(accelerator: Any, indices: Sequence[int]) -> int:
    """Number that names a rank's random streams in one round.

    Streams are named by what is seen, so a step does not depend on how its questions are spread over
    ranks. Only a question that comes up twice in a step needs its groups told apart: then each rank has
    streams of its own.

    Args:
        accelerator: of the run.
        indices: this rank's questions; as many on every rank.
    """
    local = torch.tensor(list(indices), dtype=torch.long, device=accelerator.device)
    counts = Counter(accelerator.gather(local).tolist())
    return int(accelerator.process_index) if max(counts.values()) > 1 else 0


def filler(encoder: Encoder, kinds: frozenset[str], side_px: int) -> EncodedPrompt:
    """The smallest prompt that shows media of these kinds, in black.

    A rank whose rows show nothing (their clip was lost) would give the vision tower no gradient while
    the other ranks wait for it.

    Args:
        encoder: of the run.
        kinds: one or more of `KINDS`.
        side_px: a side of one visual token (`observe.size_factor_px`).
    """
    pixels = np.zeros((side_px, side_px, 3), dtype=np.uint8)
    digest = hashlib.sha256(pixels.tobytes()).hexdigest()
    black = [Frame(k + 1, k, k / 2, digest, side_px, side_px, pixels) for k in range(2)]
    clip = tuple(black) if "video" in kinds else tuple(black[:1])
    extra = tuple(black[:1]) if kinds == frozenset(KINDS) else ()
    obs = Observation(
        sample_uid="filler",
        frames=clip,
        prompt=".",
        view_id=f"filler/{'+'.join(sorted(kinds))}",
        extra_frames=extra,
        duration_s=1.0,
    )
    return encoder.encode(obs)
