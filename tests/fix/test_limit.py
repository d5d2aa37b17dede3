"""Adaptive concurrency: a server that bears less than `concurrency` is found out; all are answered."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from dataclasses import replace
from typing import Any

import pytest

from ffr.config import FindConfig
from ffr.fix import RepairFlow
from ffr.fix.client import ChatClient
from ffr.fix.faults import TeacherFault
from ffr.fix.limit import AdaptiveLimit, Ticket
from ffr.fix.loop import ChatTeacher
from ffr.types import RepairStatus
from tests.fix.common import Student, failed_rollout, make_sample
from tests.fix.fake_server import FakeServer, Reply, say
from tests.fix.test_faults import PATCH, config


class Narrow:
    """Bears `width` requests at a time and refuses the others at once."""

    def __init__(self, width: int, status: int = 429, text: str = "yes", hold_s: float = 0.1) -> None:
        self.width, self.status, self.text, self.hold_s = width, status, text, hold_s
        self.busy_until: list[float] = []
        self.lock = threading.Lock()
        self.refused = 0

    def __call__(self, request: dict[str, Any], number: int) -> Reply:
        now = time.monotonic()
        with self.lock:
            self.busy_until = [end for end in self.busy_until if end > now]
            if len(self.busy_until) >= self.width:
                self.refused += 1
                return Reply(b"{}", self.status)
            self.busy_until.append(now + self.hold_s)
        return replace(say(self.text), delay_s=self.hold_s)


def test_halves_once_for_what_was_sent_before_and_grows_by_one_per_window() -> None:
    limit = AdaptiveLimit(16)
    sent = [Ticket(era=0, alone=False)] * 5
    assert [limit.overloaded(ticket) for ticket in sent] == [True, False, False, False, False]
    assert (limit.current, limit.num_halved) == (8, 1)
    for _ in range(7):
        limit.succeeded()
    assert limit.current == 8
    limit.succeeded()  # the eighth: a window
    assert limit.current == 9
    assert limit.overloaded(Ticket(era=1, alone=True)) and limit.current == 4
    for _ in range(4 + 5 + 6):
        limit.succeeded()
    assert (limit.current, limit.lowest) == (7, 4)
    for era in range(2, 6):
        limit.overloaded(Ticket(era=era, alone=True))
    assert limit.current == 1 and limit.num_halved == 4
    for _ in range(1_000):
        limit.succeeded()
    assert limit.current == 16


def test_places_are_given_in_order_and_a_cancelled_wait_costs_none() -> None:
    async def run() -> list[str]:
        limit, order = AdaptiveLimit(1), list[str]()
        assert (await limit.enter()).alone

        async def wait(name: str) -> None:
            await limit.enter()
            order.append(name)
            await asyncio.sleep(0)
            limit.leave()

        tasks = [asyncio.create_task(wait(name)) for name in "abcd"]
        await asyncio.sleep(0)
        tasks[0].cancel()
        limit.leave()  # goes to b, who is cancelled in the same breath
        tasks[1].cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert (await asyncio.wait_for(limit.enter(), 5)).alone
        return order

    assert asyncio.run(run()) == ["c", "d"]


@pytest.mark.parametrize("status", [429, 503])
def test_a_narrow_server_answers_all_with_few_refusals(status: int, caplog: pytest.LogCaptureFixture) -> None:
    narrow, count = Narrow(4, status), 48

    async def run(base_url: str) -> ChatClient:
        client = ChatClient(config(base_url, concurrency=16, breaker_failures=4, max_retries=3).teacher)
        deadline = time.monotonic() + 60.0
        body = {"messages": [{"role": "user", "content": "?"}]}
        replies = await asyncio.gather(*(client.complete(body, deadline=deadline) for _ in range(count)))
        assert [reply.text for reply in replies] == ["yes"] * count
        await client.aclose()
        return client

    with caplog.at_level(logging.WARNING, "ffr.fix.client"), FakeServer(narrow) as server:
        client = asyncio.run(run(server.base_url))
    assert client.limit.num_halved >= 1 and client.limit.lowest <= 8
    assert client.breaker.times_opened == 0
    # Without adaptation each of the 44 that do not fit at first would be refused about once a round.
    assert 1 <= narrow.refused <= count
    assert f"HTTP {status}" in caplog.text and "at most 8 requests at a time" in caplog.text


def test_a_server_that_always_refuses_still_ends_and_one_at_a_time_counts() -> None:
    async def run(base_url: str, count: int) -> tuple[list[str], ChatClient]:
        client = ChatClient(config(base_url, concurrency=8, max_retries=1).teacher)
        body, deadline = {"messages": []}, time.monotonic() + 60.0

        async def one() -> str:
            try:
                return (await client.complete(body, deadline=deadline)).text
            except TeacherFault as fault:
                return fault.kind

        kinds = await asyncio.gather(*(one() for _ in range(count)))
        await client.aclose()
        return kinds, client

    with FakeServer(lambda request, number: Reply(b"{}", 429)) as server:
        kinds, client = asyncio.run(run(server.base_url, 8))
        assert kinds == ["rate_limited"] * 8 and client.limit.current == 1
        assert len(server.requests) <= 8 * (1 + 1 + 8)
        before = len(server.requests)
        assert asyncio.run(run(server.base_url, 1))[0] == ["rate_limited"]
        assert len(server.requests) == before + 2


def test_time_outs_halve_too() -> None:
    async def run(base_url: str) -> AdaptiveLimit:
        cfg = config(base_url, concurrency=8, max_retries=0, attempt_timeout_s=0.3).teacher
        client = ChatClient(cfg)
        asked = [client.complete({"messages": []}, deadline=time.monotonic() + 30.0) for _ in range(8)]
        replies = await asyncio.gather(*asked, return_exceptions=True)
        assert all(isinstance(reply, TeacherFault) for reply in replies)
        await client.aclose()
        return client.limit

    with FakeServer(lambda request, number: Reply(act="slow_headers")) as server:
        limit = asyncio.run(run(server.base_url))
    assert (limit.current, limit.num_halved) == (4, 1)


def test_a_whole_batch_gets_through_and_the_counters_tell_the_limit() -> None:
    narrow = Narrow(3, text=PATCH)
    with FakeServer(narrow) as server:
        cfg = config(server.base_url, max_tool_calls=0, concurrency=12, max_retries=3)
        flow = RepairFlow(teacher=ChatTeacher(cfg), sampler=Student(), fix=cfg, find=FindConfig())
        sample = make_sample()
        items = [(sample, failed_rollout(sample, f"{i} <answer>A</answer>")) for i in range(24)]
        statuses = [repair.status for repair in flow.repair_batch_blocking(items)]
    assert statuses == [RepairStatus.REPAIRED] * 24
    counters = flow.counters
    assert 1 <= counters["concurrency_lowest"] <= counters["concurrency"] <= 12
    assert counters["concurrency_halved"] >= 1 and narrow.refused > 0
