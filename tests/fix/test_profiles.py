"""Profiles, the circuit breaker and Retry-After."""

from __future__ import annotations

import email.utils
import time

import pytest

from ffr.config import TeacherConfig
from ffr.fix import FailureKind, patch_json_schema
from ffr.fix.faults import CircuitBreaker, retry_after_s, status_fault
from ffr.fix.profiles import PROFILES, choose_profile, response_format, schema_for


@pytest.mark.parametrize(
    ("model", "profile", "expected"),
    [
        ("zai-org/GLM-4.5V", "vllm", ("json_schema", "prompted", "per_mille")),
        ("zai-org/GLM-4.6V", "glm", ("json_object", "native", "per_mille")),
        ("Qwen/Qwen2.5-VL-72B-Instruct", "vllm", ("json_schema", "prompted", "pixels")),
        ("Qwen/Qwen3-VL-32B-Instruct", "sglang", ("json_schema", "native", "per_mille")),
        ("gpt-whatever", "openai", ("json_schema", "native", "unit")),
        ("some/model", "transformers", ("prompt", "prompted", "unit")),
        ("some/model", "auto", ("json_schema", "native", "unit")),
    ],
)
def test_profiles_follow_server_and_family(model: str, profile: str, expected: tuple[str, str, str]) -> None:
    chosen = choose_profile(TeacherConfig.model_validate({"model": model, "profile": profile}))
    assert (chosen.schema, chosen.tools, chosen.boxes) == expected


def test_auto_knows_hosted_servers() -> None:
    openai = choose_profile(TeacherConfig(base_url="https://api.openai.com/v1", model="m"))
    assert (openai.name, openai.max_tokens_field) == ("openai", "max_completion_tokens")
    assert choose_profile(TeacherConfig(base_url="https://api.z.ai/api/paas/v4", model="m")).name == "glm"


def test_response_formats() -> None:
    schema = patch_json_schema(16)
    assert response_format(PROFILES["transformers"], schema) is None
    assert response_format(PROFILES["glm"], schema) == {"type": "json_object"}
    form = response_format(PROFILES["vllm"], schema)
    assert form is not None and form["json_schema"]["schema"] == schema
    item = schema_for(PROFILES["glm"], schema, (100, 50))["properties"]["spatial_regions"]["items"]
    assert item["properties"]["box"]["items"] == {"type": "integer", "minimum": 0, "maximum": 1000}
    assert schema == patch_json_schema(16)


class Clock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_breaker_opens_rests_probes_and_doubles() -> None:
    clock = Clock()
    breaker = CircuitBreaker(failures=3, open_s=10.0, clock=clock)
    for kind in (FailureKind.CONNECTION, FailureKind.TIMEOUT, FailureKind.RATE_LIMITED, FailureKind.TIMEOUT):
        breaker.failed(kind)  # a 429 shows life and starts the count anew
    assert breaker.allow()
    breaker.failed(FailureKind.TIMEOUT)
    breaker.failed(FailureKind.SERVER_ERROR)
    assert not breaker.allow()
    clock.now = 10.5
    assert breaker.allow() and not breaker.allow()  # one probe
    breaker.failed(FailureKind.TIMEOUT)
    clock.now = 25.0
    assert not breaker.allow()  # twice as long
    clock.now = 31.0
    assert breaker.allow()
    breaker.succeeded()
    assert breaker.allow() and breaker.allow() and breaker.times_opened == 2


def test_breaker_opens_at_once_for_a_refused_key_and_survives_a_lost_probe() -> None:
    clock = Clock()
    breaker = CircuitBreaker(failures=99, open_s=10.0, clock=clock)
    breaker.failed(FailureKind.AUTH)
    assert not breaker.allow()
    clock.now = 11.0
    assert breaker.allow()  # this probe is cancelled and never reports
    assert not breaker.allow()
    clock.now = 22.0
    assert breaker.allow()


def test_retry_after_forms() -> None:
    assert retry_after_s({"retry-after": "1.5"}) == 1.5
    assert retry_after_s({"retry-after": "-3"}) == 0.0
    for useless in ("", "nan", "inf", "soon", "1e999"):
        assert retry_after_s({"retry-after": useless}) is None
    later = email.utils.formatdate(time.time() + 1000, usegmt=True)
    seconds = retry_after_s({"retry-after": later})
    assert seconds is not None and 900 < seconds <= 1000


@pytest.mark.parametrize(
    ("status", "kind", "retryable"),
    [
        (400, FailureKind.BAD_REQUEST, False),
        (401, FailureKind.AUTH, False),
        (403, FailureKind.AUTH, False),
        (404, FailureKind.BAD_REQUEST, False),
        (408, FailureKind.SERVER_ERROR, True),
        (409, FailureKind.SERVER_ERROR, True),
        (413, FailureKind.BAD_REQUEST, False),
        (422, FailureKind.BAD_REQUEST, False),
        (425, FailureKind.SERVER_ERROR, True),
        (429, FailureKind.RATE_LIMITED, True),
        (500, FailureKind.SERVER_ERROR, True),
        (503, FailureKind.SERVER_ERROR, True),
    ],
)
def test_statuses(status: int, kind: FailureKind, retryable: bool) -> None:
    fault = status_fault(status, {}, "x")
    assert (fault.kind, fault.retryable, fault.status) == (kind, retryable, status)
