"""Requests as bytes: the JSON that the SDK would send, without its walk; tokens that no server counted."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ffr.fix import diagnose
from ffr.fix.client import ChatClient
from ffr.fix.completion import Completion, WireCall
from ffr.fix.loop import ChatTeacher
from ffr.fix.messages import data_uri
from ffr.fix.request import DataUri, encode_request, estimate_prompt_tokens, with_usage
from tests.fix.common import failed_rollout, make_sample
from tests.fix.fake_server import FakeServer, Reply, reply_json, say
from tests.fix.test_faults import PATCH, config

PICTURE = data_uri(np.full((56, 84, 3), 90, np.uint8))


def image(uri: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": uri, "detail": "high"}}


texts = st.text(max_size=30).map(lambda text: text.encode("utf-8", "replace").decode())
parts = st.lists(
    texts.map(lambda text: {"type": "text", "text": text})
    | st.just(image(PICTURE))
    | st.just(image("data:,x")),
    max_size=5,
)


@given(st.lists(st.fixed_dictionaries({"role": st.just("user"), "content": texts | parts}), max_size=4))
def test_the_bytes_are_the_body_as_json(messages: list[dict[str, Any]]) -> None:
    body = {"model": "m", "messages": messages, "temperature": 0.1, "tools": [{"a": "\u00e9"}]}
    assert json.loads(encode_request(body)) == body


def test_lone_surrogates_are_sent_as_question_marks_and_nan_is_refused() -> None:
    assert b'"a?b"' in encode_request({"messages": [{"role": "user", "content": "a\ud800b"}]})
    with pytest.raises(ValueError, match="Out of range float"):
        encode_request({"messages": [], "temperature": float("nan")})
    for bad in ('data:,"', "data:,\\", "data:,\n", "data:,\u00e9"):
        with pytest.raises(ValueError, match="printable ASCII"):
            DataUri(bad, num_px=1)


def test_a_request_keeps_its_pictures_and_its_content_type_on_the_wire() -> None:
    body = {"messages": [{"role": "user", "content": [{"type": "text", "text": "\u00e9?"}, image(PICTURE)]}]}

    async def run(base_url: str) -> Completion:
        client = ChatClient(config(base_url).teacher)
        try:
            return await client.complete(body, deadline=time.monotonic() + 30.0)
        finally:
            await client.aclose()

    with FakeServer(lambda request, number: say("yes")) as server:
        assert asyncio.run(run(server.base_url)).text == "yes"
    assert server.requests[0] == {"model": "fake-vl", **body}
    head = server.headers[0].lower()
    assert head.startswith("post /v1/chat/completions ") and "content-type: application/json\r\n" in head


def test_estimates_fill_in_only_what_the_server_left_out() -> None:
    body = {"messages": [{"role": "user", "content": [{"type": "text", "text": "x" * 40}, image(PICTURE)]}]}
    assert estimate_prompt_tokens(body) == 40 // 4 + 56 * 84 // 784  # 10 + 6
    called = {**body, "tools": [{"a": 1}]}  # 10 characters of JSON
    assert estimate_prompt_tokens(called) == 6 + 13  # (40 + 10) / 4, rounded up
    silent = with_usage(
        Completion(text="y" * 8, finish="stop", tool_calls=(WireCall("c", "f", "{}"),), reasoning="z" * 3),
        body,
    )
    assert (silent.prompt_tokens, silent.completion_tokens, silent.estimated_tokens) == (16, 4, 20)
    told = with_usage(Completion("y" * 80, "stop", prompt_tokens=7, completion_tokens=3), body)
    assert (told.prompt_tokens, told.completion_tokens, told.estimated_tokens) == (7, 3, 0)
    half = with_usage(Completion("y" * 80, "stop", prompt_tokens=7), body)
    assert (half.prompt_tokens, half.completion_tokens, half.estimated_tokens) == (7, 20, 20)


@pytest.mark.parametrize("reported", [True, False])
def test_a_diagnosis_says_how_much_of_its_cost_is_estimated(reported: bool) -> None:
    def script(request: dict[str, Any], number: int) -> Reply:
        if reported:
            return say(PATCH)
        return reply_json({"choices": [{"message": {"content": PATCH}, "finish_reason": "stop"}]})

    async def run(base_url: str) -> Any:
        teacher, sample = ChatTeacher(config(base_url, max_tool_calls=0)), make_sample()
        try:
            return (await diagnose(sample, failed_rollout(sample), teacher)).cost
        finally:
            await teacher.aclose()

    with FakeServer(script) as server:
        cost = asyncio.run(run(server.base_url))
        (request,) = server.requests
    if reported:
        assert (cost.prompt_tokens, cost.completion_tokens, cost.estimated_tokens) == (100, 10, 0)
        return
    chars = sum(
        len(part["text"])
        for message in request["messages"]
        for part in (
            message["content"] if isinstance(message["content"], list) else [{"text": message["content"]}]
        )
        if "text" in part
    )
    pictures = 8 * -(-96 * 64 // 784)
    assert cost.prompt_tokens == pictures + -(-chars // 4)
    assert cost.completion_tokens == -(-len(PATCH) // 4)
    assert cost.estimated_tokens == cost.prompt_tokens + cost.completion_tokens
