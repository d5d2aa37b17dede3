"""The fault matrix: a server that misbehaves, and what each misbehaviour becomes within its deadline."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from ffr.config import FindConfig, FixConfig, TeacherConfig
from ffr.fix import FailureKind, NoTeacherError, RepairFlow, diagnose
from ffr.fix.client import ChatClient, read_completion
from ffr.fix.faults import TeacherFault
from ffr.fix.loop import ChatTeacher
from ffr.types import Diagnosis, RepairStatus
from tests.fix.common import Student, failed_rollout, make_sample
from tests.fix.fake_server import HOLD_S, FakeServer, Reply, Script, call_tool, reply_json, say

ATTEMPT_S, DEADLINE_S = 12.0, 25.0
"""Far more than a fault takes that ends by itself: a busy machine must not turn it into a time-out."""
SLOW = {"attempt_timeout_s": 0.4, "rollout_deadline_s": 1.0}
"""For faults that end only by the clock."""
PATCH = (
    '{"error_types": ["temporal"], "key_frames": [[3, 4]], "temporal_markers": [], '
    '"spatial_regions": [], "guidance": "Watch these frames again."}'
)
HTML = Reply(b"<html>Bad gateway</html>", 200, {"content-type": "text/html"})


def config(base_url: str, **teacher: object) -> FixConfig:
    """One retry, three tool calls, no breaker."""
    fields: dict[str, object] = {
        "base_url": base_url,
        "model": "fake-vl",
        "profile": "vllm",
        "attempt_timeout_s": ATTEMPT_S,
        "rollout_deadline_s": DEADLINE_S,
        "step_deadline_s": 60.0,
        "max_retries": 1,
        "max_tool_calls": 3,
        "breaker_failures": 100,
    }
    return FixConfig(teacher=TeacherConfig.model_validate({**fields, **teacher}))


def ask(cfg: FixConfig, video: Path = Path("missing.mp4")) -> Diagnosis:
    """One diagnosis on a fresh teacher, closed afterwards."""

    async def run() -> Diagnosis:
        teacher = ChatTeacher(cfg)
        sample = make_sample(video)
        try:
            return await diagnose(sample, failed_rollout(sample), teacher)
        finally:
            await teacher.aclose()

    return asyncio.run(run())


def always(reply: Reply) -> Script:
    """The same reply to every request."""
    return lambda request, number: reply


def dead_port() -> int:
    """A port on loopback where nobody listens."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


K = FailureKind
# name -> (script, the failure kind, requests the server may see at most)
MATRIX: dict[str, tuple[Script, FailureKind, int]] = {
    "reset": (always(Reply(act="reset")), K.CONNECTION, 2),
    "slow headers": (always(Reply(act="slow_headers")), K.TIMEOUT, 2),
    "dripping body": (always(Reply(act="drip")), K.TIMEOUT, 2),
    "short body": (always(Reply(b"{", act="short")), K.CONNECTION, 2),
    "huge body": (always(Reply(act="huge")), K.TOO_LARGE, 1),
    "10 MB of text": (always(say("x" * 10_000_000)), K.TOO_LARGE, 1),
    "gzip that was not asked for": (
        always(Reply(b"\x1f\x8b\x00", 200, {"content-encoding": "gzip"})),
        K.TOO_LARGE,
        1,
    ),
    "429": (always(Reply(b"{}", 429)), K.RATE_LIMITED, 2),
    "429, wait 0.1 s": (always(Reply(b"{}", 429, {"retry-after": "0.1"})), K.RATE_LIMITED, 2),
    "429, wait an hour": (always(Reply(b"{}", 429, {"retry-after": "3600"})), K.RATE_LIMITED, 1),
    "429, wait rubbish": (always(Reply(b"{}", 429, {"retry-after": "soon"})), K.RATE_LIMITED, 2),
    "500": (always(reply_json({"error": {"message": "boom"}}, 500)), K.SERVER_ERROR, 2),
    "503": (always(Reply(b"", 503)), K.SERVER_ERROR, 2),
    "401": (always(reply_json({"error": "no"}, 401)), K.AUTH, 1),
    "404": (always(reply_json({"error": "no such model"}, 404)), K.BAD_REQUEST, 1),
    "longer than the context": (
        always(
            reply_json({"error": {"message": "This model's maximum context length is 2048 tokens."}}, 400)
        ),
        K.PROMPT_TOO_LONG,
        1,  # no weaker form of the request is any shorter
    ),
    "413": (always(Reply(b"", 413)), K.BAD_REQUEST, 1),
    "redirect elsewhere": (always(Reply(b"", 307, {"location": "http://127.0.0.1:1/"})), K.BAD_REQUEST, 1),
    "truncated JSON": (always(Reply(b'{"choices": [{"mess', 200)), K.INVALID_RESPONSE, 1),
    "HTML 200": (always(HTML), K.INVALID_RESPONSE, 1),
    "invalid UTF-8": (always(Reply(b'{"choices": "\xff\xfe"}', 200)), K.INVALID_RESPONSE, 1),
    "deep JSON": (always(Reply(b"[" * 100_000, 200)), K.INVALID_RESPONSE, 1),
    "a list": (always(reply_json([1, 2])), K.INVALID_RESPONSE, 1),
    "wrong types": (always(reply_json({"choices": {"a": 1}})), K.INVALID_RESPONSE, 1),
    "empty choices": (always(reply_json({"choices": []})), K.INVALID_RESPONSE, 1),
    "message is text": (always(reply_json({"choices": [{"message": "hi"}]})), K.INVALID_RESPONSE, 1),
    "wrong schema": (always(say('{"answer": "B"}')), K.INVALID_OUTPUT, 3),
    "no text at all": (always(say(None)), K.INVALID_OUTPUT, 3),
    "a megabyte of text": (always(say("x" * 1_000_000)), K.INVALID_OUTPUT, 3),
    "refusal": (
        always(reply_json({"choices": [{"message": {"content": None, "refusal": "I cannot help."}}]})),
        K.REFUSAL,
        1,
    ),
    "endless tool calls": (always(call_tool("get_frames", {"start": 1, "end": 2})), K.TOOL_BUDGET, 5),
    "endless wrong calls": (always(call_tool("rm", {"path": "/etc/passwd"})), K.TOOL_BUDGET, 5),
    "a path in a tool call": (
        always(call_tool("get_frames", {"start": 1, "end": 2, "path": "/etc/passwd"})),
        K.TOOL_BUDGET,
        5,
    ),
    "endless broken calls": (always(call_tool("get_frames", "{not json")), K.TOOL_BUDGET, 5),
    "cut at the limit": (always(say('{"error_types": ["temp', "length")), K.TRUNCATED, 3),
}


