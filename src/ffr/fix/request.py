"""A chat request as bytes, and what it costs where the server does not say.

The SDK's own way to the wire walks every message, copies it and escapes every character of every picture:
half of the client's CPU time. Pictures are base64, so they are joined in as they are (bench/teacher.py).
"""

from __future__ import annotations

import json
import math
import secrets
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final, cast

from ffr.fix.completion import Completion

CHARS_PER_TOKEN: Final = 4
"""Of English text; an estimate is all that this is for."""
PX_PER_TOKEN: Final = 28 * 28
"""One merged patch of Qwen2.5-VL and GLM-4.5V; Qwen3-VL's is 32 * 32."""


class DataUri(str):
    """A picture as `data:image/jpeg;base64,...`: nothing in it needs an escape in JSON.

    Example:
        >>> DataUri("data:image/jpeg;base64,AAAA", num_px=784).num_px
        784
    """

    num_px: int

    def __new__(cls, text: str, *, num_px: int) -> DataUri:
        """Keep how many pixels the picture has.

        Raises:
            ValueError: The text has a character that JSON would escape.
        """
        if not text.isascii() or '"' in text or "\\" in text or not text.isprintable():
            raise ValueError("a data URI holds nothing but printable ASCII without quotes")
        made = super().__new__(cls, text)
        made.num_px = num_px
        return made


def encode_request(body: Mapping[str, Any]) -> bytes:
    """The body as UTF-8 JSON; lone surrogates become `?`.

    Raises:
        ValueError: A number is not finite.
    """
    mark = f"uri-{secrets.token_hex(16)}"
    uris: list[DataUri] = []
    slim = {**body, "messages": [_slim(message, mark, uris) for message in body["messages"]]}
    text = json.dumps(slim, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    pieces = text.split(mark)
    out = [pieces[0].encode("utf-8", "replace")]
    for uri, piece in zip(uris, pieces[1:], strict=True):
        out += [uri.encode("ascii"), piece.encode("utf-8", "replace")]
    return b"".join(out)


def _slim(message: Mapping[str, Any], mark: str, uris: list[DataUri]) -> Mapping[str, Any]:
    """The message with a short mark in the place of each picture, which is put on the list."""
    content = message.get("content")
    if not isinstance(content, list):
        return message
    parts: list[Any] = []
    for part in cast("list[Any]", content):
        uri = _picture(part)
        if uri is None:
            parts.append(part)
        else:
            uris.append(uri)
            parts.append({**part, "image_url": {**part["image_url"], "url": mark}})
    return {**message, "content": parts}


def with_usage(completion: Completion, body: Mapping[str, Any]) -> Completion:
    """The completion with estimates where the server sent no token counts, which `estimated_tokens` says.

    Args:
        completion: A reply.
        body: The request that it answers.
    """
    prompt = 0 if completion.prompt_tokens else estimate_prompt_tokens(body)
    written = completion.text + completion.reasoning + "".join(c.arguments for c in completion.tool_calls)
    said = 0 if completion.completion_tokens else math.ceil(len(written) / CHARS_PER_TOKEN)
    return replace(
        completion,
        prompt_tokens=completion.prompt_tokens + prompt,
        completion_tokens=completion.completion_tokens + said,
        estimated_tokens=prompt + said,
    )


def estimate_prompt_tokens(body: Mapping[str, Any]) -> int:
    """Tokens of a request by rule of thumb: a quarter of its characters, and one for each 28 x 28 pixels.

    Example:
        >>> picture = {"type": "image_url", "image_url": {"url": DataUri("data:,", num_px=1568)}}
        >>> estimate_prompt_tokens({"messages": [{"content": [picture]}, {"content": "x" * 9}]})
        5
    """
    num_chars, num_tokens = len(json.dumps(body["tools"])) if "tools" in body else 0, 0
    for message in body["messages"]:
        content = message.get("content")
        parts = cast("list[Any]", content) if isinstance(content, list) else [{"text": content}]
        for part in parts:
            uri = _picture(part)
            num_tokens += math.ceil(uri.num_px / PX_PER_TOKEN) if uri is not None else 0
            num_chars += len(part.get("text") or "")
        if "tool_calls" in message:
            num_chars += len(json.dumps(message["tool_calls"]))
    return num_tokens + math.ceil(num_chars / CHARS_PER_TOKEN)


def _picture(part: Mapping[str, Any]) -> DataUri | None:
    holder = part.get("image_url")
    url = cast("dict[str, Any]", holder).get("url") if isinstance(holder, dict) else None
    return url if isinstance(url, DataUri) else None
