"""`ffr doctor teacher`: asks a server what a teacher will need of it, in less than a minute."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable
from dataclasses import dataclass, replace
from typing import Annotated, Any, Final, Literal

import numpy as np
from cyclopts import Parameter
from rich.console import Console

from ffr.cli.doctor import Check, print_checks
from ffr.cli.errors import EXIT_FAILED, EXIT_OK
from ffr.config import TeacherConfig
from ffr.fix.client import ChatClient
from ffr.fix.completion import Completion
from ffr.fix.faults import TeacherFault
from ffr.fix.messages import data_uri, text_part, textual_calls
from ffr.fix.profiles import Profile, choose_profile
from ffr.fix.tools import tool_schemas

LIMIT_S: Final = 50.0
"""Wall time of all probes together."""
REACHABLE_S: Final = 20.0
PICTURE_PX: Final = 112
MAX_TOKENS: Final = 256
ANY_WORD: Final = "zq7"
"""What only a server that enforces the schema will write."""


@dataclass(frozen=True, slots=True)
class Measured:
    """What the probes found; None where a probe gave no answer.

    Example:
        >>> Measured(schema="prompt", tools="prompted", checks=()).schema
        'prompt'
    """

    checks: tuple[Check, ...]
    schema: Literal["json_schema", "json_object", "prompt"] | None = None
    tools: Literal["native", "prompted"] | None = None

    @property
    def can_teach(self) -> bool:
        """False when a check failed that no profile makes up for."""
        return all(check.state != "fail" for check in self.checks)


def teacher(
    *,
    base_url: Annotated[str, Parameter(name=["--base-url"])],
    model: str = "",
    profile: Literal["auto", "vllm", "sglang", "openai", "glm", "transformers"] = "auto",
    api_key_env: str = "FFR_TEACHER_API_KEY",
) -> int:
    """Check that an OpenAI-compatible server can serve as the teacher; at most one minute.

    Exit code 1: it cannot (unreachable, key or model refused, no pictures).

    Args:
        base_url: Address, with /v1 where the server has it.
        model: Name of the model there; the one that the server lists when not given.
        profile: What to take the server for.
        api_key_env: Name of the environment variable with the key.
    """
    console = Console(highlight=False)
    cfg = TeacherConfig(base_url=base_url, model=model or "?", profile=profile, api_key_env=api_key_env)
    if not model:
        model, problem = asyncio.run(only_model(cfg))
        if problem:
            console.print(f"{base_url} {problem}: name one with --model", markup=False)
            return EXIT_FAILED
        cfg = cfg.model_copy(update={"model": model})
    measured = asyncio.run(measure(cfg))
    print_checks(measured.checks, console)
    if not measured.can_teach:
        console.print("this server cannot serve as a teacher, see above", markup=False)
        return EXIT_FAILED
    name, used = advise(cfg, measured)
    features = f"schema {used.schema}, tools {used.tools}, boxes {used.boxes}"
    console.print(f"\nprofile: {name} ({features})", markup=False, soft_wrap=True)
    key = "" if api_key_env == "FFR_TEACHER_API_KEY" else f" --fix.teacher.api-key-env {api_key_env}"
    line = f"--fix.teacher.base-url {base_url} --fix.teacher.model {model} --fix.teacher.profile {name}{key}"
    console.print(f"set: {line}", markup=False, soft_wrap=True)
    return EXIT_OK


def advise(cfg: TeacherConfig, measured: Measured) -> tuple[str, Profile]:
    """The profile to set and its features: the configured one, unless the probes contradict it."""
    chosen = choose_profile(cfg)
    schema, tools = measured.schema or chosen.schema, measured.tools or chosen.tools
    if (schema, tools) == (chosen.schema, chosen.tools) or chosen.name == "openai":
        return cfg.profile, chosen
    # Prompted tools and a prompted schema work everywhere; the checks of our own replace the server's.
    name: Literal["transformers", "glm", "auto"] = "transformers"
    if tools == "native" and schema != "prompt":
        name = "glm" if schema == "json_object" else "auto"
    advised = choose_profile(cfg.model_copy(update={"profile": name}))
    return name, replace(advised, name=name)


async def measure(cfg: TeacherConfig, *, limit_s: float = LIMIT_S) -> Measured:
    """Run all probes.

    Args:
        cfg: Server, model, key and the profile to start from.
        limit_s: Wall time for all of them.

    Returns:
        Checks in reading order; only the first ones if the server cannot be talked to at all.
    """
    # One retry: a server may have closed a kept connection, after an error of its own for one.
    changes = {"max_retries": 1, "breaker_failures": 1_000, "attempt_timeout_s": limit_s / 3}
    cfg = cfg.model_copy(update=changes)
    client = ChatClient(cfg)
    probe = _Probe(client, choose_profile(cfg), time.monotonic() + limit_s)
    try:
        reachable, talks = await probe.names(cfg.model), await probe.talks()
        if talks[0].state == "fail":
            return Measured((reachable, *talks))
        results = await asyncio.gather(probe.picture(), probe.after_tool(), probe.tools(), probe.schema())
        picture, after_tool, (tools, tool_mode), (schema, schema_mode) = results
        checks = (reachable, *talks, picture, after_tool, tools, schema)
        return Measured(checks, schema=schema_mode, tools=tool_mode)
    finally:
        await client.aclose()


async def only_model(cfg: TeacherConfig, *, limit_s: float = REACHABLE_S) -> tuple[str, str]:
    """The name of the one model that a server lists, or why there is no such name.

    Args:
        cfg: Server and key.
        limit_s: Wall time.
    """
    client = ChatClient(cfg.model_copy(update={"max_retries": 0, "attempt_timeout_s": limit_s}))
    try:
        names = await client.models(deadline=time.monotonic() + limit_s)
    except TeacherFault as fault:
        return "", f"gives no list of models ({_words(fault)})"
    finally:
        await client.aclose()
    if len(names) == 1:
        return names[0], ""
    return "", f"lists {len(names)} models ({', '.join(names[:8])})" if names else "lists no model"


async def reachable(cfg: TeacherConfig, *, limit_s: float = REACHABLE_S) -> tuple[Check, ...]:
    """The first two probes of `measure`: the model is listed, and a short text is answered.

    Args:
        cfg: Server, model and key.
        limit_s: Wall time for both.
    """
    changes = {"max_retries": 0, "breaker_failures": 1_000, "attempt_timeout_s": limit_s / 2}
    client = ChatClient(cfg.model_copy(update=changes))
    probe = _Probe(client, choose_profile(cfg), time.monotonic() + limit_s)
    try:
        return (await probe.names(cfg.model), *await probe.talks())
    finally:
        await client.aclose()


class _Probe:
    """The questions, each with what its answer means."""

    def __init__(self, client: ChatClient, profile: Profile, deadline: float) -> None:
        self._client = client
        self._profile = profile
        self._deadline = deadline

    async def names(self, model: str) -> Check:
        """Does the server list the model?"""
        try:
            names = await self._client.models(deadline=self._deadline)
        except TeacherFault as fault:
            # Not every server lists its models; the next probe finds out whether it knows this one.
            return Check("models", "warn", f"no list of models: {_words(fault)}")
        if model in names:
            return Check("models", "ok", f"{model} is one of {len(names)}")
        return Check("models", "warn", f"{model} is not listed; there are {', '.join(names[:8]) or 'none'}")

    async def talks(self) -> tuple[Check, ...]:
        """A text request: reachable, model known, latency, usage."""
        started = time.monotonic()
        answer = await self._try(self._ask([text_part("Reply with the one word: yes")]))
        wall_s = time.monotonic() - started
        if isinstance(answer, TeacherFault):
            return (Check("reply", "fail", _words(answer)),)
        usage = answer.prompt_tokens > 0
        counted = f"{answer.prompt_tokens} + {answer.completion_tokens} tokens"
        return (
            Check("reply", "ok", f"{answer.text[:40]!r}"),
            Check("latency", "ok" if wall_s < 10.0 else "warn", f"{wall_s:.2f} s for a short text"),
            Check(
                "usage", "ok" if usage else "warn", counted if usage else "not reported: costs are estimated"
            ),
        )

    async def picture(self) -> Check:
        """Is a picture in a user message accepted, and does it seem to arrive?"""
        parts = [text_part("Frame 1:"), _red_picture(), text_part("Which colour is it? Reply with one word.")]
        answer = await self._try(self._ask(parts))
        if isinstance(answer, TeacherFault):
            return Check("pictures", "fail", f"refused: {_words(answer)}; a model that sees is needed")
        if "red" in answer.text.lower():
            return Check("pictures", "ok", "accepted, and it names the colour")
        return Check("pictures", "warn", f"accepted, but of a red square it says {answer.text[:40]!r}")

    async def after_tool(self) -> Check:
        """Is a picture accepted in the user message that follows a tool's text result?"""
        call = {"name": "get_frames", "arguments": '{"start": 1, "end": 2}'}
        messages = [
            {"role": "user", "content": [text_part("Look at frames 1 to 2.")]},
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [{"id": "call_0", "type": "function", "function": call}],
            },
            {"role": "tool", "tool_call_id": "call_0", "content": "Frames 1-2: 1 image attached below."},
            {"role": "user", "content": [text_part("Frame 1:"), _red_picture(), text_part("Go on.")]},
        ]
        answer = await self._try(self._send(messages, tools=tool_schemas(8)))
        if isinstance(answer, TeacherFault):
            return Check(
                "pictures after a tool", "warn", f"refused: {_words(answer)}; prompted tools avoid it"
            )
        return Check("pictures after a tool", "ok", "accepted")

    async def tools(self) -> tuple[Check, Literal["native", "prompted"] | None]:
        """Are tool calls parsed by the server, left in the text, or refused?"""
        content = [text_part("Call the tool get_frames with start 1 and end 2. Do nothing else.")]
        answer = await self._try(self._send([{"role": "user", "content": content}], tools=tool_schemas(8)))
        if isinstance(answer, TeacherFault):
            mode: Literal["prompted"] | None = "prompted" if answer.refuses_form else None
            return Check("tools", "warn", f"refused: {_words(answer)}; calls go as JSON text"), mode
        if answer.tool_calls:
            return Check("tools", "ok", f"parsed by the server: {answer.tool_calls[0].name}"), "native"
        if textual_calls(answer.text):
            return Check("tools", "ok", "left in the text by the server, parsed by us"), "native"
        said = f"no call came back, but {answer.text[:40]!r}; calls go as JSON text"
        return Check("tools", "warn", said), "prompted"

    async def schema(self) -> tuple[Check, Literal["json_schema", "json_object", "prompt"] | None]:
        """Is a JSON schema enforced, or only asked for in the prompt?"""
        wanted = {
            "type": "object",
            "additionalProperties": False,
            "required": ["word"],
            "properties": {"word": {"type": "string", "enum": [ANY_WORD]}},
        }
        body = {"name": "probe", "strict": True, "schema": wanted}
        content = [text_part("How are you today? Reply with one short sentence, no JSON.")]
        messages = [{"role": "user", "content": content}]
        form = {"type": "json_schema", "json_schema": body}
        answer = await self._try(self._send(messages, response_format=form))
        if isinstance(answer, Completion):
            if _word_of(answer.text) == ANY_WORD:
                return Check("JSON schema", "ok", "enforced by the server"), "json_schema"
            said = "taken and ignored: the prompt asks for it, and every reply is checked here"
            return Check("JSON schema", "warn", said), "prompt"
        if not answer.refuses_form:
            return Check("JSON schema", "warn", f"unknown: {_words(answer)}"), None
        content[0] = text_part('Reply with the JSON object {"word": "yes"}.')
        answer = await self._try(self._send(messages, response_format={"type": "json_object"}))
        if isinstance(answer, Completion):
            return Check("JSON schema", "warn", "refused; json_object is accepted"), "json_object"
        return Check("JSON schema", "warn", "refused, as is json_object: the prompt asks for it"), "prompt"

    def _ask(self, parts: list[dict[str, Any]]) -> Awaitable[Completion]:
        return self._send([{"role": "user", "content": parts}])

    def _send(self, messages: list[dict[str, Any]], **fields: Any) -> Awaitable[Completion]:
        body = {"messages": messages, "temperature": 0.0, self._profile.max_tokens_field: MAX_TOKENS}
        return self._client.complete({**body, **fields}, deadline=self._deadline)

    async def _try(self, request: Awaitable[Completion]) -> Completion | TeacherFault:
        try:
            return await request
        except TeacherFault as fault:
            return fault


def _red_picture() -> dict[str, Any]:
    pixels = np.zeros((PICTURE_PX, PICTURE_PX, 3), np.uint8)
    pixels[..., 0] = 220
    return {"type": "image_url", "image_url": {"url": data_uri(pixels)}}


def _words(fault: TeacherFault) -> str:
    """Kind and detail with what to do about it."""
    remedies = {
        "connection": "; is the server up, is the address right?",
        "auth": "; put the key into the variable that --api-key-env names",
        "timeout": "; it answers too slowly",
        "invalid_response": "; is this an OpenAI-compatible address, with /v1?",
    }
    remedy = "; is the model's name right, and the address with /v1?" if fault.status == 404 else ""
    return f"{fault.kind}: {fault.detail[:160]}{remedies.get(fault.kind, remedy)}"


def _word_of(text: str) -> str:
    try:
        value = json.loads(text.rpartition("</think>")[2])
    except (ValueError, RecursionError):
        return ""
    return str(value.get("word", "")) if isinstance(value, dict) else ""
