"""Chat messages as servers take them: labelled pictures, tool calls in three notations."""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Sequence
from typing import Any, Final, cast

import numpy as np

from ffr.fix.completion import WireCall
from ffr.fix.request import DataUri
from ffr.fix.tools import LabelledImage, Pixels

Message = dict[str, Any]
Part = dict[str, Any]

JPEG_QUALITY: Final = 90
MAX_ACTION_CHARS: Final = 20_000
_TOOL_CALL: Final = re.compile(r"<tool_call>(.{1,4000}?)</tool_call>", re.DOTALL)


def text_part(text: str) -> Part:
    """A text part of a user message."""
    return {"type": "text", "text": text}


def image_parts(images: Sequence[LabelledImage]) -> list[Part]:
    """Each picture after its own label, `Frame 9 (t=12.8 s):`, as a JPEG data URI.

    Never a path and never a URL: the server has nothing to fetch, and no server samples the clip anew.
    """
    parts: list[Part] = []
    for image in images:
        parts.append(text_part(f"{image.label}:"))
        parts.append({"type": "image_url", "image_url": {"url": data_uri(image.pixels)}})
    return parts


def data_uri(pixels: Pixels) -> DataUri:
    """RGB pixels as `data:image/jpeg;base64,...`."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, format="JPEG", quality=JPEG_QUALITY)
    text = "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
    return DataUri(text, num_px=pixels.shape[0] * pixels.shape[1])


def add_user(messages: list[Message], parts: list[Part]) -> None:
    """Append parts as the user, to a last message that is the user's: some templates must alternate."""
    if messages and messages[-1]["role"] == "user":
        messages[-1]["content"].extend(parts)
    else:
        messages.append({"role": "user", "content": parts})


def assistant_calls(text: str, calls: Sequence[WireCall]) -> Message:
    """An assistant turn with native tool calls, fit to be sent back.

    Arguments that are no JSON object become `{}`: some servers refuse the whole request otherwise.
    """
    return {
        "role": "assistant",
        "content": text or None,
        "tool_calls": [
            {
                "id": call.call_id,
                "type": "function",
                "function": {"name": call.name, "arguments": _object_text(call.arguments)},
            }
            for call in calls
        ],
    }


def textual_calls(text: str) -> tuple[WireCall, ...]:
    """Calls that a server left in the text as `<tool_call>{"name": ..., "arguments": {...}}</tool_call>`."""
    calls: list[WireCall] = []
    for match in _TOOL_CALL.finditer(text):
        data = load_object(match.group(1))
        name: Any = data.get("name") if data else None
        if data is not None and isinstance(name, str):
            calls.append(WireCall("", name[:100], json.dumps(data.get("arguments", {}))))
    return tuple(calls)


def prompted_action(text: str) -> WireCall | None:
    """The call of a prompted-JSON turn; its name is the action (`finish` too), None if there is no action."""
    body = text.rpartition("</think>")[2]
    data = load_object(body[body.find("{") : body.rfind("}") + 1])
    if data is None:
        return None
    if "error_types" in data:  # it wrote the patch already; it will be asked for in its own request
        return WireCall("", "finish", "{}")
    action: Any = data.pop("action", None)
    return WireCall("", action[:100], json.dumps(data)) if isinstance(action, str) else None


def load_object(text: str) -> dict[str, Any] | None:
    """A JSON object from untrusted text, or None."""
    if len(text) > MAX_ACTION_CHARS:
        return None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return cast("dict[str, Any]", value) if isinstance(value, dict) else None


def _object_text(text: str) -> str:
    return text if load_object(text) is not None else "{}"
