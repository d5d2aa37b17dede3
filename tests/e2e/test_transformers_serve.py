"""A real VLM server, `transformers serve` with the micro student: real pictures over real HTTP.

The student is trained to answer questions about six tiles, so as a teacher it writes nonsense: what is tested
is that every request is taken with its pictures, and that the nonsense ends as an honest failure.
"""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import ffr
from ffr.cli.main import main
from ffr.config import FindConfig, FixConfig, TeacherConfig
from ffr.data import read_video_r1
from ffr.data.microworld import write_microworld
from ffr.fix import FailureKind, RepairFlow
from ffr.fix.client import ChatClient
from ffr.fix.loop import ChatTeacher
from ffr.fix.messages import data_uri, text_part
from ffr.observe import observe
from ffr.types import RepairStatus, Rollout
from tests.fix.common import Student

for _package in ("fastapi", "uvicorn", "transformers"):
    pytest.importorskip(_package, reason=f"{_package} is not installed: pip install 'transformers[serving]'")

MODEL = Path(ffr.__file__).parent / "assets" / "micro-student"
START_S = 240
pytestmark = pytest.mark.timeout(600)  # a real server loads a real model, on a machine that may be busy
FRAME_TOKENS = (84 // 28) * (56 // 28) + 2
"""Of one 84 x 56 picture: six merged patches between two marks."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """`transformers serve` on a free loopback port; gives the base URL."""
    home = tmp_path_factory.mktemp("hf")
    (home / "hub").mkdir()
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    words = ["serve", str(MODEL), "--device", "cpu", "--host", "127.0.0.1", "--port", str(port)]
    log = (home / "log.txt").open("w+")
    process = subprocess.Popen(
        [str(Path(sys.executable).with_name("transformers")), *words],
        stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
        env={**os.environ, "HF_HOME": str(home), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    try:
        end = time.monotonic() + START_S
        while not is_up(port):
            log.flush()
            said = Path(log.name).read_text(encoding="utf-8", errors="replace")[-3000:]
            assert process.poll() is None and time.monotonic() < end, said
            time.sleep(0.3)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.kill()
        process.wait()
        log.close()


def is_up(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as reply:
            return reply.status == 200
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return False


def settings(server: str) -> TeacherConfig:
    return TeacherConfig(
        base_url=server, model=str(MODEL), profile="transformers", max_tokens=16, max_tool_calls=1,
        attempt_timeout_s=100.0, rollout_deadline_s=200.0, step_deadline_s=200.0,
    )  # fmt: skip


def test_doctor_finds_a_server_that_takes_pictures(
    server: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "240")
    assert main(["doctor", "teacher", "--base-url", server, "--model", str(MODEL)]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "pictures accepted" in out and "pictures after a tool accepted" in out, out
    assert "taken and ignored: the prompt asks for it" in out
    assert "no call came back" in out
    assert "profile: transformers (schema prompt, tools prompted, boxes unit)" in out


def test_pictures_reach_the_model_as_tokens(server: str) -> None:
    picture = {"type": "image_url", "image_url": {"url": data_uri(np.full((56, 84, 3), 90, np.uint8))}}

    async def tokens(num_pictures: int) -> int:
        client = ChatClient(settings(server))
        parts = [text_part("Where is the ball?"), *[picture] * num_pictures]
        body = {"messages": [{"role": "user", "content": parts}], "max_tokens": 4, "temperature": 0.0}
        completion = await client.complete(body, deadline=time.monotonic() + 100.0)
        await client.aclose()
        return completion.prompt_tokens

    assert asyncio.run(tokens(5)) - asyncio.run(tokens(1)) == 4 * FRAME_TOKENS


def test_one_repair_over_http_ends_as_an_honest_failure(server: str, tmp_path: Path) -> None:
    made = write_microworld(tmp_path, num_train=1, num_test=0)
    sample = read_video_r1(made.train, made.root).samples[0]
    from ffr.engines.micro.evaluate import demo_settings

    view = observe(sample, demo_settings().observe)
    student = Student()
    fix = FixConfig(teacher=settings(server), prompt_config="none")  # a short prompt is a quick one
    flow = RepairFlow(teacher=ChatTeacher(fix), sampler=student, fix=fix, find=FindConfig())
    repair = flow.repair_batch_blocking([(sample, Rollout(view, "<answer>A</answer>"))])[0]

    assert repair.status is RepairStatus.TEACHER_FAILED
    assert repair.diagnosis is not None
    assert repair.diagnosis.failure in (
        FailureKind.INVALID_OUTPUT,
        FailureKind.TRUNCATED,
        FailureKind.TOOL_BUDGET,
    ), repair.diagnosis.detail
    cost = repair.diagnosis.cost
    # A prompted turn without a call and two tries at the patch, each with all sixteen frames in view.
    assert cost.num_calls == 3 and cost.num_images == 16
    assert cost.prompt_tokens > cost.num_calls * 16 * FRAME_TOKENS
    assert cost.completion_tokens > 0
    assert student.calls == [] and flow.counters["status/teacher_failed"] == 1
