"""What the loss sees: rollouts with advantages, in micro-batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from ffr.engines.encode import EncodedPrompt


@dataclass(frozen=True, eq=False)
class TrainRow:
    """One rollout of the loss.

    Example:
        >>> TrainRow(prompt=prompt, completion=(5, 9), advantage=0.7)  # doctest: +SKIP
    """

    prompt: EncodedPrompt
    """The observation it is trained in."""
    completion: tuple[int, ...]
    advantage: float
    treatment: str = "own"
    sampled_in: EncodedPrompt | None = None
    """The observation it was sampled in, where that is another one."""
    active: bool = True
    """False: not in the mask and not in any count."""
    sampled_logprobs: tuple[float, ...] | None = None
    """The sampler's, of a row that is trained in the view it was sampled in."""

    @property
    def has_own_view(self) -> bool:
        """True if the row was sampled in another view than it is trained in."""
        return self.treatment == "true_is"


@dataclass(frozen=True, eq=False)
class MicroBatch:
    """Rows of one forward and backward pass.

    Example:
        >>> MicroBatch(rows=rows, normalizer=80.0, old=None, scored=None, ref=None)  # doctest: +SKIP
    """

    rows: Sequence[TrainRow]
    normalizer: float
    """Tokens or rows of the whole step over all ranks, divided by the number of ranks."""
    old: Tensor | None
    """log pi_old, (B, T); None where every row takes its own current ones (ratio exactly 1)."""
    scored: Tensor | None
    """(B,), True for the rows that `old` holds."""
    ref: Tensor | None
    """log pi_ref under the observation of training, (B, T)."""
