"""An OpenAI-compatible chat client that no server can hang, flood or crash.

Plain `openai.AsyncOpenAI` without its own retries, under our deadlines: its time-outs are per read, so a body
that drips never ends by itself; it reads bodies of any size; it returns a 200 of any shape as if it were a
completion. Here every attempt has a wall-clock limit, every body a size limit, every level a type check.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import time
from collections.abc import AsyncIterator, Callable
from typing import Any, Final
from urllib.parse import urlsplit

import httpx2
import openai

from ffr.config import TeacherConfig
from ffr.fix.completion import Completion, WireCall, read_completion, read_models
from ffr.fix.faults import CircuitBreaker, TeacherFault, status_fault
from ffr.fix.limit import MAX_FREE_RETRIES, AdaptiveLimit, Ticket
from ffr.fix.request import encode_request
from ffr.fix.teacher import FailureKind
from ffr.fix.tools import printable

__all__ = ["ChatClient", "Completion", "WireCall", "read_completion"]

log = logging.getLogger(__name__)

MAX_BODY_BYTES: Final = 8 * 1024 * 1024
BACKOFF_S: Final = 0.5
MAX_BACKOFF_S: Final = 8.0


class BodyTooLarge(Exception):
    """A response body passed `MAX_BODY_BYTES`, or would unpack to an unknown size."""


class _GuardedStream(httpx2.AsyncByteStream):
    """A response body that is given up once it is too long."""

    def __init__(self, stream: httpx2.AsyncByteStream, limit: int) -> None:
        self._stream = stream
        self._limit = limit

    async def __aiter__(self) -> AsyncIterator[bytes]:
        seen = 0
        async for chunk in self._stream:
            seen += len(chunk)
            if seen > self._limit:
                raise BodyTooLarge(f"body is longer than {self._limit} bytes")
            yield chunk

    async def aclose(self) -> None:
        """Close the connection's stream."""
        await self._stream.aclose()


async def _guard(response: httpx2.Response) -> None:
    """Response hook: runs before the body is read."""
    encoding = response.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("", "identity"):
        # We asked for identity; a few kilobytes of gzip can unpack to gigabytes.
        raise BodyTooLarge(f"content-encoding {encoding[:40]!r} was not asked for")
    if isinstance(response.stream, httpx2.AsyncByteStream):
        response.stream = _GuardedStream(response.stream, MAX_BODY_BYTES)


class ChatClient:
    """Sends chat requests to one server: bounded, retried, counted.

    Args:
        cfg: URL, model, key variable, time limits, retries, concurrency, breaker.

    Raises:
        ValueError: No `base_url`.

    Example:
        >>> client = ChatClient(TeacherConfig(base_url="http://127.0.0.1:8000/v1"))
    """

    def __init__(self, cfg: TeacherConfig) -> None:
        if not cfg.base_url:
            raise ValueError(
                "fix.teacher.base_url is empty: give the server's address, e.g. http://127.0.0.1:8000/v1, "
                "or set fix.teacher.type to 'oracle' or 'none'"
            )
        self._cfg = cfg
        self._loop: asyncio.AbstractEventLoop | None = None
        # Built here because it takes long the first time (certificates, lazy imports of the SDK): no deadline
        # should pay for it.
        self._api: openai.AsyncOpenAI | None = _new_api(cfg)
        self.limit = AdaptiveLimit(cfg.concurrency)
        """Requests at a time; it follows what the server bears."""
        # Its own generator: the run's seeds must not depend on the network.
        self._random = random.Random()
        self.breaker = CircuitBreaker(cfg.breaker_failures, cfg.breaker_open_s)

    async def complete(self, body: dict[str, Any], *, deadline: float) -> Completion:
        """One request with its retries.

        Args:
            body: Fields of the chat request, `model` excepted.
            deadline: `time.monotonic()` value after which nothing is waited for.

        Returns:
            The checked completion.

        Raises:
            TeacherFault: It failed for good; the last attempt's fault.
        """
        content = encode_request({"model": self._cfg.model, **body})
        fault = TeacherFault(FailureKind.TIMEOUT, "the deadline passed before the first attempt")
        tries = free = 0
        while tries - free <= self._cfg.max_retries:
            if tries:
                pause = self._pause_s(max(1, tries - free), fault)
                if pause >= deadline - time.monotonic():
                    raise fault
                await asyncio.sleep(pause)
            if deadline - time.monotonic() <= 0:
                raise fault
            if not self.breaker.allow():
                raise TeacherFault(FailureKind.BREAKER_OPEN, f"circuit open after {fault.detail}")
            try:
                completion = read_completion(await self._guarded(_post(content), deadline))
            except TeacherFault as error:
                fault = error
                if fault.crowded and free < MAX_FREE_RETRIES:
                    free += 1  # we asked too much at a time: neither the server's fault nor the request's
                else:
                    self._note_fault(fault)
                if not fault.retryable:
                    raise
                tries += 1
            else:
                self.breaker.succeeded()
                return completion
        raise fault

    async def models(self, *, deadline: float) -> tuple[str, ...]:
        """Names that the server lists under `/models`.

        Raises:
            TeacherFault: It failed, or the list has another form.
        """
        return read_models(await self._guarded(lambda api: api.models.with_raw_response.list(), deadline))

    async def aclose(self) -> None:
        """Close the connections."""
        api, self._api = self._api, None
        if api is not None and self._loop is asyncio.get_running_loop():
            await api.close()

    async def _guarded(self, send: Callable[[openai.AsyncOpenAI], Any], deadline: float) -> bytes:
        """One request's whole body; whatever goes wrong is a `TeacherFault`."""
        api, limit = self._bound_api(), self.limit
        ticket: Ticket | None = None
        clock = asyncio.timeout(None)
        try:
            async with asyncio.timeout_at(_loop_time(deadline)):
                ticket = await limit.enter()
                try:
                    async with asyncio.timeout(self._cfg.attempt_timeout_s) as clock:
                        raw: Any = await send(api)
                        content: bytes = raw.content
                finally:
                    limit.leave()
        except Exception as error:
            # The SDK lets errors of its parser and of the HTTP library through; none may pass this door.
            fault = _fault_of(error, os.environ.get(self._cfg.api_key_env) or "none")
            if ticket is not None:
                silent = clock.expired() or isinstance(error, openai.APITimeoutError)
                self._note_overload(fault, ticket, limit, silent=silent)
            raise fault from error
        limit.succeeded()
        return content

    def _note_overload(
        self, fault: TeacherFault, ticket: Ticket, limit: AdaptiveLimit, *, silent: bool
    ) -> None:
        """Send fewer requests at a time to a server that says, or shows, that it has too many."""
        refused = fault.status in (429, 503)
        fault.crowded = refused and not ticket.alone
        if (refused or silent) and limit.overloaded(ticket):
            log.warning(
                "teacher %s: %s; at most %d requests at a time from now on",
                self._cfg.base_url,
                fault,
                limit.current,
            )

    def _note_fault(self, fault: TeacherFault) -> None:
        was_open = self.breaker.times_opened
        self.breaker.failed(fault.kind)
        if self.breaker.times_opened > was_open:
            log.warning("teacher %s: circuit opened after %s", self._cfg.base_url, fault)

    def _bound_api(self) -> openai.AsyncOpenAI:
        """The SDK client of the running loop: connections and places belong to one loop."""
        loop = asyncio.get_running_loop()
        if self._api is None or self._loop not in (None, loop):
            self._api = _new_api(self._cfg)
            self.limit = AdaptiveLimit(self._cfg.concurrency)
        self._loop = loop
        return self._api

    def _pause_s(self, attempt: int, fault: TeacherFault) -> float:
        """Full jitter around an exponential backoff; never earlier than the server asked for."""
        jitter = self._random.uniform(0.0, min(MAX_BACKOFF_S, BACKOFF_S * 2 ** (attempt - 1)))
        return max(jitter, fault.retry_after_s or 0.0)


