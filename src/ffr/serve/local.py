"""A model in this process behind the proxy: requests become conversations, answered one call at a time."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, cast

from ffr.eval.models.base import Answerer, Generation, Reply
from ffr.observe.chat import Chat, Part, Role, Turn, chat_view
from ffr.serve.app import BadRequest
from ffr.serve.chat_request import ChatRequest, Message
from ffr.serve.media import MediaReader, Sizes
from ffr.serve.openai_proxy import Choice, completion
from ffr.types import Observation

log = logging.getLogger(__name__)

_ROLES: Final[Mapping[str, Role]] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
}
_FIXED: Final = frozenset(
    {"add_generation_prompt", "chat_template", "conversation", "continue_final_message", "tokenize", "tools"}
)
"""Arguments of the chat template that are not the client's."""
_UNSERVED: Final = (
    "audio", "functions", "logit_bias", "logprobs", "prediction", "response_format", "tools", "top_logprobs",
)  # fmt: skip
_PENALTIES: Final = ("frequency_penalty", "presence_penalty")


@dataclass(frozen=True, slots=True)
class LocalConfig:
    """Limits and defaults of completions.

    Example:
        >>> LocalConfig().batch_size
        1
    """

    name: str = "model"
    default_tokens: int = 1024
    """Where a request names no limit."""
    max_tokens: int = 8192
    """What a request may ask for at most; larger numbers are lowered to it."""
    batch_size: int = 1
    """Requests of one call of the model. With 1 a reply never depends on its neighbours: in bfloat16 it
    otherwise does, in the last digits."""


