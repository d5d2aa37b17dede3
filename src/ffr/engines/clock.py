"""Where the time of a step goes: seconds by phase, every second counted once. Torch-free.

A moment belongs to the phase that was entered last and is still open, so an inner phase is taken out of
the outer one and the phases of a step add up to its duration. That also holds where coroutines interleave.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from ffr.types import Observation, Rollout

PHASES: Mapping[str, str] = {
    "observe": "clips are decoded and resized",
    "generate": "the student samples, second tries included",
    "vision": "the vision tower's forward passes (its backward pass is part of update)",
    "verify": "answers are judged",
    "fix": "the teacher is waited for, and its patches pass the gate",
    "score": "log-probabilities of the policy that sampled and of the reference, advantages",
    "update": "forward and backward passes of the loss, the optimiser's step",
    "save": "checkpoints are written",
    "other": "everything else: loading, encoding, collectives between phases, logging",
}
"""What each phase means, in the order of a step."""


class Clock:
    """Seconds by phase.

    Args:
        synchronize: called at every border of a phase: a GPU works while Python goes on, and without it a
            phase may be charged for what an earlier one started. It costs speed.
        now: the time in seconds.

    Example:
        >>> ticks = iter([0.0, 1.0, 4.0, 6.0, 6.0])
        >>> clock = Clock(now=lambda: next(ticks))
        >>> with clock.phase("fix"):
        ...     with clock.phase("generate"):
        ...         pass
        >>> clock.take()
        {'fix': 3.0, 'generate': 3.0}
    """

    def __init__(
        self, *, synchronize: Callable[[], None] | None = None, now: Callable[[], float] = time.perf_counter
    ) -> None:
        self.synchronize = synchronize
        self._now = now
        self._lock = threading.RLock()  # rollouts may be sampled on an event loop's thread
        self._open: list[tuple[object, str]] = []
        self._base = "other"
        self._mark: float | None = None
        self._seconds: Counter[str] = Counter()

    @property
    def current(self) -> str:
        """The phase that this moment belongs to."""
        return self._open[-1][1] if self._open else self._base

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time inside belongs to `name`."""
        token = object()
        self.enter(name, token)
        try:
            yield
        finally:
            self.leave(token)

    def enter(self, name: str, token: object) -> None:
        """Begins a phase that `leave` with the same token ends; `phase` where a block can be written."""
        with self._lock:
            self._turn()
            self._open.append((token, name))

    def leave(self, token: object) -> None:
        """Ends the phase of a token; phases of other tokens stay open."""
        with self._lock:
            self._turn()
            self._open = [entry for entry in self._open if entry[0] is not token]

    def base(self, name: str) -> None:
        """Time outside all phases belongs to `name` from now on."""
        with self._lock:
            self._turn()
            self._base = name

    def take(self) -> dict[str, float]:
        """Seconds by phase since the last call; starts anew."""
        with self._lock:
            self._turn()
            taken, self._seconds = self._seconds, Counter()
        return {name: seconds for name, seconds in taken.items() if seconds}

    def _turn(self) -> None:
        if self.synchronize is not None:
            self.synchronize()
        now = self._now()
        # The clock starts with the first phase: what came before is no part of a step.
        if self._mark is not None:
            self._seconds[self.current] += now - self._mark  # type: ignore[assignment]
        self._mark = now


class TimedSampler:
    """A sampler whose work is counted as `generate`.

    Args:
        sampler: who samples.
        clock: of the run.

    Example:
        >>> rollouts = await TimedSampler(sampler, clock).sample([obs], num=8)  # doctest: +SKIP
    """

    def __init__(self, sampler: Any, clock: Clock) -> None:
        self._sampler = sampler
        self._clock = clock

    async def sample(
        self, observations: Sequence[Observation], *, num: int, source: str = "policy"
    ) -> list[list[Rollout]]:
        """As the sampler does."""
        with self._clock.phase("generate"):
            return await self._sampler.sample(observations, num=num, source=source)

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._sampler, name)
        if name != "sample_one":
            return found

        async def sample_one(*args: Any, **kwargs: Any) -> Rollout:
            with self._clock.phase("generate"):
                return await found(*args, **kwargs)

        return sample_one
