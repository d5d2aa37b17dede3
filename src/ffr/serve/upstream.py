"""Another OpenAI-compatible server behind the proxy: requests pass with their media checked."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import mimetypes
from pathlib import Path
from typing import Any, Final, cast
from urllib.parse import urlsplit

import httpx2

from ffr.eval.models.media import video_uri
from ffr.serve.app import BadRequest
from ffr.serve.chat_request import ChatRequest, ContentPart, Link, Message
from ffr.serve.media import MediaReader

log = logging.getLogger(__name__)

MAX_REPLY_BYTES: Final = 64 * 1024 * 1024
MAX_INLINE_BYTES: Final = 256 * 1024 * 1024
CONNECT_S: Final = 10.0


class UpstreamError(RuntimeError):
    """The server behind can't be used; the message says why and what to do."""


class UpstreamBackend:
    """Passes requests on; only the name, the media and what the alias changes differ.

    Args:
        base_url: Its address, `/v1` included.
        model: Its name for the model; settled by `settle` when empty.
        key: Its key; empty for none.
        media: Checks pictures and clips, and makes clips of pictures where its rules say so.
        inline: Send files as data: the server behind does not see this machine's files.
    """

    def __init__(
        self, base_url: str, *, model: str = "", key: str = "", media: MediaReader, inline: bool = False
    ) -> None:
        self.base_url = base_url.rstrip("/")
        self.model = model
        self._key = key
        self._media = media
        self._inline = inline
        local = (urlsplit(base_url).hostname or "") in ("localhost", "127.0.0.1", "::1")
        headers = {"accept-encoding": "identity", **({"authorization": f"Bearer {key}"} if key else {})}
        # How long a completion may take is the proxy's own deadline.
        self._client = httpx2.AsyncClient(
            timeout=httpx2.Timeout(None, connect=CONNECT_S),
            headers=headers,
            trust_env=not local,
            follow_redirects=False,
        )

    async def settle(self) -> str:
        """The model's name: the given one, or the only one that the server lists.

        Raises:
            UpstreamError: It can't be reached, or lists several.
        """
        if self.model:
            return self.model
        try:
            status, data = await self._send("GET", "/models", None)
        except BadRequest as error:
            raise UpstreamError(f"{self.base_url}: {error.message}; is it up?") from error
        listed = data.get("data") if status == 200 else None
        entries = (
            [cast("dict[str, Any]", e) for e in listed if isinstance(e, dict)]
            if isinstance(listed, list)
            else []
        )
        names = [str(entry.get("id")) for entry in entries]
        if len(names) != 1:
            words = ", ".join(names[:8]) or f"status {status}"
            raise UpstreamError(
                f"{self.base_url} lists no single model ({words}): give --upstream-model NAME"
            )
        self.model = names[0]
        return self.model

    async def complete(self, request: ChatRequest) -> dict[str, Any]:
        """The server's completion.

        Raises:
            BadRequest: Media that may not be shown; the server refused (its status) or failed (502).
        """
        self._media.check(request)
        messages = [await self._passed(message, request) for message in request.messages]
        body = request.model_dump(mode="json", exclude_unset=True)
        body |= {
            "model": self.model,
            "messages": [m.model_dump(mode="json", exclude_unset=True) for m in messages],
        }
        self._num_frames(request, messages, body)
        status, data = await self._send("POST", "/chat/completions", body)
        if status == 200 and isinstance(data.get("choices"), list):
            return data
        raise self._refused(status, data)

    async def aclose(self) -> None:
        """Closes the connections."""
        await self._client.aclose()

    async def _passed(self, message: Message, request: ChatRequest) -> Message:
        """The turn with its files checked and, by the rules, its pictures as one clip."""
        if message.content is None or isinstance(message.content, str):
            return message
        num_images = sum(part.type == "image_url" for part in message.parts)
        together = self._media.rules.images_as_video and num_images > 1
        parts: list[ContentPart] = []
        for part in message.parts:
            if part.type == "text":
                parts.append(part)
            elif together and part.type == "image_url":
                if num_images:
                    parts.append(await self._clip(message, request))
                num_images = 0
            else:
                parts.append(await self._link(part))
        return message.model_copy(update={"content": parts})

    async def _clip(self, message: Message, request: ChatRequest) -> ContentPart:
        frames = await self._media.frames_of(message, request, self._media.sizes(request))
        uri = await asyncio.to_thread(video_uri, frames)
        return ContentPart(type="video_url", video_url=Link(url=uri))

    async def _link(self, part: ContentPart) -> ContentPart:
        """The part with an address that the server behind may open."""
        kind = part.type.removesuffix("_url")
        url = part.link
        if url[:5].lower() == "file:":
            path = self._media.path_of(url)
            url = await asyncio.to_thread(_as_data, path, kind) if self._inline else path.as_uri()
        else:
            self._media.data_of(url, kind)
        return part.model_copy(update={part.type: Link(url=url)})

    def _num_frames(self, request: ChatRequest, messages: list[Message], body: dict[str, Any]) -> None:
        """A clip made of pictures is shown whole: a server would sample it again."""
        made = self._media.rules.images_as_video and any(
            part.type == "video_url" and part.link.startswith("data:") for m in messages for part in m.parts
        )
        if made and request.number("media_io_kwargs", "num_frames") is None:
            num = max(sum(part.type == "image_url" for part in m.parts) for m in request.messages)
            if num > 1:
                body["media_io_kwargs"] = {"video": {"num_frames": num}}

    async def _send(self, method: str, path: str, body: dict[str, Any] | None) -> tuple[int, dict[str, Any]]:
        """Status and JSON object of one reply.

        Raises:
            BadRequest: 502 where there is none.
        """
        try:
            async with self._client.stream(method, self.base_url + path, json=body) as reply:
                chunks: list[bytes] = []
                size = 0
                async for chunk in reply.aiter_raw():
                    size += len(chunk)
                    if size > MAX_REPLY_BYTES:
                        raise BadRequest("upstream", "the server behind sent too much", 502)
                    chunks.append(chunk)
            data: Any = json.loads(b"".join(chunks).decode("utf-8"))
        except httpx2.HTTPError as error:
            log.warning("%s: %s: %s", self.base_url, type(error).__name__, error)
            raise BadRequest(
                "upstream", f"the server behind can't be reached ({type(error).__name__})", 502
            ) from error
        except (ValueError, RecursionError) as error:
            raise BadRequest("upstream", "the server behind sent no JSON", 502) from error
        return reply.status_code, cast("dict[str, Any]", data) if isinstance(data, dict) else {}

    def _refused(self, status: int, data: dict[str, Any]) -> BadRequest:
        found = data.get("error", data.get("message", ""))
        words = cast("dict[str, Any]", found).get("message", "") if isinstance(found, dict) else found
        text = str(words)[:500] or f"status {status}"
        if self._key:
            text = text.replace(self._key, "***")
        log.warning("%s: %d: %s", self.base_url, status, text)
        if 400 <= status < 500 and status not in (401, 403):
            return BadRequest("upstream_refused", text, status)
        return BadRequest("upstream", f"the server behind failed: {text}", 502)


def _as_data(path: Path, kind: str) -> str:
    size = path.stat().st_size
    if size > MAX_INLINE_BYTES:
        raise BadRequest("too_large", f"the file has {size} bytes, {MAX_INLINE_BYTES} can be sent on", 413)
    guessed = mimetypes.guess_type(path.name)[0] or ""
    mime = guessed if guessed.startswith(kind) else {"image": "image/png", "video": "video/mp4"}[kind]
    return f"data:{mime};base64,{base64.b64encode(path.read_bytes()).decode('ascii')}"
