"""A model behind any OpenAI-compatible server: bounded, retried, and no failure is more than a reply."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np

from ffr.config import TeacherConfig
from ffr.eval.models.base import Generation, ModelIdentity, Reply
from ffr.eval.models.media import ImageFormat, Media, messages
from ffr.fix.client import ChatClient
from ffr.fix.faults import TeacherFault
from ffr.observe import make_frame
from ffr.types import Frame, Observation

log = logging.getLogger(__name__)

MediaChoice = Literal["auto", "video", "frames"]
_TRIAL_S = 120.0
_NEVER = 10**9


@dataclass(frozen=True)
class ServerSettings:
    """Where a model is served and how it is asked.

    Example:
        >>> ServerSettings(base_url="http://127.0.0.1:8000/v1").media
        'auto'
    """

    base_url: str
    model: str = ""
    """The server's name for it; when empty, the only one it lists."""
    api_key_env: str = "OPENAI_API_KEY"
    """Name of the environment variable that holds the key; the key itself is never written."""
    media: MediaChoice = "auto"
    """`video` sends one MP4 (positions and times as in training), `frames` pictures; `auto` tries."""
    image_format: ImageFormat = "png"
    timeout_s: float = 600.0
    """Of one attempt, its wait for a free place included."""
    retries: int = 4
    concurrency: int = 16
    extra_body: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Further fields of the request (`chat_template_kwargs`, `mm_processor_kwargs`)."""


class ServerError(ValueError):
    """A server that can't be used; the message says what it lacks and what to do."""


class OpenAIAnswerer:
    """Answers through chat completions; make one with `connect`.

    Args:
        settings: Server, limits, retries; `model` and `media` are settled.
        name: In tables; the server's name for the model when empty.

    Example:
        >>> settings = ServerSettings("http://127.0.0.1:8000/v1", model="m", media="frames")
        >>> OpenAIAnswerer(settings).engine
        'openai/frames'
    """

    def __init__(self, settings: ServerSettings, *, name: str = "") -> None:
        self.settings = settings
        self.name = name or settings.model
        self._media: Media = "frames" if settings.media == "frames" else "video"
        self._client = ChatClient(client_config(settings))

    @property
    def engine(self) -> str:
        """`openai/video` or `openai/frames`."""
        return f"openai/{self._media}"

    def identity(self) -> ModelIdentity:
        """Which model this is, as far as a server lets one know."""
        from importlib import metadata

        sent = {"image_format": self.settings.image_format} if self._media == "frames" else {}
        extra = {"extra_body": dict(self.settings.extra_body)} if self.settings.extra_body else {}
        return ModelIdentity(
            model=self.settings.model,
            settings={**sent, **extra},
            versions={"openai": metadata.version("openai")},
        )

    async def answer(self, observations: Sequence[Observation], generation: Generation) -> list[Reply]:
        """One reply per observation, asked at the same time."""
        return list(await asyncio.gather(*(self._one(obs, generation) for obs in observations)))

    async def aclose(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    async def _one(self, obs: Observation, generation: Generation) -> Reply:
        try:
            body = await asyncio.to_thread(self._body, obs, generation)
            done = await self._client.complete(body, deadline=time.monotonic() + self._patience_s())
        except TeacherFault as fault:
            return Reply.failed(str(fault.kind), fault.detail)
        except Exception as error:
            log.warning("%s: %s: %s", obs.sample_uid, type(error).__name__, error)
            return Reply.failed("encode", f"{type(error).__name__}: {error}")
        return Reply(
            text=done.text or done.refusal,
            finish=done.finish,
            num_tokens=done.completion_tokens,
            num_prompt_tokens=done.prompt_tokens,
            reasoning=done.reasoning,
        )

    def _patience_s(self) -> float:
        tries = self.settings.retries + 1
        return self.settings.timeout_s * tries + 8.0 * self.settings.retries

    def _body(self, obs: Observation, generation: Generation) -> dict[str, Any]:
        extra: dict[str, Any] = dict(self.settings.extra_body)
        if self._media == "video" and len(obs.frames) > 1 and "media_io_kwargs" not in extra:
            # Without it vLLM samples the clip again; other servers pass the field over.
            extra["media_io_kwargs"] = {"video": {"num_frames": len(obs.frames)}}
        return {
            "messages": messages(obs, self._media, self.settings.image_format),
            "temperature": generation.temperature,
            "top_p": generation.top_p,
            "max_tokens": generation.max_tokens,
            "seed": generation.seed,
            **extra,
        }


def client_config(settings: ServerSettings) -> TeacherConfig:
    """The settings of the bounded client; its breaker never opens: every question gets its own tries."""
    return TeacherConfig(
        base_url=settings.base_url,
        model=settings.model,
        api_key_env=settings.api_key_env,
        attempt_timeout_s=settings.timeout_s,
        max_retries=settings.retries,
        concurrency=settings.concurrency,
        breaker_failures=_NEVER,
    )


async def connect(settings: ServerSettings) -> ServerSettings:
    """Settles what `settings` leaves open: the model's name and how frames are sent.

    Raises:
        ServerError: The server can't be reached, lists several models, or takes no media.
    """
    model = settings.model or await _only_model(settings)
    settled = replace(settings, model=model)
    if settings.media != "auto":
        return settled
    quick = replace(settled, retries=1, timeout_s=min(settings.timeout_s, _TRIAL_S))
    bare = await _try(replace(quick, media="frames"), ())
    if bare.error:
        raise ServerError(f"{settings.base_url}: model {model!r} does not answer ({bare.error})")
    faults: list[str] = []
    choices: tuple[Media, ...] = ("video", "frames")
    for media in choices:
        reply = await _try(replace(quick, media=media), _trial_frames())
        fault = reply.error
        if not fault and bare.num_prompt_tokens and reply.num_prompt_tokens <= bare.num_prompt_tokens:
            fault = f"took the request without its frames ({reply.num_prompt_tokens} prompt tokens)"
        if not fault:
            return replace(settled, media=media)
        faults.append(f"{media}: {fault}")
    raise ServerError(
        f"{settings.base_url}: model {model!r} takes neither a clip nor pictures ({'; '.join(faults)}); give "
        "--media video or --media frames to go on without this trial"
    )


def _trial_frames() -> tuple[Frame, ...]:
    pixels = np.full((56, 84, 3), 128, np.uint8)
    return tuple(make_frame(pixels, number=k + 1, source_index=k, timestamp_s=k / 2) for k in range(4))


async def _try(settings: ServerSettings, frames: tuple[Frame, ...]) -> Reply:
    """The reply to a trivial question about some frames."""
    obs = Observation("trial", frames, "Is this a video? Answer yes or no.", "trial")
    answerer = OpenAIAnswerer(settings)
    try:
        (reply,) = await answerer.answer([obs], Generation(max_tokens=1))
    finally:
        await answerer.aclose()
    return reply


async def _only_model(settings: ServerSettings) -> str:
    url = settings.base_url
    client = ChatClient(client_config(settings))
    try:
        names = await client.models(deadline=time.monotonic() + _TRIAL_S)
    except TeacherFault as fault:
        raise ServerError(f"{url}: can't list its models ({fault}); is it up? Or give --model NAME") from None
    finally:
        await client.aclose()
    # `ffr serve` lists NAME:answer beside NAME: the same model, with its answers cut out for harnesses.
    aliases = {f"{name}:answer" for name in names}
    names = tuple(name for name in names if name not in aliases)
    if len(names) != 1:
        listed = ", ".join(names[:8])
        raise ServerError(f"{url} serves {len(names)} models ({listed}): give --model NAME --base-url {url}")
    return names[0]