@pytest.mark.parametrize("name", MATRIX)
def test_fault_ends_within_its_deadline_with_its_kind(name: str) -> None:
    script, kind, most_requests = MATRIX[name]
    with FakeServer(script) as server:
        started = time.monotonic()
        diagnosis = ask(config(server.base_url, **(SLOW if kind is K.TIMEOUT else {})))
        wall_s = time.monotonic() - started
    assert diagnosis.failure == kind, diagnosis.detail
    assert diagnosis.patch is None
    assert len(server.requests) <= most_requests
    assert wall_s < HOLD_S  # how long the misbehaviour itself would last
    assert 0 < len(diagnosis.detail) <= 300


def test_refused_connection() -> None:
    diagnosis = ask(config(f"http://127.0.0.1:{dead_port()}/v1"))
    assert diagnosis.failure == FailureKind.CONNECTION


def test_retry_succeeds_after_transient_faults() -> None:
    def script(request: dict[str, object], number: int) -> Reply:
        return [Reply(b"", 503), Reply(b"{}", 429, {"retry-after": "0.05"}), say(PATCH)][min(number, 2)]

    with FakeServer(script) as server:
        diagnosis = ask(config(server.base_url, max_retries=3, max_tool_calls=0))
    assert diagnosis.ok, diagnosis.detail
    assert len(server.requests) == 3
    assert diagnosis.cost.prompt_tokens == 100


def test_wrong_tool_arguments_are_mended_by_the_teacher() -> None:
    def script(request: dict[str, object], number: int) -> Reply:
        if number == 0:
            return call_tool("get_frames", {"start": 7, "end": 2, "path": "/etc/passwd"})
        if number == 1:
            return call_tool("zoom_region", {"frame": 99, "box": [0, 0, 2, 2]})
        return say("Enough.") if number == 2 else say(PATCH)

    with FakeServer(script) as server:
        diagnosis = ask(config(server.base_url))
    assert diagnosis.ok, diagnosis.detail
    assert [call.ok for call in diagnosis.tool_calls] == [False, False]
    answers = [m["content"] for m in server.requests[-1]["messages"] if m["role"] == "tool"]
    assert "unknown argument 'path'" in answers[0]
    assert "whole number from 1 to 8" in answers[1]


def test_breaker_makes_a_dead_server_cheap() -> None:
    async def run(url: str) -> list[str]:
        client = ChatClient(config(url, breaker_failures=2, breaker_open_s=60.0, max_retries=0).teacher)
        kinds: list[str] = []
        for _ in range(5):
            try:
                await client.complete({"messages": []}, deadline=time.monotonic() + DEADLINE_S)
            except TeacherFault as fault:
                kinds.append(fault.kind)
        await client.aclose()
        return kinds

    with FakeServer(always(Reply(b"", 500))) as server:
        kinds = asyncio.run(run(server.base_url))
    assert kinds == ["server_error", "server_error", "breaker_open", "breaker_open", "breaker_open"]
    assert len(server.requests) == 2


