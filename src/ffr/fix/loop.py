"""The teacher over HTTP: looks with tools, then writes the patch in a request of its own.

One conversation per failed rollout. Tool results go back as text, the pictures in one user message after
them, which is the only form that every server and chat template understands (FFR section 3.2).
"""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import replace
from typing import Any

from ffr.config import FixConfig, ObserveConfig
from ffr.fix.boxes import unit_arguments, unit_reply
from ffr.fix.client import ChatClient
from ffr.fix.completion import Completion, WireCall
from ffr.fix.faults import TeacherFault
from ffr.fix.messages import (
    Message,
    add_user,
    assistant_calls,
    image_parts,
    prompted_action,
    text_part,
    textual_calls,
)
from ffr.fix.patch import PatchError, parse_patch, patch_json_schema
from ffr.fix.profiles import (
    Profile,
    choose_profile,
    response_format,
    schema_for,
    weaker_schema,
)
from ffr.fix.prompting import data_block, mend_prompt, patch_prompt, prompt_version, system_prompt
from ffr.fix.request import with_usage
from ffr.fix.teacher import FailureKind, TeacherRequest, short_hash
from ffr.fix.tools import (
    LabelledImage,
    ToolBox,
    ToolError,
    ToolResult,
    parse_arguments,
    printable,
    tool_schemas,
)
from ffr.observe import MediaError
from ffr.types import Diagnosis, EvidencePatch, TeacherCost, ToolCall

log = logging.getLogger(__name__)


class ChatTeacher:
    """A teacher behind any OpenAI-compatible server.

    Args:
        cfg: Server, limits, prompt configuration.
        observe_cfg: The student's view; its frames are what the teacher gets first.

    Raises:
        ValueError: No `fix.teacher.base_url`.

    Example:
        >>> cfg = FixConfig.model_validate({"teacher": {"base_url": "http://127.0.0.1:8000/v1"}})
        >>> ChatTeacher(cfg).profile.schema
        'json_schema'
        >>> diagnosis = await ChatTeacher(cfg).diagnose(request)  # doctest: +SKIP
    """

    def __init__(self, cfg: FixConfig, observe_cfg: ObserveConfig | None = None) -> None:
        self.cfg = cfg
        self.observe_cfg = observe_cfg or ObserveConfig()
        self.profile = choose_profile(cfg.teacher)
        """What is sent; weakened for good when the server refuses a feature and takes the weaker form."""
        self.client = ChatClient(cfg.teacher)
        self.name = teacher_name(cfg, self.profile)

    async def diagnose(self, request: TeacherRequest) -> Diagnosis:
        """Look, then write the patch; every fault is a failure kind."""
        started = time.monotonic()
        talk = Conversation(self, request, deadline=started + self.cfg.teacher.rollout_deadline_s)
        patch: EvidencePatch | None = None
        try:
            async with asyncio.timeout(self.cfg.teacher.rollout_deadline_s):
                patch = await talk.run()
            failure, detail = "", ""
            self.profile = talk.profile
        except TeacherFault as fault:
            failure, detail = fault.kind, fault.detail
        except TimeoutError:
            failure, detail = (
                FailureKind.TIMEOUT,
                f"no patch within {self.cfg.teacher.rollout_deadline_s:g} s",
            )
        except (MediaError, ToolError) as error:
            failure, detail = FailureKind.DECODE_ERROR, str(error)
        except Exception as error:
            log.exception("conversation about %s failed", request.sample.uid)
            failure, detail = FailureKind.INTERNAL, f"{type(error).__name__}: {error}"
        return Diagnosis(
            patch=patch,
            failure=failure,
            detail=printable(detail)[:300],
            tool_calls=tuple(talk.toolbox.calls),
            cost=replace(talk.cost, num_images=talk.num_images, wall_s=time.monotonic() - started),
        )

    @property
    def gauges(self) -> dict[str, int]:
        """Requests at a time that the server bears: now, at the lowest, and how often that was halved."""
        limit = self.client.limit
        return {
            "concurrency": limit.current,
            "concurrency_lowest": limit.lowest,
            "concurrency_halved": limit.num_halved,
        }

    async def aclose(self) -> None:
        """Close the connections."""
        await self.client.aclose()


