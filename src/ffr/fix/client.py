"""An OpenAI-compatible chat client that no server can hang, flood or crash.

Plain `openai.AsyncOpenAI` without its own retries, under our deadlines: its time-outs are per read, so a body
that drips never ends by itself; it reads bodies of any size; it returns a 200 of any shape as if it were a
completion. Here every attempt has a wall-clock limit, every body a size limit, every level a type check.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import random
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any, Final, cast
from urllib.parse import urlsplit

import httpx2
import openai

from ffr.config import TeacherConfig
from ffr.fix.faults import CircuitBreaker, TeacherFault, status_fault
from ffr.fix.teacher import FailureKind
from ffr.fix.tools import printable

log = logging.getLogger(__name__)

MAX_BODY_BYTES: Final = 8 * 1024 * 1024
MAX_TOOL_CALLS_PER_TURN: Final = 16
MAX_TEXT_CHARS: Final = 400_000
BACKOFF_S: Final = 0.5
MAX_BACKOFF_S: Final = 8.0


@dataclass(frozen=True, slots=True)
class WireCall:
    """A tool call as the server wrote it; `arguments` is still text.

    Example:
        >>> WireCall(call_id="c1", name="get_frames", arguments='{"start": 1, "end": 2}').name
        'get_frames'
    """

    call_id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Completion:
    """One checked reply.

    Example:
        >>> Completion(text="{}", finish="stop").tool_calls
        ()
    """

    text: str
    finish: str
    tool_calls: tuple[WireCall, ...] = ()
    refusal: str = ""
    reasoning: str = ""
    """Thoughts that the server keeps apart (`reasoning_content`, or `reasoning`)."""
    prompt_tokens: int = 0
    completion_tokens: int = 0


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
        self._slots = asyncio.Semaphore(cfg.concurrency)
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
        fault = TeacherFault(FailureKind.TIMEOUT, "the deadline passed before the first attempt")
        for attempt in range(self._cfg.max_retries + 1):
            if attempt:
                pause = self._pause_s(attempt, fault)
                if pause >= deadline - time.monotonic():
                    raise fault
                await asyncio.sleep(pause)
            if deadline - time.monotonic() <= 0:
                raise fault
            if not self.breaker.allow():
                raise TeacherFault(FailureKind.BREAKER_OPEN, f"circuit open after {fault.detail}")
            try:
                completion = await self._attempt(body, deadline)
            except TeacherFault as error:
                fault = error
                was_open = self.breaker.times_opened
                self.breaker.failed(error.kind)
                if self.breaker.times_opened > was_open:
                    log.warning("teacher %s: circuit opened after %s", self._cfg.base_url, error)
                if not error.retryable:
                    raise
            else:
                self.breaker.succeeded()
                return completion
        raise fault

    async def models(self, *, deadline: float) -> tuple[str, ...]:
        """Names that the server lists under `/models`.

        Raises:
            TeacherFault: It failed, or the list has another form.
        """
        raw = await self._guarded(lambda api: api.models.with_raw_response.list(), deadline)
        try:
            data: Any = _dict(json.loads(raw.decode("utf-8"))).get("data")
        except (ValueError, RecursionError) as error:
            raise _invalid("the model list is not JSON") from error
        if not isinstance(data, list):
            raise _invalid("the model list has no list 'data'")
        names: list[Any] = [_dict(item).get("id") for item in cast("list[Any]", data)[:1_000]]
        return tuple(printable(name)[:200] for name in names if isinstance(name, str))

    async def aclose(self) -> None:
        """Close the connections."""
        api, self._api = self._api, None
        if api is not None and self._loop is asyncio.get_running_loop():
            await api.close()

    async def _attempt(self, body: dict[str, Any], deadline: float) -> Completion:
        def create(api: openai.AsyncOpenAI) -> Any:
            make: Any = api.chat.completions.with_raw_response.create
            return make(model=self._cfg.model, **body)

        return read_completion(await self._guarded(create, deadline))

    async def _guarded(self, send: Callable[[openai.AsyncOpenAI], Any], deadline: float) -> bytes:
        """One request's whole body; whatever goes wrong is a `TeacherFault`."""
        api = self._bound_api()
        try:
            async with asyncio.timeout_at(_loop_time(deadline)), self._slots:
                async with asyncio.timeout(self._cfg.attempt_timeout_s):
                    raw: Any = await send(api)
                    return raw.content
        except TimeoutError as error:
            raise TeacherFault(FailureKind.TIMEOUT, "no complete reply in time") from error
        except openai.APITimeoutError as error:
            raise TeacherFault(FailureKind.TIMEOUT, "the server fell silent") from error
        except openai.APIConnectionError as error:
            if _caused_by(error, BodyTooLarge):
                raise TeacherFault(FailureKind.TOO_LARGE, _cause_text(error)) from error
            raise TeacherFault(FailureKind.CONNECTION, _cause_text(error)) from error
        except openai.APIStatusError as error:
            key = os.environ.get(self._cfg.api_key_env) or "none"
            message = printable(error.message).replace(key, "***")
            raise status_fault(error.status_code, error.response.headers, message) from error
        except BodyTooLarge as error:
            raise TeacherFault(FailureKind.TOO_LARGE, str(error)) from error
        except Exception as error:
            # The SDK lets errors of its parser and of the HTTP library through; none may pass this door.
            raise TeacherFault(FailureKind.INVALID_RESPONSE, f"{type(error).__name__}: {error}") from error

    def _bound_api(self) -> openai.AsyncOpenAI:
        """The SDK client of the running loop: connections and semaphores belong to one loop."""
        loop = asyncio.get_running_loop()
        if self._api is None or self._loop not in (None, loop):
            self._api = _new_api(self._cfg)
            self._slots = asyncio.Semaphore(self._cfg.concurrency)
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
    # The SDK imports this on first use.
    _ = api.chat.completions.with_raw_response
    return api