def repair_all(cfg: FixConfig, count: int) -> tuple[RepairFlow, Callable[[], list[RepairStatus]], Student]:
    student = Student("B")
    flow = RepairFlow(teacher=ChatTeacher(cfg), sampler=student, fix=cfg, find=FindConfig())
    sample = make_sample()
    items = [(sample, failed_rollout(sample, f"{i} <answer>A</answer>")) for i in range(count)]
    return flow, lambda: [r.status for r in flow.repair_batch_blocking(items)], student


def test_dead_teacher_is_counted_and_stops_the_run() -> None:
    url = f"http://127.0.0.1:{dead_port()}/v1"
    cfg = config(url, max_retries=0, breaker_failures=4).model_copy(update={"no_teacher_after": 20})
    flow, run, student = repair_all(cfg, 10)
    assert run() == [RepairStatus.TEACHER_FAILED] * 10
    assert student.calls == []
    failures = {k: v for k, v in flow.counters.items() if k.startswith("failure/")}
    assert sum(failures.values()) == 10
    assert set(failures) <= {"failure/connection", "failure/breaker_open"}
    with pytest.raises(NoTeacherError, match="20 calls"):
        run()


def test_allow_no_teacher_goes_on() -> None:
    url = f"http://127.0.0.1:{dead_port()}/v1"
    cfg = config(url, max_retries=0).model_copy(update={"no_teacher_after": 2, "allow_no_teacher": True})
    flow, run, _ = repair_all(cfg, 4)
    assert run() == [RepairStatus.TEACHER_FAILED] * 4
    assert flow.counters["status/teacher_failed"] == 4


def test_random_faults_never_lose_a_rollout() -> None:
    bad = [Reply(act="reset"), Reply(b"", 500), HTML, Reply(b"{}", 429), say('{"answer": "B"}')]

    def script(request: dict[str, object], number: int) -> Reply:
        return bad[number % 5] if number * 7 % 10 < 3 else say(PATCH)

    with FakeServer(script) as server:
        cfg = config(server.base_url, max_tool_calls=0, concurrency=4)
        flow, run, student = repair_all(cfg, 24)
        statuses = run()
    assert len(statuses) == 24
    assert set(statuses) <= {RepairStatus.REPAIRED, RepairStatus.TEACHER_FAILED}
    assert statuses.count(RepairStatus.REPAIRED) >= 10
    assert sum(v for k, v in flow.counters.items() if k.startswith("status/")) == 24
    assert student.calls == [(statuses.count(RepairStatus.REPAIRED), "repaired")]


def test_step_deadline_cuts_a_slow_teacher() -> None:
    with FakeServer(always(Reply(act="slow_headers"))) as server:
        cfg = config(server.base_url, attempt_timeout_s=20.0, rollout_deadline_s=20.0, step_deadline_s=0.5)
        flow, run, _ = repair_all(cfg, 3)
        started = time.monotonic()
        assert run() == [RepairStatus.TEACHER_FAILED] * 3
    assert time.monotonic() - started < HOLD_S
    assert flow.counters["failure/step_deadline"] == 3


def test_key_is_explicit_and_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FFR_TEACHER_API_KEY", "canary-key")
    monkeypatch.setenv("OPENAI_API_KEY", "other-service-key")
    monkeypatch.setenv("OPENAI_ORG_ID", "other-org")
    with FakeServer(always(reply_json({"error": {"message": "bad key canary-key"}}, 401))) as server:
        diagnosis = ask(config(server.base_url))
    assert "Bearer canary-key" in server.headers[0]
    assert "other-service-key" not in server.headers[0] and "other-org" not in server.headers[0]
    assert "canary-key" not in diagnosis.detail


def test_read_completion_takes_the_forms_that_servers_use() -> None:
    parts = b'{"choices": [{"message": {"content": [{"type": "text", "text": "a"}, {"text": "b"}, 3]}}]}'
    assert read_completion(parts).text == "ab"
    objects = (
        b'{"choices": [{"message": {"content": null, "tool_calls": [{"function": {"name": "f",'
        b' "arguments": {"a": 1}}}]}, "finish_reason": 7}], "usage": {"prompt_tokens": -3}}'
    )
    completion = read_completion(objects)
    assert completion.tool_calls[0].arguments == '{"a": 1}'
    assert (completion.finish, completion.prompt_tokens) == ("", 0)