def _new_api(cfg: TeacherConfig) -> openai.AsyncOpenAI:
    local = (urlsplit(cfg.base_url).hostname or "") in ("localhost", "127.0.0.1", "::1")
    http = httpx2.AsyncClient(
        timeout=httpx2.Timeout(cfg.attempt_timeout_s, connect=min(10.0, cfg.attempt_timeout_s)),
        limits=httpx2.Limits(max_connections=cfg.concurrency),
        follow_redirects=False,
        trust_env=not local,
        event_hooks={"response": [_guard]},
    )
    api = openai.AsyncOpenAI(
        # Given explicitly: the SDK would send its own environment's key to any address.
        api_key=os.environ.get(cfg.api_key_env) or "none",
        base_url=cfg.base_url,
        max_retries=0,
        http_client=http,
        default_headers={"Accept-Encoding": "identity"},
    )
    # Taken from the environment by the SDK; they belong to another service.
    api.organization = None
    api.project = None
    return api


def _post(content: bytes) -> Callable[[openai.AsyncOpenAI], Any]:
    """Sends a chat request that is bytes already, past the SDK's walk over every message and picture."""
    headers = {"content-type": "application/json"}
    return lambda api: api.post(
        "/chat/completions", cast_to=httpx2.Response, content=content, options={"headers": headers}
    )


def _fault_of(error: Exception, key: str) -> TeacherFault:
    """What a failed request is called; `key` never shows in its words."""
    if isinstance(error, TimeoutError):
        return TeacherFault(FailureKind.TIMEOUT, "no complete reply in time")
    if isinstance(error, openai.APITimeoutError):
        return TeacherFault(FailureKind.TIMEOUT, "the server fell silent")
    if isinstance(error, openai.APIConnectionError):
        kind = FailureKind.TOO_LARGE if _caused_by(error, BodyTooLarge) else FailureKind.CONNECTION
        return TeacherFault(kind, _cause_text(error))
    if isinstance(error, openai.APIStatusError):
        message = printable(error.message).replace(key, "***")
        return status_fault(error.status_code, error.response.headers, message)
    if isinstance(error, BodyTooLarge):
        return TeacherFault(FailureKind.TOO_LARGE, str(error))
    return TeacherFault(FailureKind.INVALID_RESPONSE, f"{type(error).__name__}: {error}")


def _loop_time(deadline: float) -> float:
    """A `time.monotonic()` deadline on the running loop's clock."""
    return asyncio.get_running_loop().time() + (deadline - time.monotonic())


def _caused_by(error: BaseException, kind: type[BaseException]) -> bool:
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, kind):
            return True
        seen = seen.__cause__ or seen.__context__
    return False


def _cause_text(error: BaseException) -> str:
    cause = error.__cause__ or error
    return f"{type(cause).__name__}: {cause}"[:200]
