"""How many requests a server bears at a time, found by trying: additive increase, multiplicative decrease."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass
from typing import Final

MAX_FREE_RETRIES: Final = 8
"""Of one request that was refused while others were under way: enough to halve 256 down to 1."""


@dataclass(slots=True)
class Ticket:
    """One request's place.

    Example:
        >>> Ticket(era=0, alone=True).alone
        True
    """

    era: int
    """How often the limit had been lowered when it was sent."""
    alone: bool
    """No other request was under way when it was sent."""


class AdaptiveLimit:
    """Places for requests, between 1 and `highest`; of one event loop.

    Starts at `highest`. A sign of overload (429, 503, an attempt that timed out) halves the limit, once for
    all requests that were sent before; as many successes as the limit raise it by one.

    Args:
        highest: Places when the server bears them.

    Example:
        >>> limit = AdaptiveLimit(16)
        >>> limit.overloaded(Ticket(era=0, alone=False)), limit.current
        (True, 8)
    """

    def __init__(self, highest: int) -> None:
        self.highest = highest
        self.current = highest
        self.lowest = highest
        """Smallest limit so far."""
        self.num_halved = 0
        self._under_way = 0
        self._successes = 0
        self._waiting: deque[asyncio.Future[None]] = deque()

    async def enter(self) -> Ticket:
        """Wait for a place, first come, first served."""
        if self._under_way >= self.current or self._waiting:
            place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.append(place)
            self._wake()
            try:
                await place
            except asyncio.CancelledError:
                if place.done() and not place.cancelled():  # the place was given just before
                    self._under_way -= 1
                    self._wake()
                elif place in self._waiting:
                    self._waiting.remove(place)
                raise
        else:
            self._under_way += 1
        return Ticket(self.num_halved, self._under_way == 1)

    def leave(self) -> None:
        """Give the place back."""
        self._under_way -= 1
        self._wake()

    def succeeded(self) -> None:
        """Count an answered request."""
        self._successes += 1
        if self._successes >= self.current:
            self._successes = 0
            self.current = min(self.highest, self.current + 1)
            self._wake()

    def overloaded(self, ticket: Ticket) -> bool:
        """A request met overload; True if the limit was lowered for it."""
        self._successes = 0
        if ticket.era != self.num_halved or self.current == 1:
            return False
        self.current = max(1, self.current // 2)
        self.lowest = min(self.lowest, self.current)
        self.num_halved += 1
        return True

    def _wake(self) -> None:
        while self._waiting and self._under_way < self.current:
            place = self._waiting.popleft()
            if not place.done():
                self._under_way += 1
                place.set_result(None)
