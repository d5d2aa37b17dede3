"""A real HTTP server on loopback that misbehaves on demand; one request per connection, all bounded."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

HOLD_S = 30.0
"""Longest time that any misbehaviour lasts: a client that waits for its end fails its test."""
HUGE_CHUNKS = 256
"""Of 64 KiB: 16 MiB, twice the client's limit."""
MAX_LOGGED = 500


@dataclass
class Reply:
    """What the server does with one request; `act` is a way of misbehaving."""

    body: bytes = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    act: str = ""
    delay_s: float = 0.0


Script = Callable[[dict[str, Any], int], Reply]


def reply_json(value: Any, status: int = 200, **headers: str) -> Reply:
    """A JSON body."""
    named = {name.replace("_", "-"): text for name, text in headers.items()}
    return Reply(json.dumps(value).encode(), status, {"content-type": "application/json", **named})


def say(text: str | None, finish: str = "stop", tool_calls: list[Any] | None = None) -> Reply:
    """A well-formed chat completion."""
    message: dict[str, Any] = {"role": "assistant", "content": text}
    if tool_calls is not None:
        message["tool_calls"] = tool_calls
    return reply_json(
        {
            "id": "c",
            "object": "chat.completion",
            "created": 1,
            "model": "fake",
            "choices": [{"index": 0, "finish_reason": finish, "message": message}],
            "usage": {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110},
        }
    )


def call_tool(name: str, arguments: Any, call_id: str = "x") -> Reply:
    """A completion with one native tool call; `arguments` that are no text are written as JSON."""
    text = arguments if isinstance(arguments, str) else json.dumps(arguments)
    call = {"id": call_id, "type": "function", "function": {"name": name, "arguments": text}}
    return say(None, "tool_calls", [call])


class FakeServer:
    """Runs `script(request, number of the request)` for every POST, in a thread with its own loop."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.requests: list[dict[str, Any]] = []
        self.headers: list[str] = []
        self._lock = threading.Lock()
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def __enter__(self) -> FakeServer:
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def __exit__(self, *exc: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)

    @property
    def base_url(self) -> str:
        """What goes into `fix.teacher.base_url`."""
        return f"http://127.0.0.1:{self.port}/v1"

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._main())
        self._loop.close()

    async def _main(self) -> None:
        self._stop = asyncio.Event()
        server = await asyncio.start_server(self._handle, "127.0.0.1", 0, limit=2**16)
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        await self._stop.wait()
        server.close()
        others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    async def _handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(HOLD_S):
                await self._one(reader, writer)
        except (TimeoutError, ConnectionError, asyncio.IncompleteReadError):
            return  # the client went away: what these tests want it to do
        finally:
            writer.close()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        lengths = [
            line.split(":")[1] for line in head.split("\r\n") if line.lower().startswith("content-length:")
        ]
        request = json.loads(await reader.readexactly(int(lengths[0]))) if lengths else {}
        with self._lock:
            number = len(self.requests)
            if number < MAX_LOGGED:
                self.requests.append(request)
                self.headers.append(head)
        reply = self.script(request, number)
        await asyncio.sleep(reply.delay_s)
        await ACTS[reply.act](writer, reply)


async def _plain(writer: asyncio.StreamWriter, reply: Reply, length: int | None = None) -> None:
    writer.write(_head(reply, len(reply.body) if length is None else length) + reply.body)
    await writer.drain()


async def _reset(writer: asyncio.StreamWriter, reply: Reply) -> None:
    sock = writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


async def _slow_headers(writer: asyncio.StreamWriter, reply: Reply) -> None:
    await asyncio.sleep(HOLD_S)


async def _drip(writer: asyncio.StreamWriter, reply: Reply) -> None:
    writer.write(_head(reply, 100_000))
    for _ in range(1_000):
        writer.write(b" ")
        await writer.drain()
        await asyncio.sleep(0.03)


async def _short(writer: asyncio.StreamWriter, reply: Reply) -> None:
    await _plain(writer, reply, len(reply.body) + 500)


async def _huge(writer: asyncio.StreamWriter, reply: Reply) -> None:
    writer.write(_head(reply, HUGE_CHUNKS * 65_536))
    for _ in range(HUGE_CHUNKS):
        writer.write(b" " * 65_536)
        await writer.drain()


def _head(reply: Reply, length: int) -> bytes:
    lines = [f"HTTP/1.1 {reply.status} X", f"content-length: {length}", "connection: close"]
    lines += [f"{name}: {value}" for name, value in reply.headers.items()]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


ACTS: dict[str, Any] = {
    "": _plain,
    "reset": _reset,
    "slow_headers": _slow_headers,
    "drip": _drip,
    "short": _short,
    "huge": _huge,
}
