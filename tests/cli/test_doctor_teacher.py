"""`ffr doctor teacher` against servers of several kinds on loopback."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from typing import Any

import pytest

from ffr.cli.main import main
from tests.fix.fake_server import FakeServer, Reply, call_tool, reply_json, say

REFUSED = reply_json({"error": {"message": "not supported"}}, 400)


def has_picture(request: dict[str, Any]) -> bool:
    return "image_url" in json.dumps(request.get("messages", []))


def good(request: dict[str, Any], number: int) -> Reply:
    """vLLM with a model that sees: parsed tool calls, enforced schema."""
    if not request:
        return reply_json({"object": "list", "data": [{"id": "vl"}, {"id": "other"}]})
    if "response_format" in request:
        return say('{"word": "zq7"}')
    if "tools" in request and not has_picture(request):
        return call_tool("get_frames", {"start": 1, "end": 2})
    return say("Red." if has_picture(request) else "yes")


def hosted(request: dict[str, Any], number: int) -> Reply:
    """A hosted model: no list of models, JSON mode only."""
    if not request:
        return Reply(b"nope", 404)
    form = request.get("response_format", {}).get("type")
    return (
        REFUSED if form == "json_schema" else good({**request, "response_format": 1} if form else request, 1)
    )


def lazy(request: dict[str, Any], number: int) -> Reply:
    """`transformers serve`: takes everything, parses nothing, enforces nothing."""
    if not request:
        return reply_json({"object": "list", "data": [{"id": "elsewhere"}]})
    reply = json.loads(say("<answer>A</answer>").body)
    del reply["usage"]
    return reply_json(reply)


def blind(request: dict[str, Any], number: int) -> Reply:
    """A text model."""
    return REFUSED if has_picture(request) else good(request, number)


def dead(request: dict[str, Any], number: int) -> Reply:
    return reply_json({"error": {"message": "bad key"}}, 401)


@pytest.mark.parametrize(
    ("script", "code", "phrases"),
    [
        (good, 0, ("vl is one of 2", "parsed by the server", "enforced by the server", "names the colour",
                   "100 + 10 tokens", "profile: auto (schema json_schema, tools native, boxes unit)",
                   "--fix.teacher.model vl --fix.teacher.profile auto")),
        (hosted, 0, ("no list of models", "json_object is accepted", "profile: glm (schema json_object")),
        (lazy, 0, ("vl is not listed; there are elsewhere", "taken and ignored", "no call came back",
                   "not reported", "of a red square it says", "profile: transformers (schema prompt, tools "
                   "prompted")),
        (blind, 1, ("a model that sees is needed", "cannot serve as a teacher")),
        (dead, 1, ("auth: HTTP 401", "--api-key-env", "cannot serve as a teacher")),
    ],
    ids=["good", "hosted", "lazy", "blind", "dead"],
)  # fmt: skip
def test_each_kind_of_server_gets_its_verdict_and_its_profile(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, script: Any, code: int, phrases: Any
) -> None:
    monkeypatch.setenv("COLUMNS", "240")
    with FakeServer(script) as server:
        assert main(["doctor", "teacher", "--base-url", server.base_url, "--model", "vl"]) == code
    out = " ".join(capsys.readouterr().out.split())
    for phrase in phrases:
        assert phrase in out, out


@pytest.mark.parametrize(
    ("script", "code", "words"),
    [
        (lazy, 0, "--fix.teacher.model elsewhere"),
        (good, 1, "lists 2 models (vl, other): name one with --model"),
        (hosted, 1, "gives no list of models (bad_request"),
        (dead, 1, "put the key into the variable"),
    ],
)
def test_without_a_name_the_only_model_is_taken(
    script: Any, code: int, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with FakeServer(script) as server:
        assert main(["doctor", "teacher", "--base-url", server.base_url]) == code
    assert words in " ".join(capsys.readouterr().out.split())


def test_a_server_that_is_not_there_and_no_torch() -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{sock.getsockname()[1]}/v1"
    code = (
        "import sys\nfrom ffr.cli.main import main\n"
        f"assert main(['doctor', 'teacher', '--base-url', {url!r}, '--model', 'vl']) == 1\n"
        "assert not {'torch', 'transformers', 'trl'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "is the server up" in " ".join(done.stdout.split())


def test_a_silent_server_is_given_up_in_time() -> None:
    import asyncio

    from ffr.cli.doctor_teacher import measure
    from ffr.config import TeacherConfig

    with FakeServer(lambda request, number: Reply(act="slow_headers")) as server:
        measured = asyncio.run(measure(TeacherConfig(base_url=server.base_url, model="vl"), limit_s=1.0))
    assert not measured.can_teach
    assert "timeout" in measured.checks[-1].detail


def test_the_plain_doctor_still_takes_settings(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--reason.patch-txa", "1"]) == 1
    assert "did you mean" in " ".join(capsys.readouterr().out.split())
