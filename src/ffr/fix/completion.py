"""A server's reply, checked level by level: nothing of it is believed before its type is known."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Final, cast

from ffr.fix.faults import TeacherFault
from ffr.fix.teacher import FailureKind
from ffr.fix.tools import printable

MAX_TOOL_CALLS_PER_TURN: Final = 16
MAX_TEXT_CHARS: Final = 400_000
MAX_MODELS: Final = 1_000


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
    estimated_tokens: int = 0
    """Of these two counts, what the server did not send and `ffr.fix.request` estimated."""


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


def read_models(content: bytes) -> tuple[str, ...]:
    """Names of a `/models` body.

    Raises:
        TeacherFault: `invalid_response`.
    """
    try:
        data: Any = _dict(json.loads(content.decode("utf-8"))).get("data")
    except (ValueError, RecursionError) as error:
        raise _invalid("the model list is not JSON") from error
    if not isinstance(data, list):
        raise _invalid("the model list has no list 'data'")
    names: list[Any] = [_dict(item).get("id") for item in cast("list[Any]", data)[:MAX_MODELS]]
    return tuple(printable(name)[:200] for name in names if isinstance(name, str))


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