class LocalBackend:
    """Completes requests with an `Answerer`; temperature is 0 where a request names none.

    Args:
        answerer: The model; its encoder must take a `Chat`.
        media: Reads pictures and clips.
        cfg: Limits.
    """

    def __init__(self, answerer: Answerer, media: MediaReader, cfg: LocalConfig) -> None:
        self._answerer = answerer
        self._media = media
        self._cfg = cfg
        self._waiting: deque[tuple[Observation, Generation, asyncio.Future[Reply]]] = deque()
        self._some = asyncio.Event()
        self._worker: asyncio.Task[None] | None = None

    async def warm_up(self) -> None:
        """Loads the weights by asking something trivial.

        Raises:
            RuntimeError: The model can't answer even that.
        """
        view = chat_view("warm-up", [Turn("user", (Part("Hello."),))])
        (reply,) = await self._answerer.answer([view], Generation(max_tokens=1))
        if reply.error:
            raise RuntimeError(reply.error)

    async def complete(self, request: ChatRequest) -> dict[str, Any]:
        """The completions of one request; equal requests with a seed have equal ones.

        Raises:
            BadRequest: The request asks for what this engine does not do, or can't be shown to the model.
        """
        _check_served(request)
        self._media.check(request)
        view = await self._view(request)
        generation = self._generation(request)
        several = [replace(generation, seed=generation.seed + k) for k in range(request.n or 1)]
        replies = await asyncio.gather(*(self._ask(view, one) for one in several))
        for reply in replies:
            if reply.error:
                raise _failure(reply.error)
        choices = [_stopped(reply, request.stops) for reply in replies]
        return completion(self._cfg.name, choices, replies[0].num_prompt_tokens)

    async def aclose(self) -> None:
        """Drops what is waiting."""
        if self._worker is not None:
            self._worker.cancel()
            await asyncio.gather(self._worker, return_exceptions=True)
        for _, _, future in self._waiting:
            future.cancel()

    async def _ask(self, view: Observation, generation: Generation) -> Reply:
        future: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        self._waiting.append((view, generation, future))
        self._some.set()
        if self._worker is None:
            self._worker = asyncio.create_task(self._work())
        return await future

    async def _work(self) -> None:
        """Answers what waits, in order; equal settings share a call."""
        while True:
            await self._some.wait()
            batch = self._next()
            if not batch:
                self._some.clear()
                continue
            views = [view for view, _, _ in batch]
            try:
                replies = await self._answerer.answer(views, batch[0][1])
            except Exception as error:
                log.exception("the model failed on %d requests", len(batch))
                replies = [Reply.failed("model", type(error).__name__)] * len(batch)
            for (_, _, future), reply in zip(batch, replies, strict=True):
                if not future.done():
                    future.set_result(reply)

    def _next(self) -> list[tuple[Observation, Generation, asyncio.Future[Reply]]]:
        """The first request that somebody still waits for, and others like it."""
        batch: list[tuple[Observation, Generation, asyncio.Future[Reply]]] = []
        kept: deque[tuple[Observation, Generation, asyncio.Future[Reply]]] = deque()
        for entry in self._waiting:
            if entry[2].done():
                continue
            if len(batch) < self._cfg.batch_size and (not batch or entry[1] == batch[0][1]):
                batch.append(entry)
            else:
                kept.append(entry)
        self._waiting = kept
        return batch

    def _generation(self, request: ChatRequest) -> Generation:
        return Generation(
            temperature=request.temperature or 0.0,
            top_p=1.0 if request.top_p is None else request.top_p,
            max_tokens=min(request.limit or self._cfg.default_tokens, self._cfg.max_tokens),
            seed=secrets.randbelow(2**31) if request.seed is None else request.seed,
        )

    async def _view(self, request: ChatRequest) -> Chat:
        sizes = self._media.sizes(request)
        turns = [await self._turn(message, request, sizes) for message in request.messages]
        return chat_view("request", turns, _switches(request))

    async def _turn(self, message: Message, request: ChatRequest, sizes: Sizes) -> Turn:
        role = _ROLES.get(message.role)
        if role is None:
            raise BadRequest("bad_request", f"role {message.role[:40]!r}: system, user or assistant", 400)
        num_images = sum(part.type == "image_url" for part in message.parts)
        if role != "user" and any(part.type != "text" for part in message.parts):
            raise BadRequest("bad_request", f"a {role} turn takes text only", 400)
        together = self._media.rules.images_as_video and num_images > 1
        parts: list[Part] = []
        clip: Part | None = None
        for part in message.parts:
            if part.type == "text":
                parts.append(Part(part.text or ""))
            elif part.type == "video_url":
                found = await self._media.clip(part, request, sizes)
                parts.append(Part(frames=found.frames, duration_s=found.duration_s))
            elif not together:
                parts.append(Part(frames=(await self._media.image(part, sizes, as_frame=False),)))
            elif clip is None:
                frames = await self._media.frames_of(message, request, sizes)
                step_s = frames[1].timestamp_s - frames[0].timestamp_s
                clip = Part(frames=frames, duration_s=len(frames) * step_s)
                parts.append(clip)
        return Turn(role, tuple(parts))


def _check_served(request: ChatRequest) -> None:
    extra = cast("Mapping[str, Any]", request.model_extra or {})
    asked = [name for name in _UNSERVED if extra.get(name)]
    asked += [name for name in _PENALTIES if extra.get(name)]
    if asked:
        raise BadRequest(
            "unsupported", f"{', '.join(asked)}: not with this engine; serve it with --engine vllm", 400
        )


def _switches(request: ChatRequest) -> dict[str, Any]:
    switches = dict(request.chat_template_kwargs or {})
    for name, value in switches.items():
        if name in _FIXED or not isinstance(value, (bool, int, float, str, type(None))):
            raise BadRequest("bad_request", f"chat_template_kwargs.{name[:40]}: can't be set here", 400)
    return switches


def _stopped(reply: Reply, stops: Sequence[str]) -> Choice:
    """The completion up to the first stop string."""
    places = [place for place in (reply.text.find(stop) for stop in stops) if place >= 0]
    if not places:
        return Choice(reply.text, reply.finish, reply.num_tokens, reply.reasoning)
    return Choice(reply.text[: min(places)], "stop", reply.num_tokens, reply.reasoning)


def _failure(error: str) -> BadRequest:
    status, _, detail = error.partition(": ")
    if status == "encode":
        return BadRequest("bad_request", f"the model can't take it: {detail[:300]}", 400)
    log.error("the model failed: %s", error[:1000])
    return BadRequest("model_failed", "the model failed; the server's log has the reason", 500)