def read_completion(content: bytes) -> Completion:
    """Check a response body level by level.

    Raises:
        TeacherFault: `invalid_response`, with the level that is wrong.
    """
    try:
        data: Any = json.loads(content.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise TeacherFault(
            FailureKind.INVALID_RESPONSE, f"body is not JSON ({type(error).__name__})"
        ) from error
    choices = _field(data, "choices", list, "body")
    if not choices:
        raise _invalid("choices is empty")
    message = _field(choices[0], "message", dict, "choices[0]")
    text = _text(message.get("content"))
    finish: Any = choices[0].get("finish_reason")
    usage: Any = data.get("usage")
    refusal: Any = message.get("refusal")
    thoughts: Any = message.get("reasoning_content") or message.get("reasoning")
    return Completion(
        text=printable(text[:MAX_TEXT_CHARS]),
        finish=finish if isinstance(finish, str) else "",
        tool_calls=_tool_calls(message.get("tool_calls")),
        refusal=printable(refusal)[:300] if isinstance(refusal, str) else "",
        reasoning=printable(thoughts[:MAX_TEXT_CHARS]) if isinstance(thoughts, str) else "",
        prompt_tokens=_count(usage, "prompt_tokens"),
        completion_tokens=_count(usage, "completion_tokens"),
    )


def _text(content: Any) -> str:
    """The text of a message: a string, nothing, or a list of text parts."""
    if content is None or isinstance(content, str):
        return content or ""
    if isinstance(content, list):
        texts = [part.get("text") for part in map(_dict, cast("list[Any]", content))]
        return "".join(text for text in texts if isinstance(text, str))
    raise _invalid(f"message.content is {type(content).__name__}")


def _tool_calls(value: Any) -> tuple[WireCall, ...]:
    if value is None:
        return ()
    if not isinstance(value, list):
        raise _invalid(f"message.tool_calls is {type(value).__name__}")
    calls: list[WireCall] = []
    for at, item in enumerate(cast("list[Any]", value)[:MAX_TOOL_CALLS_PER_TURN]):
        function = _field(item, "function", dict, f"tool_calls[{at}]")
        name, arguments = function.get("name"), function.get("arguments")
        if not isinstance(name, str):
            raise _invalid(f"tool_calls[{at}].function.name is {type(name).__name__}")
        call_id: Any = item.get("id")
        text = arguments if isinstance(arguments, str) else json.dumps(arguments)
        known = call_id[:100] if isinstance(call_id, str) and call_id else f"call-{at}"
        calls.append(WireCall(printable(known), printable(name)[:100], text))
    return tuple(calls)


def _field(data: Any, name: str, kind: type, where: str) -> Any:
    value = _dict(data).get(name)
    if not isinstance(value, kind):
        raise _invalid(f"{where} has no {kind.__name__} {name!r}")
    return cast("Any", value)


def _dict(value: Any) -> dict[str, Any]:
    """The value if it is an object, else an empty one: every field is then missing."""
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}


def _count(usage: Any, name: str) -> int:
    value = _dict(usage).get(name)
    return value if type(value) is int and 0 <= value < 2**40 else 0


def _invalid(detail: str) -> TeacherFault:
    return TeacherFault(FailureKind.INVALID_RESPONSE, detail)


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
