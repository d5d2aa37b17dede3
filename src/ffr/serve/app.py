"""The server: who may ask, how much, for how long, and how it stops."""

from __future__ import annotations

import asyncio
import ipaddress
import json
import logging
import signal
import time
import uuid
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol

from ffr.serve.http import MAX_HEAD_BYTES, HttpError, Request, read_body, read_head, response

log = logging.getLogger(__name__)

LINGER_S: Final = 2.0
"""How long a refused client's unread body is drained, so that it can read its refusal."""
HEALTH: Final = "/health"
PARSE_ASIDE_BYTES: Final = 1024 * 1024
"""A body from this size on is parsed in a thread, so that other clients need not wait."""


class BadRequest(Exception):
    """A request that cannot be worked on.

    Example:
        >>> BadRequest("missing", "no such file under the root", 404).http_status
        404
    """

    def __init__(self, status: str, message: str, http_status: int = 422) -> None:
        """Keep a word for programs and a sentence for people."""
        super().__init__(f"{status}: {message}")
        self.status, self.message, self.http_status = status, message, http_status


class Service(Protocol):
    """What stands behind a server: its paths, and the work.

    Example:
        >>> Server(ServeConfig(), RepairService(cfg, teacher, root))  # doctest: +SKIP
    """

    @property
    def routes(self) -> Mapping[str, str]:
        """Method by path; `/health` is the server's own."""
        ...

    @property
    def model(self) -> str:
        """For `/health`."""
        ...

    async def handle(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """The reply's JSON to one request; the body of a GET is empty.

        Raises:
            BadRequest: The request cannot be worked on.
        """
        ...

    def refusal(self, error: HttpError) -> dict[str, Any]:
        """What a client gets instead of a reply."""
        ...

    def redact(self, text: str) -> str:
        """A reply's text without what must not leave this machine."""
        ...

    async def aclose(self) -> None:
        """Release what the service holds."""
        ...


@dataclass(frozen=True, slots=True)
class ServeConfig:
    """Where the service listens and its limits.

    Example:
        >>> ServeConfig().host
        '127.0.0.1'
    """

    host: str = "127.0.0.1"
    port: int = 8765
    """0 takes any free port."""
    token: str = ""
    """Required as a bearer token when set; must be set to listen elsewhere than on loopback."""
    max_body_bytes: int = 1024 * 1024
    max_held_bytes: int = 2**30
    """Bodies in memory at a time, all requests together; more are answered 503."""
    max_requests: int = 16
    """Requests worked on at a time; more are answered 503."""
    max_connections: int = 256
    """Open connections; more are closed at once."""
    read_timeout_s: float = 10.0
    """For the whole request to arrive."""
    request_deadline_s: float = 240.0
    """For the work."""
    stop_grace_s: float = 10.0
    """How long running requests may go on after SIGINT or SIGTERM."""


class Server:
    """Answers the paths of a service, and `GET /health`.

    Args:
        cfg: Address and limits.
        service: Does the work.

    Raises:
        ValueError: Another address than loopback without a token.

    Example:
        >>> server = Server(ServeConfig(), service)  # doctest: +SKIP
        >>> asyncio.run(server.run())  # doctest: +SKIP
    """

    def __init__(self, cfg: ServeConfig, service: Service) -> None:
        self.check(cfg)
        self._cfg = cfg
        self._service = service
        self._running = 0
        self._held = 0
        self._connections: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self.port = cfg.port
        """The port that is really listened on, once started."""
        self.counters: Counter[str] = Counter()
        """Responses by status, `client_gone`, `cancelled` (at shutdown), `too_many_connections`."""

    @staticmethod
    def check(cfg: ServeConfig) -> None:
        """Refuses to listen for strangers without a token.

        Raises:
            ValueError: Another address than loopback without a token.
        """
        if not cfg.token and not is_loopback(cfg.host):
            raise ValueError(
                f"listening on {cfg.host} needs a token: anybody who reaches it could spend your model's "
                "time and look at your clips"
            )

    @property
    def model(self) -> str:
        """Name of what is served."""
        return self._service.model

    @property
    def host(self) -> str:
        """The address that is listened on."""
        return self._cfg.host

    async def run(self, ready: asyncio.Event | None = None) -> None:
        """Serve until SIGINT, SIGTERM or cancellation; running requests may end first.

        Raises:
            OSError: The address cannot be listened on.
        """
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        signals = (signal.SIGINT, signal.SIGTERM)
        for name in signals:
            loop.add_signal_handler(name, stop.set)
        try:
            await self.start()
            if ready is not None:
                ready.set()
            await stop.wait()
        finally:
            # A second signal then has its usual effect: it ends the process at once.
            for name in signals:
                loop.remove_signal_handler(name)
            await self.stop()

    async def start(self) -> None:
        """Listen; raises OSError if the address is taken."""
        self._server = await asyncio.start_server(
            self._connected, self._cfg.host, self._cfg.port, limit=MAX_HEAD_BYTES
        )
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Listen no more, wait for running requests up to the grace time, close the service."""
        if self._server is not None:
            self._server.close()
        if self._connections:
            await asyncio.wait(self._connections, timeout=self._cfg.stop_grace_s)
        for task in list(self._connections):
            task.cancel()
        if self._connections:
            await asyncio.wait(self._connections, timeout=self._cfg.stop_grace_s)
        await self._service.aclose()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None  # a stream callback always runs in a task
        if len(self._connections) >= self._cfg.max_connections:
            self.counters["too_many_connections"] += 1
            writer.close()
            return
        self._connections.add(task)
        try:
            await self._answer(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError, TimeoutError):
            self.counters["client_gone"] += 1
        except asyncio.CancelledError:
            self.counters["cancelled"] += 1  # at shutdown; the stream's own callback must not see it
        finally:
            self._connections.discard(task)
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        started, path, unread, headers = time.monotonic(), "-", False, {}
        held = 0
        try:
            async with asyncio.timeout(self._cfg.read_timeout_s):
                request = await read_head(reader)
                path = f"{request.method} {request.path[:100]}"
                unread = True
                self._admit(request)
                held = self._hold(request)
                body = await read_body(request, reader, writer, max_bytes=self._cfg.max_body_bytes)
                unread = False
            request = Request(request.method, request.path, request.headers, body)
            status, payload = 200, await self._work(request, reader)
        except TimeoutError:
            error = HttpError(408, "timeout", "the request did not arrive in time")
            status, payload = 408, self._service.refusal(error)
        except HttpError as error:
            status, payload, headers = error.status, self._service.refusal(error), error.headers
        finally:
            self._held -= held
        data = self._service.redact(json.dumps(payload, allow_nan=False)).encode("utf-8", "replace")
        self.counters[str(status)] += 1
        log.info("%s %d %.3f s", path, status, time.monotonic() - started)
        async with asyncio.timeout(self._cfg.read_timeout_s):
            writer.write(response(status, data, headers))
            await writer.drain()
            if unread:
                await _drain(reader, writer)

    def _hold(self, request: Request) -> int:
        """Bytes of the body that is about to be read; raises HttpError 503 if memory is spoken for."""
        size = min(request.announced_bytes, self._cfg.max_body_bytes)
        if self._held and self._held + size > self._cfg.max_held_bytes:
            raise HttpError(503, "busy", "too many large requests at a time", {"retry-after": "1"})
        self._held += size
        return size

    def _admit(self, request: Request) -> None:
        """Refuse before the body is read.

        Raises:
            HttpError: 401, 403, 404, 405 or 503.
        """
        methods = {HEALTH: "GET", **self._service.routes}
        cfg = self._cfg
        if not cfg.token and not _is_local_name(request.headers.get("host", "")):
            # A page of another site whose name was pointed at this machine.
            raise HttpError(403, "host", "the Host header is not this machine's loopback name")
        if request.path not in methods:
            known = ", ".join(f"{method} {path}" for path, method in methods.items())
            raise HttpError(404, "not_found", f"known: {known}")
        if request.method != methods[request.path]:
            allowed = methods[request.path]
            raise HttpError(405, "method", f"use {allowed}", {"allow": allowed})
        if cfg.token and not request.bearer(cfg.token):
            raise HttpError(401, "unauthorized", "send the bearer token", {"www-authenticate": "Bearer"})
        if request.path != HEALTH and self._running >= cfg.max_requests:
            raise HttpError(503, "busy", "too many requests at a time", {"retry-after": "1"})

    async def _work(self, request: Request, reader: asyncio.StreamReader) -> dict[str, Any]:
        """The reply's JSON; a client that hangs up cancels its own work.

        Raises:
            HttpError: For anything but a reply.
        """
        if request.path == HEALTH:
            model = self._service.model
            return {"status": "healthy", "model": model, "timeout": self._cfg.request_deadline_s}
        if self._running >= self._cfg.max_requests:
            raise HttpError(503, "busy", "too many requests at a time", {"retry-after": "1"})
        self._running += 1
        work = asyncio.ensure_future(self._handle(request))
        gone = asyncio.ensure_future(reader.read(1))
        try:
            done, _ = await asyncio.wait(
                {work, gone}, timeout=self._cfg.request_deadline_s, return_when=asyncio.FIRST_COMPLETED
            )
            if work in done:
                return work.result()
            if gone in done:
                raise ConnectionResetError("the client hung up")
            raise HttpError(504, "deadline", "no result within the deadline")
        except BadRequest as error:
            raise HttpError(error.http_status, error.status, error.message) from error
        except (HttpError, ConnectionError):
            raise
        except Exception as error:
            number = uuid.uuid4().hex[:8]
            log.exception("request %s failed", number)
            raise HttpError(500, "internal", f"internal error {number}; the server's log has it") from error
        finally:
            self._running -= 1
            work.cancel()
            gone.cancel()
            await asyncio.gather(work, gone, return_exceptions=True)

    async def _handle(self, request: Request) -> dict[str, Any]:
        if request.method == "GET":
            return await self._service.handle(request.path, {})
        aside = len(request.body) >= PARSE_ASIDE_BYTES
        data = await asyncio.to_thread(request.json) if aside else request.json()
        return await self._service.handle(request.path, data)


def is_loopback(host: str) -> bool:
    """True for an address that only this machine can reach; a name other than `localhost` is not."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def _is_local_name(header: str) -> bool:
    name = header.rpartition(":")[0] if header.rpartition(":")[2].isdigit() else header
    return is_loopback(name.lower())


async def _drain(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Read off what a refused client still sends: closing with unread data would reset its reply."""
    if writer.can_write_eof():
        writer.write_eof()
    try:
        async with asyncio.timeout(LINGER_S):
            while await reader.read(65_536):
                await asyncio.sleep(0)
    except TimeoutError:
        log.debug("a refused client kept sending")
