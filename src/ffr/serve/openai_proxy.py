"""A model behind the OpenAI API, under two names: NAME as it speaks, NAME:answer as harnesses read it."""

from __future__ import annotations

import time
import uuid
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, Protocol

from ffr.serve.answer import Said, Style, bare_answer, with_instruction
from ffr.serve.app import BadRequest
from ffr.serve.chat_request import ChatRequest, ContentPart, Message, read_request
from ffr.serve.http import HttpError

ANSWER: Final = ":answer"
"""Ending of the alias that returns the bare answer."""
MODELS, CHAT = "/v1/models", "/v1/chat/completions"
ROUTES: Final = MappingProxyType({MODELS: "GET", CHAT: "POST"})


class Backend(Protocol):
    """Who completes a checked request: a model in this process, or another server.

    Example:
        >>> class Fixed:
        ...     async def complete(self, request):
        ...         return completion(request.model, [Choice("B", "stop", 1)], 3)
        ...     async def aclose(self): ...
    """

    async def complete(self, request: ChatRequest) -> dict[str, Any]:
        """A chat completion as JSON.

        Raises:
            BadRequest: The request cannot be worked on, or the server behind failed.
        """
        ...

    async def aclose(self) -> None:
        """Release what it holds."""
        ...


@dataclass(frozen=True, slots=True)
class ProxyConfig:
    """The names that are served, and what the alias does.

    Example:
        >>> ProxyConfig(name="ffr-7b").answer_name
        'ffr-7b:answer'
    """

    name: str
    style: Style = "video_r1"
    """Words of the alias's instruction."""
    answer_tokens: int = 1024
    """At least so many tokens for the alias, whatever the client asks for: tasks ask for 16."""
    root: Path | None = None
    """Media root, which no reply names."""

    @property
    def answer_name(self) -> str:
        """Name of the alias."""
        return self.name + ANSWER


@dataclass(frozen=True, slots=True)
class Choice:
    """One completion.

    Example:
        >>> Choice("B", "stop", 1).reasoning
        ''
    """

    text: str
    finish: str
    num_tokens: int
    reasoning: str = ""


class ProxyService:
    """`GET /v1/models` and `POST /v1/chat/completions` over a backend.

    Args:
        cfg: Names and the alias's settings.
        backend: Who completes.

    Example:
        >>> ProxyService(ProxyConfig(name="m"), backend).model  # doctest: +SKIP
        'm'
    """

    routes = ROUTES

    def __init__(self, cfg: ProxyConfig, backend: Backend) -> None:
        self._cfg = cfg
        self._backend = backend
        self._created = int(time.time())
        self.counters: Counter[str] = Counter()
        """`raw`, `answer`, `unanswered`: completions by name, and those of the alias without an answer."""

    @property
    def model(self) -> str:
        """The plain name."""
        return self._cfg.name

    def refusal(self, error: HttpError) -> dict[str, Any]:
        """A failure in OpenAI's form."""
        kind = "server_error" if error.status >= 500 else "invalid_request_error"
        return {"error": {"message": error.message, "type": kind, "param": None, "code": error.code}}

    def redact(self, text: str) -> str:
        """The text without the media root's place."""
        return text.replace(str(self._cfg.root.resolve()), "<root>") if self._cfg.root else text

    async def aclose(self) -> None:
        """Close the backend."""
        await self._backend.aclose()

    async def handle(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """The list of models, or a completion.

        Raises:
            BadRequest: A malformed request, an unknown model, a stream.
        """
        if path == MODELS:
            return {"object": "list", "data": [self._listed(n) for n in self._names]}
        request = read_request(body)
        if request.model not in self._names:
            known = ", ".join(self._names)
            raise BadRequest("model_not_found", f"there is no model {request.model[:100]!r}: {known}", 404)
        if request.stream:
            raise BadRequest("bad_request", "stream: completions are sent whole; leave it out", 400)
        if request.messages[-1].role != "user":
            raise BadRequest("bad_request", "messages: the last one must be the user's", 400)
        if request.model == self._cfg.name:
            self.counters["raw"] += 1
            return {**await self._backend.complete(request), "model": request.model}
        self.counters["answer"] += 1
        reply = await self._backend.complete(self._asked(request))
        return {**self._bare(request.question, reply), "model": request.model}

    @property
    def _names(self) -> tuple[str, str]:
        return self._cfg.name, self._cfg.answer_name

    def _listed(self, name: str) -> dict[str, Any]:
        return {"id": name, "object": "model", "created": self._created, "owned_by": "ffr"}

    def _asked(self, request: ChatRequest) -> ChatRequest:
        """The request as the student needs it: instruction at its end, room to think, no early stop."""
        last = request.messages[-1]
        messages = [*request.messages[:-1], _appended(last, self._cfg.style)]
        changes: dict[str, Any] = {"model": self._cfg.name, "messages": messages}
        changes["max_tokens"] = max(request.limit or 0, self._cfg.answer_tokens)
        fields = {name: getattr(request, name) for name in request.model_fields_set}
        for name in ("max_completion_tokens", "stop"):
            fields.pop(name, None)
        return ChatRequest.model_construct(**{**fields, **(request.model_extra or {}), **changes})

    def _bare(self, question: str, reply: Mapping[str, Any]) -> dict[str, Any]:
        """The reply with the answer as content and the rest beside it."""
        choices: list[dict[str, Any]] = []
        for choice in reply.get("choices") or []:
            message = dict(choice.get("message") or {})
            thoughts = str(message.pop("reasoning", None) or message.pop("reasoning_content", None) or "")
            said = bare_answer(question, str(message.get("content") or ""), thoughts)
            self.counters["unanswered"] += said.rule == "none"
            choices.append({**choice, "message": {**message, **_spoken(said)}})
        return {**reply, "choices": choices}


def _spoken(said: Said) -> dict[str, Any]:
    return {
        "content": said.answer,
        "reasoning_content": said.thoughts,
        "ffr": {"rule": said.rule},
    }


def _appended(message: Message, style: Style) -> Message:
    """The turn with the instruction after its last text, or as a text of its own."""
    question = message.text
    text = with_instruction(question, style)
    if text == question:
        return message
    parts = list(message.parts)
    at = next((k for k in reversed(range(len(parts))) if parts[k].type == "text"), None)
    added = text[len(question.rstrip()) :]
    if at is None:
        parts.append(ContentPart(type="text", text=added.strip()))
    else:
        parts[at] = ContentPart(type="text", text=(parts[at].text or "").rstrip() + added)
    return message.model_copy(update={"content": parts})


def completion(model: str, choices: list[Choice], num_prompt_tokens: int) -> dict[str, Any]:
    """Completions in OpenAI's form.

    Example:
        >>> completion("m", [Choice("B", "stop", 1)], 9)["usage"]["total_tokens"]
        10
    """
    num_tokens = sum(choice.num_tokens for choice in choices)
    return {
        "id": f"chatcmpl-{uuid.uuid4().hex}",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": model,
        "choices": [
            {
                "index": k,
                "message": {
                    "role": "assistant",
                    "content": choice.text,
                    **({"reasoning_content": choice.reasoning} if choice.reasoning else {}),
                },
                "finish_reason": choice.finish,
                "logprobs": None,
            }
            for k, choice in enumerate(choices)
        ],
        "usage": {
            "prompt_tokens": num_prompt_tokens,
            "completion_tokens": num_tokens,
            "total_tokens": num_prompt_tokens + num_tokens,
        },
    }