def teacher_name(cfg: FixConfig, profile: Profile) -> str:
    """All that shapes a reply, for the journal's key: model, profile, prompts, sampling, tool limits."""
    t = cfg.teacher
    settings = f"{t.temperature:g}/{t.max_tokens}/{t.max_tool_calls}/{t.max_images}/{t.max_image_px}"
    prompts = short_hash(prompt_version(), cfg.prompt_config)
    features = f"{profile.name}-{profile.schema}-{profile.tools}-{profile.boxes}"
    return f"openai:{t.model}:{features}:{prompts}:{short_hash(settings)}"


class Conversation:
    """One failed rollout's talk with the teacher.

    Args:
        teacher: Client, profile and settings.
        request: The rollout.
        deadline: `time.monotonic()` value at which all waiting ends.
    """

    def __init__(self, teacher: ChatTeacher, request: TeacherRequest, *, deadline: float) -> None:
        observation = request.rollout.observation
        self._cfg = teacher.cfg
        self._client = teacher.client
        self._request = request
        self._deadline = deadline
        self._num_frames = len(observation.frames)
        first = observation.frames[0] if observation.frames else None
        self._size_px = (first.width_px, first.height_px) if first else (1, 1)
        self._messages: list[Message] = []
        self._shown = 0
        self.profile = teacher.profile
        self.cost = TeacherCost()
        limit = teacher.cfg.teacher.max_images
        self.toolbox = ToolBox(
            request.sample,
            observation,
            max_px=teacher.cfg.teacher.max_image_px,
            max_images=max(0, limit - self._num_frames),
            timeout_s=teacher.cfg.teacher.tool_timeout_s,
        )

    @property
    def num_images(self) -> int:
        """Pictures sent: the student's frames and the tools' results."""
        return self._shown + self.toolbox.num_images

    async def run(self) -> EvidencePatch:
        """The whole conversation.

        Raises:
            TeacherFault, MediaError: There is no patch.
        """
        if not self._num_frames:
            raise TeacherFault(FailureKind.DECODE_ERROR, "the observation has no frames")
        frames = await self.toolbox.student_frames()
        self._shown = len(frames)
        self._messages.append({"role": "system", "content": ""})
        self._set_system()
        parts = [text_part(data_block(self._request)), text_part("The student's frames:")]
        add_user(self._messages, parts + await self._pictures(frames))
        if self._cfg.teacher.max_tool_calls:
            await self._look()
        return await self._write_patch()

    async def _look(self) -> None:
        """Tool turns, until the teacher has seen enough or its calls are spent."""
        while len(self.toolbox.calls) < self._cfg.teacher.max_tool_calls:
            completion = await self._ask_with_tools()
            if completion.tool_calls and self.profile.tools == "native":
                await self._answer_native(completion)
                continue
            calls = completion.tool_calls or textual_calls(completion.text)
            if not calls and self.profile.tools == "prompted":
                action = prompted_action(completion.text)
                if action is None:
                    self._refuse_reply(completion.text)
                    continue
                calls = (action,)
            done = not calls or calls[0].name == "finish"
            said = completion.text or ("Done." if done else f"{calls[0].name} {calls[0].arguments}")
            self._messages.append({"role": "assistant", "content": said})
            if done:
                return
            await self._answer_as_text(calls)

    async def _ask_with_tools(self) -> Completion:
        body: dict[str, Any] = {"messages": self._messages}
        if self.profile.tools == "prompted":
            return await self._send(body)
        try:
            return await self._send({**body, "tools": tool_schemas(self._num_frames)})
        except TeacherFault as fault:
            if not fault.refuses_form or self.toolbox.calls:
                raise
            log.warning("server refuses tools (%s); tool calls as JSON text from now on", fault.detail)
            self.profile = replace(self.profile, tools="prompted")
            self._set_system()
            return await self._send(body)

    async def _answer_native(self, completion: Completion) -> None:
        """Every call gets exactly one tool message; all pictures follow in one user message."""
        used = len(self.toolbox.calls)
        calls = [replace(c, call_id=f"call_{used + i}") for i, c in enumerate(completion.tool_calls)]
        self._messages.append(assistant_calls(completion.text, calls))
        images: list[LabelledImage] = []
        for call in calls:
            result = await self._run_tool(call)
            images.extend(result.images)
            self._messages.append(
                {"role": "tool", "tool_call_id": call.call_id, "content": result.call.result}
            )
        if images:
            add_user(self._messages, await self._pictures(images))

    async def _answer_as_text(self, calls: tuple[WireCall, ...]) -> None:
        for call in calls:
            result = await self._run_tool(call)
            parts = [text_part(f"Result of {call.name}: {result.call.result}")]
            add_user(self._messages, parts + await self._pictures(result.images))

    def _refuse_reply(self, text: str) -> None:
        """A prompted turn without an action: it counts as a call, so that it cannot go on for ever."""
        problem = 'error: reply with one JSON object with the field "action"'
        self.toolbox.calls.append(ToolCall("", {"text": text[:120]}, problem, ok=False))
        self._messages.append({"role": "assistant", "content": text[:8_000] or "(no text)"})
        add_user(self._messages, [text_part(problem)])

    async def _run_tool(self, call: WireCall) -> ToolResult:
        if len(self.toolbox.calls) >= self._cfg.teacher.max_tool_calls:
            return ToolResult(ToolCall(call.name, {}, "error: no calls left; the patch is next", ok=False))
        try:
            arguments = parse_arguments(call.arguments)
        except ToolError as error:
            refused = ToolCall(
                call.name, {"text": printable(call.arguments)[:120]}, f"error: {error}", ok=False
            )
            self.toolbox.calls.append(refused)
            return ToolResult(refused)
        arguments = unit_arguments(arguments, self.profile.boxes, self._size_px)
        return await self.toolbox.call(call.name, arguments)

    async def _write_patch(self) -> EvidencePatch:
        """The last request, without tools, and one re-ask with the validation error.

        Raises:
            TeacherFault: `truncated`, `tool_budget`, `refusal` or `invalid_output`, or a transport fault.
        """
        add_user(self._messages, [text_part(patch_prompt(self.profile, self._num_frames))])
        fault = TeacherFault(FailureKind.INVALID_OUTPUT, "no reply")
        for _ in range(2):
            completion = await self._ask_for_patch()
            try:
                text = unit_reply(completion.text, self.profile.boxes, self._size_px)
                return parse_patch(text, self._num_frames).to_patch()
            except PatchError as error:
                fault = _patch_fault(completion, error.reason)
            self._messages.append({"role": "assistant", "content": completion.text[:8_000] or "(no text)"})
            add_user(self._messages, [text_part(mend_prompt(fault.detail))])
        raise fault

    async def _ask_for_patch(self) -> Completion:
        schema = schema_for(self.profile, patch_json_schema(self._num_frames), self._size_px)
        while True:
            form = response_format(self.profile, schema)
            body: dict[str, Any] = {"messages": self._messages}
            try:
                return await self._send({**body, "response_format": form} if form else body)
            except TeacherFault as fault:
                weaker = weaker_schema(self.profile.schema)
                if not fault.refuses_form or weaker is None:
                    raise
                log.warning("server refuses %s (%s); trying %s", self.profile.schema, fault.detail, weaker)
                self.profile = replace(self.profile, schema=weaker)

    async def _send(self, body: dict[str, Any]) -> Completion:
        teacher = self._cfg.teacher
        self.cost = replace(self.cost, num_calls=self.cost.num_calls + 1)
        limit = self.profile.max_tokens_field
        body = {**body, "temperature": teacher.temperature, limit: teacher.max_tokens}
        completion = with_usage(await self._client.complete(body, deadline=self._deadline), body)
        self.cost = replace(
            self.cost,
            prompt_tokens=self.cost.prompt_tokens + completion.prompt_tokens,
            completion_tokens=self.cost.completion_tokens + completion.completion_tokens,
            estimated_tokens=self.cost.estimated_tokens + completion.estimated_tokens,
        )
        if completion.refusal or completion.finish == "content_filter":
            raise TeacherFault(FailureKind.REFUSAL, completion.refusal or "content filter")
        return completion

    async def _pictures(
        self, images: tuple[LabelledImage, ...] | list[LabelledImage]
    ) -> list[dict[str, Any]]:
        return await asyncio.to_thread(image_parts, images)

    def _set_system(self) -> None:
        self._messages[0]["content"] = system_prompt(
            self._cfg,
            self.profile,
            num_frames=self._num_frames,
            has_reference=self._request.reference_answer is not None,
            tools=self.profile.tools if self._cfg.teacher.max_tool_calls else "none",
        )


def _patch_fault(completion: Completion, reason: str) -> TeacherFault:
    """Why a patch reply is unusable, in the kind that says what to change."""
    if completion.finish == "length":
        return TeacherFault(FailureKind.TRUNCATED, "the reply was cut at the token limit; write it shorter")
    if completion.tool_calls or textual_calls(completion.text):
        return TeacherFault(FailureKind.TOOL_BUDGET, "tools are no longer available; write the JSON object")
    return TeacherFault(FailureKind.INVALID_OUTPUT, reason)
