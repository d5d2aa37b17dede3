"""Transport faults: what they are called, which are worth another try, and when to stop trying."""

from __future__ import annotations

import email.utils
import math
import re
import time
from collections.abc import Callable, Mapping
from typing import Final

from ffr.fix.teacher import FailureKind

RETRYABLE: Final = frozenset(
    {FailureKind.TIMEOUT, FailureKind.CONNECTION, FailureKind.RATE_LIMITED, FailureKind.SERVER_ERROR}
)
_UNHEALTHY: Final = frozenset(
    {FailureKind.TIMEOUT, FailureKind.CONNECTION, FailureKind.SERVER_ERROR, FailureKind.INVALID_RESPONSE}
)
"""Faults that say the server is down; a 429 says that it lives."""
_TOO_LONG: Final = re.compile(
    r"context[ _]length|context[ _]window|max_model_len|maximum (?:model|input|prompt|sequence) length"
    r"|(?:prompt|input) is too long|too many (?:input |prompt )?tokens",
    re.IGNORECASE,
)
"""How vLLM, SGLang, llama.cpp and OpenAI say that a prompt does not fit."""
MAX_OPEN_S: Final = 300.0


class TeacherFault(Exception):
    """One failed request: its kind, words for the trace, and how long the server asked us to wait.

    Example:
        >>> TeacherFault(FailureKind.RATE_LIMITED, "429", retry_after_s=2.0).retryable
        True
    """

    def __init__(
        self, kind: FailureKind, detail: str, *, status: int = 0, retry_after_s: float | None = None
    ) -> None:
        super().__init__(f"{kind}: {detail[:300]}")
        self.kind = kind
        self.status = status
        self.detail = detail[:300]
        self.retry_after_s = retry_after_s
        self.crowded = False
        """The server refused it (429, 503) while other requests of ours were under way: fewer may pass."""

    @property
    def refuses_form(self) -> bool:
        """True if the server may have stumbled over a field of the request and take it in a weaker form."""
        return self.kind is FailureKind.BAD_REQUEST and self.status in (400, 422)

    @property
    def retryable(self) -> bool:
        """True if the same request may succeed a moment later."""
        return self.kind in RETRYABLE


def status_fault(status: int, headers: Mapping[str, str], detail: str) -> TeacherFault:
    """The fault of an HTTP error status; 408, 409, 425, 429 and 5xx may be tried again."""
    if status in (401, 403):
        kind = FailureKind.AUTH
    elif status == 429:
        kind = FailureKind.RATE_LIMITED
    elif status in (408, 409, 425) or status >= 500:
        kind = FailureKind.SERVER_ERROR
    elif _TOO_LONG.search(detail):
        kind = FailureKind.PROMPT_TOO_LONG
    else:
        kind = FailureKind.BAD_REQUEST
    return TeacherFault(kind, f"HTTP {status}: {detail}", status=status, retry_after_s=retry_after_s(headers))


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """Seconds of a Retry-After header, given as a number or as a date; None without a usable one."""
    value = headers.get("retry-after", "").strip()[:64]
    if not value:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(value).timestamp() - time.time()
        except (ValueError, OverflowError, TypeError):
            return None
    return max(0.0, seconds) if math.isfinite(seconds) else None


class CircuitBreaker:
    """Stops asking a server that is down, so that a dead teacher costs microseconds and not deadlines.

    Closed until `failures` consecutive unhealthy faults; then open for `open_s`; then one probe may pass. A
    failed probe opens it for twice as long, at most 300 s. A refused key opens it at once.

    Args:
        failures: Consecutive faults that open it.
        open_s: First time of rest, seconds.
        clock: Monotonic seconds.

    Example:
        >>> breaker = CircuitBreaker(failures=1, open_s=30.0)
        >>> breaker.failed(FailureKind.CONNECTION); breaker.allow()
        False
    """

    def __init__(self, failures: int, open_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._limit = failures
        self._first_open_s = open_s
        self._open_s = open_s
        self._clock = clock
        self._failures = 0
        self._open_until: float | None = None
        self._probing_since: float | None = None
        self.times_opened = 0

    def allow(self) -> bool:
        """True if a request may be sent now."""
        if self._open_until is None:
            return True
        now = self._clock()
        if now < self._open_until:
            return False
        # A probe whose outcome was never reported (cancelled) must not close the door for ever.
        if self._probing_since is not None and now - self._probing_since < self._open_s:
            return False
        self._probing_since = now
        return True

    def succeeded(self) -> None:
        """A request was answered: closed again."""
        self._failures = 0
        self._open_until = None
        self._probing_since = None
        self._open_s = self._first_open_s

    def failed(self, kind: FailureKind) -> None:
        """A request failed; faults that are not the server's health change nothing."""
        if kind is FailureKind.AUTH:
            self._open()
        elif kind in _UNHEALTHY:
            self._failures += 1
            if self._probing_since is not None:
                self._open_s = min(MAX_OPEN_S, 2 * self._open_s)
                self._open()
            elif self._open_until is None and self._failures >= self._limit:
                self._open()
        elif kind in (FailureKind.RATE_LIMITED, FailureKind.BAD_REQUEST, FailureKind.PROMPT_TOO_LONG):
            self._failures = 0

    def _open(self) -> None:
        self._open_until = self._clock() + self._open_s
        self._probing_since = None
        self.times_opened += 1
