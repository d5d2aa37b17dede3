"""Just enough HTTP/1.1 for a service behind one client library: one bounded request per connection."""

from __future__ import annotations

import asyncio
import hmac
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, Final

MAX_HEAD_BYTES: Final = 16 * 1024
_REQUEST_LINE: Final = re.compile(r"([A-Z]{1,16}) (/[!-~]{0,2000}) HTTP/1\.[01]")
_HEADER: Final = re.compile(r"([!#$%&'*+.^_`|~0-9A-Za-z-]{1,100}):[ \t]*([^\r\n\0]*?)[ \t]*")
_LENGTH: Final = re.compile(r"[0-9]{1,12}")


class HttpError(Exception):
    """A request that is refused: its status and words for the client.

    Example:
        >>> HttpError(413, "too_large", "the body is larger than 10 bytes").status
        413
    """

    def __init__(
        self, status: int, code: str, message: str, headers: Mapping[str, str] | None = None
    ) -> None:
        """Keep the status, a word for programs and a sentence for people."""
        super().__init__(f"{status} {code}: {message}")
        self.status, self.code, self.message = status, code, message
        self.headers = dict(headers or {})

    def body(self) -> dict[str, Any]:
        """What the client gets."""
        return {"success": False, "error": {"status": self.code, "message": self.message}}


@dataclass(frozen=True, slots=True)
class Request:
    """One parsed request.

    Example:
        >>> Request("GET", "/health", {}, b"").path
        '/health'
    """

    method: str
    path: str
    headers: Mapping[str, str] = field(default_factory=dict[str, str])
    """Names in lower case."""
    body: bytes = b""

    @property
    def announced_bytes(self) -> int:
        """Length of the body as the headers have it; 0 where they say nothing usable."""
        text = self.headers.get("content-length", "")
        return int(text) if _LENGTH.fullmatch(text) else 0

    def json(self) -> dict[str, Any]:
        """The body as a JSON object.

        Raises:
            HttpError: 415 without the JSON content type, 400 for anything that is not one object.
        """
        kind = self.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            # Also keeps web pages out: a browser sends this type to another origin only after asking.
            raise HttpError(415, "content_type", "send the body as application/json")
        try:
            value = json.loads(self.body.decode("utf-8"), parse_constant=_refuse)
        except (ValueError, RecursionError) as error:
            raise HttpError(400, "bad_json", f"the body is not JSON ({type(error).__name__})") from error
        if not isinstance(value, dict):
            raise HttpError(400, "bad_json", "the body must be one JSON object")
        return value

    def bearer(self, token: str) -> bool:
        """True if the request carries `token`; takes the same time for every wrong one."""
        scheme, _, given = self.headers.get("authorization", "").partition(" ")
        given_bytes, token_bytes = given.strip().encode("latin-1", "replace"), token.encode()
        return hmac.compare_digest(given_bytes, token_bytes) and scheme.lower() == "bearer"


async def read_head(reader: asyncio.StreamReader) -> Request:
    """Request line and headers.

    Raises:
        HttpError: They are no HTTP/1.x, or too long.
        asyncio.IncompleteReadError: The client went away.
    """
    try:
        raw = await reader.readuntil(b"\r\n\r\n")
    except asyncio.LimitOverrunError as error:
        raise HttpError(
            431, "head_too_large", f"the headers are larger than {MAX_HEAD_BYTES} bytes"
        ) from error
    first, *lines = raw.decode("latin-1")[:-4].split("\r\n")
    line = _REQUEST_LINE.fullmatch(first)
    if line is None:
        raise HttpError(400, "bad_request", "not an HTTP/1.1 request")
    headers: dict[str, str] = {}
    for text in lines:
        match = _HEADER.fullmatch(text)
        if match is None:
            raise HttpError(400, "bad_request", "a header line is malformed")
        name = match.group(1).lower()
        if name in headers and name in ("content-length", "host", "authorization", "content-type"):
            raise HttpError(400, "bad_request", f"header {name} is given twice")
        headers[name] = match.group(2)
    return Request(line.group(1), line.group(2).partition("?")[0], headers)


async def read_body(
    request: Request, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, max_bytes: int
) -> bytes:
    """The body that the headers announce.

    Raises:
        HttpError: 413 when it is too large, 411 without a length, 400 for a length that is no number.
        asyncio.IncompleteReadError: The client went away.
    """
    if "transfer-encoding" in request.headers:
        raise HttpError(411, "length_required", "send a content-length; chunked bodies are not taken")
    text = request.headers.get("content-length")
    if text is None:
        if request.method == "POST":
            raise HttpError(411, "length_required", "send a content-length")
        return b""
    if not _LENGTH.fullmatch(text):
        raise HttpError(400, "bad_request", "content-length is not a number")
    if int(text) > max_bytes:
        raise HttpError(413, "too_large", f"the body is larger than {max_bytes} bytes")
    if request.headers.get("expect", "").lower() == "100-continue":
        writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        await writer.drain()
    return await reader.readexactly(int(text))


def response(status: int, body: bytes, headers: Mapping[str, str] | None = None) -> bytes:
    """A whole response with a JSON body; the connection ends after it."""
    lines = [
        f"HTTP/1.1 {status} {HTTPStatus(status).phrase}",
        "content-type: application/json",
        f"content-length: {len(body)}",
        "connection: close",
        "cache-control: no-store",
        "x-content-type-options: nosniff",
        *(f"{name}: {value}" for name, value in (headers or {}).items()),
    ]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1") + body


def _refuse(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")
