"""The service over real sockets: its two schemas, who may ask, which files it opens, limits and its end."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ffr.config import Config
from ffr.fix import Journal, OracleTeacher, Teacher, TeacherRequest, make_teacher
from ffr.serve import RepairService, ServeConfig, Server, is_loopback
from ffr.types import Diagnosis, EvidencePatch
from tests.fix.common import GOOD_PATCH, LEAKING_PATCH, ScriptedTeacher, write_clip
from tests.fix.fake_server import FakeServer, say
from tests.fix.test_faults import PATCH

TOKEN = "a-token-of-some-length"
BODY = {
    "question": "What colour is the ball when it glows?",
    "answer": "B",
    "problem_type": "multiple choice",
    "options": ["A. red", "B. blue", "C. green", "D. yellow"],
    "video": "glow.mp4",
    "rollout": "<think>It is red.</think><answer>A</answer>",
    "scenario": "attribute",
    "num_frames": 8,
}
EVIDENCE = {
    "spans_s": [[1.0, 1.6]],
    "boxes": [[0.0, 0.5, 0.5, 1.0]],
    "note": "the moment when the ball glows",
}


class Slow:
    """A teacher that waits until it is let go, and notes that it was cancelled."""

    name = "slow"

    def __init__(self) -> None:
        self.entered = threading.Event()
        self.release = threading.Event()
        self.cancelled = threading.Event()

    async def diagnose(self, request: TeacherRequest) -> Diagnosis:
        self.entered.set()
        try:
            while not self.release.is_set():
                await asyncio.sleep(0.01)
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        return Diagnosis(GOOD_PATCH)

    async def aclose(self) -> None:
        """Nothing to close."""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A media root with one clip, links that lead out, and a secret beside it."""
    base = tmp_path_factory.mktemp("serve")
    media = base / "media"
    media.mkdir()
    write_clip(media / "glow.mp4")
    (base / "secret.mp4").write_bytes((media / "glow.mp4").read_bytes())
    (media / "out.mp4").symlink_to(base / "secret.mp4")
    (media / "outside").symlink_to(base)
    (media / "junk.mp4").write_bytes(b"no video at all" * 100)
    return media


@contextlib.contextmanager
def serving(
    teacher: Teacher, root: Path, journal: Journal | None = None, cfg: Config | None = None, **limits: Any
) -> Iterator[Server]:
    """A server on a free port, in a thread with its own loop."""
    cfg = cfg or Config.model_validate({"fix": {"teacher": {"type": "oracle"}}})
    started, ended = threading.Event(), threading.Event()
    box: list[Server] = []

    async def main() -> None:
        server = Server(ServeConfig(port=0, **limits), RepairService(cfg, teacher, root, journal))
        await server.start()
        box.append(server)
        started.set()
        while not ended.is_set():
            await asyncio.sleep(0.01)
        await server.stop()

    thread = threading.Thread(target=lambda: asyncio.run(main()), daemon=True)
    thread.start()
    assert started.wait(30)
    try:
        yield box[0]
    finally:
        ended.set()
        thread.join(30)
        assert not thread.is_alive()


def call(
    server: Server,
    path: str,
    body: Any = None,
    *,
    method: str = "POST",
    headers: dict[str, str] | None = None,
) -> tuple[int, dict[str, Any], str]:
    """Status, JSON and raw text of one request."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    data = body if isinstance(body, bytes) else None if body is None else json.dumps(body).encode()
    connection.request(method, path, data, {"content-type": "application/json", **(headers or {})})
    reply = connection.getresponse()
    text = reply.read().decode()
    connection.close()
    assert "Traceback" not in text
    return reply.status, json.loads(text), text


def raw(server: Server, data: bytes) -> bytes:
    """What comes back for bytes that are no proper request."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as sock:
        sock.sendall(data)
        sock.shutdown(socket.SHUT_WR)
        chunks: list[bytes] = []
        while chunk := sock.recv(65536):
            chunks.append(chunk)
        return b"".join(chunks)


@pytest.fixture(scope="module")
def oracle(root: Path) -> Iterator[Server]:
    with serving(OracleTeacher(), root) as server:
        yield server


def test_repair_gives_patch_text_and_leak_report(oracle: Server, root: Path) -> None:
    status, reply, text = call(oracle, "/v1/repair", {**BODY, "evidence": EVIDENCE})
    assert status == 200 and reply["status"] == "ready"
    assert reply["patch"]["key_frames"] == [[3, 4]]  # 8 frames over 4 s, evidence from 1.0 to 1.6 s
    assert "frames 3-4" in reply["patch_text"]
    assert reply["leak"]["leaked"] is False and len(reply["leak"]["findings"]) >= 3
    assert reply["diagnosis"]["error_types"] == ["attribute"]
    assert reply["diagnosis"]["tool_calls"][0]["ok"] is True
    assert [frame["number"] for frame in reply["frames"]] == list(range(1, 9))
    assert str(root) not in text


def test_repair_without_evidence_is_an_honest_failure(oracle: Server) -> None:
    status, reply, _ = call(oracle, "/v1/repair", BODY)
    assert (status, reply["status"], reply["detail"]) == (200, "teacher_failed", "no_evidence")
    assert reply["patch"] is None and reply["patch_text"] == ""


def test_analyze_speaks_the_released_schema(root: Path) -> None:
    teacher = ScriptedTeacher(Diagnosis(GOOD_PATCH))
    body = {
        "problem_id": 7,
        "question": "What glows?\nOptions:\nA. a cup\nB. a ball",
        "video_path": str(root / "glow.mp4"),
        "student_response": "<answer>A</answer>",
        "student_score": 0.0,
        "ground_truth": "<answer>B</answer>",
        "reference_reasoning": "it does",
        "incorrect_only": False,
        "nframes": 8,
        "a_field_of_a_later_release": 1,
    }
    with serving(teacher, root) as server:
        status, reply, _ = call(server, "/analyze", body)
    assert status == 200
    assert set(reply) == {"success", "problem_id", "data", "error"}
    assert (reply["success"], reply["problem_id"], reply["error"]) == (True, "7", None)
    data = reply["data"]
    assert set(data) == {
        "raw_response", "thinking", "error_classification", "evidence_patch", "parse_success", "metadata",
    }  # fmt: skip
    assert set(data["metadata"]) == {"student_score", "incorrect_only_mode", "model_used", "timestamp"}
    assert data["error_classification"] == "temporal" and data["parse_success"] is True
    patch = data["evidence_patch"]
    assert patch["key_frames"] == [3, 4] and "Look at these frames again." in patch["content"]
    asked = teacher.requests[0]
    assert [option.text for option in asked.sample.options] == ["a cup", "a ball"]
    assert asked.sample.question == "What glows?" and asked.sample.answer == "B"
    assert asked.reference_answer == "B. a ball" and len(asked.rollout.observation.frames) == 8


def test_a_leaking_teacher_gives_no_patch_on_either_path(root: Path) -> None:
    with serving(ScriptedTeacher(Diagnosis(LEAKING_PATCH)), root) as server:
        status, reply, text = call(server, "/v1/repair", BODY)
        assert (status, reply["status"], reply["patch"]) == (200, "leaked", None)
        assert reply["leak"]["num_leaks"] == 2 and LEAKING_PATCH.guidance not in text
        released = {
            "problem_id": "x", "question": "What colour?\nA. red\nB. blue", "video_path": "glow.mp4",
            "student_response": "A", "student_score": 0, "ground_truth": "B",
        }  # fmt: skip
        status, reply, text = call(server, "/analyze", released)
        assert status == 200 and reply["success"] is False and reply["data"] is None
        assert reply["error"].startswith("leaked: ") and LEAKING_PATCH.guidance not in text


@pytest.mark.parametrize(
    ("video", "status", "word"),
    [
        ("../secret.mp4", 403, "outside_root"),
        ("a/../../secret.mp4", 403, "outside_root"),
        ("out.mp4", 403, "outside_root"),
        ("outside/secret.mp4", 403, "outside_root"),
        ("/etc/passwd", 403, "outside_root"),
        ("/etc/no-such-file", 403, "outside_root"),
        ("glow.mp4\0.txt", 403, "outside_root"),
        ("http://127.0.0.1/glow.mp4", 403, "outside_root"),
        ("file:///etc/passwd", 403, "outside_root"),
        ("concat:glow.mp4", 403, "outside_root"),
        ("C:\\glow.mp4", 403, "outside_root"),
        ("..", 403, "outside_root"),
        (".", 403, "outside_root"),
        ("x" * 5000, 404, "missing"),
        ("nothing.mp4", 404, "missing"),
        ("junk.mp4", 422, "undecodable"),
    ],
)
def test_only_files_under_the_root_are_opened(
    oracle: Server, root: Path, video: str, status: int, word: str
) -> None:
    got, reply, text = call(oracle, "/v1/repair", {**BODY, "video": video})
    assert (got, reply["error"]["status"]) == (status, word)
    assert str(root.parent) not in text


@pytest.mark.parametrize(
    ("body", "status", "word"),
    [
        (b"{", 400, "bad_json"),
        (b"[]", 400, "bad_json"),
        (b"\xff\xfe", 400, "bad_json"),
        (b"[" * 100_000, 400, "bad_json"),
        (b'{"a": NaN}', 400, "bad_json"),
        (b"{}", 422, "bad_request"),
        (json.dumps({**BODY, "surprise": 1}).encode(), 422, "bad_request"),
        (json.dumps({**BODY, "num_frames": 10**9}).encode(), 422, "bad_request"),
        (json.dumps({**BODY, "options": ["x"] * 27}).encode(), 422, "bad_request"),
        (json.dumps({**BODY, "clip_s": [3, 1]}).encode(), 422, "bad_request"),
        (json.dumps({**BODY, "evidence": {"boxes": [[9, 9, 9, 9]]}}).encode(), 422, "bad_request"),
        (b" " * (1024 * 1024 + 1), 413, "too_large"),
    ],
)
def test_bad_bodies_are_refused_in_words(oracle: Server, body: bytes, status: int, word: str) -> None:
    got, reply, _ = call(oracle, "/v1/repair", body)
    assert (got, reply["error"]["status"]) == (status, word)
    assert reply["error"]["message"]


def test_paths_methods_types_and_hosts(oracle: Server) -> None:
    assert call(oracle, "/health", method="GET")[1] == {
        "status": "healthy",
        "model": "oracle",
        "timeout": 240.0,
    }
    assert call(oracle, "/", method="GET")[0] == 404
    assert call(oracle, "/analyze", method="GET")[0] == 405
    assert call(oracle, "/v1/repair", BODY, headers={"content-type": "text/plain"})[0] == 415
    # A page of another site, whose name leads here.
    assert call(oracle, "/v1/repair", BODY, headers={"host": "evil.example"})[0] == 403
    assert call(oracle, "/health", method="GET", headers={"host": "localhost:1"})[0] == 200


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"NONSENSE\r\n\r\n", b"400"),
        (b"GET /health HTTP/1.1\r\nbad header\r\n\r\n", b"400"),
        (b"POST /analyze HTTP/1.1\r\nhost: localhost\r\n\r\n", b"411"),
        (b"POST /analyze HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", b"411"),
        (b"POST /analyze HTTP/1.1\r\nhost: localhost\r\ncontent-length: -1\r\n\r\n", b"400"),
        (
            b"POST /analyze HTTP/1.1\r\nhost: localhost\r\ncontent-length: 1\r\ncontent-length: 9\r\n\r\nx",
            b"400",
        ),
        (b"GET /" + b"a" * 40_000 + b" HTTP/1.1\r\n\r\n", b"431"),
    ],
)
def test_malformed_http_is_answered_and_never_hangs(oracle: Server, data: bytes, status: bytes) -> None:
    assert raw(oracle, data).split(b" ", 2)[1] == status


def test_a_request_that_does_not_arrive_is_given_up(root: Path) -> None:
    with serving(OracleTeacher(), root, read_timeout_s=0.3) as server:
        with socket.create_connection(("127.0.0.1", server.port), timeout=30) as sock:
            sock.sendall(b"POST /analyze HTTP/1.1\r\nhost: localhost\r\ncontent-length: 10\r\n\r\nhalf")
            assert b" 408 " in sock.recv(65536)
        assert server.counters["408"] == 1


def test_the_token_is_asked_for_before_the_body_is_read(root: Path) -> None:
    with serving(OracleTeacher(), root, token=TOKEN) as server:
        bearer = {"authorization": f"Bearer {TOKEN}"}
        for wrong in ({}, {"authorization": "Bearer no"}, {"authorization": f"Basic {TOKEN}"},
                      {"authorization": f"Bearer {TOKEN}x"}, {"authorization": "Bearer \xe9"}):  # fmt: skip
            status, reply, _ = call(server, "/v1/repair", b"x" * 200_000, headers=wrong)
            assert (status, reply["error"]["status"]) == (401, "unauthorized")
            assert call(server, "/health", method="GET", headers=wrong)[0] == 401
        named = {**bearer, "host": "teacher.example"}
        assert call(server, "/health", method="GET", headers=named)[0] == 200
        assert call(server, "/v1/repair", {**BODY, "evidence": EVIDENCE}, headers=bearer)[0] == 200


def test_other_addresses_need_a_token(root: Path) -> None:
    service = RepairService(Config(), OracleTeacher(), root)
    for host in ("0.0.0.0", "::", "192.168.0.1", "example.org", ""):
        with pytest.raises(ValueError, match="needs a token"):
            Server(ServeConfig(host=host), service)
        assert Server(ServeConfig(host=host, token=TOKEN), service).host == host
    assert is_loopback("127.0.0.1") and is_loopback("localhost") and is_loopback("::1")
    assert not is_loopback("127.0.0.1.evil.example")


def test_busy_deadline_and_a_client_that_hangs_up(root: Path) -> None:
    slow = Slow()
    with serving(slow, root, max_requests=1, request_deadline_s=60.0) as server:
        text = json.dumps(BODY).encode()
        head = (
            "POST /v1/repair HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
            f"content-length: {len(text)}\r\n\r\n"
        )
        sock = socket.create_connection(("127.0.0.1", server.port), timeout=30)
        sock.sendall(head.encode() + text)
        assert slow.entered.wait(30)
        status, reply, _ = call(server, "/v1/repair", BODY)
        assert (status, reply["error"]["status"]) == (503, "busy")
        assert call(server, "/health", method="GET")[0] == 200
        sock.close()
        assert slow.cancelled.wait(30)  # nobody waits for the answer, so nobody pays for it
    with serving(Slow(), root, request_deadline_s=0.2) as server:
        status, reply, _ = call(server, "/v1/repair", BODY)
        assert (status, reply["error"]["status"]) == (504, "deadline")


def test_stop_lets_running_requests_end(root: Path) -> None:
    slow = Slow()
    replies: list[int] = []
    with serving(slow, root) as server:
        client = threading.Thread(target=lambda: replies.append(call(server, "/v1/repair", BODY)[0]))
        client.start()
        assert slow.entered.wait(30)
        threading.Timer(0.2, slow.release.set).start()
    client.join(30)
    assert replies == [200]


def test_a_defect_is_an_error_number_without_a_traceback(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(self: RepairService, body: dict[str, Any]) -> dict[str, Any]:
        raise KeyError("a secret of the implementation")

    monkeypatch.setattr(RepairService, "repair", broken)
    with serving(OracleTeacher(), root) as server:
        status, reply, text = call(server, "/v1/repair", BODY)
    assert (status, reply["error"]["status"]) == (500, "internal")
    assert "secret" not in text


def test_the_blind_test_guards_the_service_too(root: Path) -> None:
    def script(request: dict[str, Any], number: int) -> Any:
        text = request["messages"][0]["content"]
        if "not available to you" not in text:
            return say(PATCH)
        blue = text[text.index(". blue") - 1]
        return say(f"<answer>{blue if 'Watch these frames' in text else 'E'}</answer>")

    with FakeServer(script) as upstream:
        teacher = {"base_url": upstream.base_url, "model": "fake-vl", "profile": "vllm", "max_tool_calls": 0}
        cfg = Config.model_validate({"fix": {"teacher": teacher, "leak": {"blind": "teacher"}}})
        chat = make_teacher(cfg.fix, cfg.observe)
        assert chat is not None
        with serving(chat, root, cfg=cfg) as server:
            status, reply, _ = call(server, "/v1/repair", BODY)
    assert status == 200 and reply["status"] == "leaked" and not reply["patch"]
    assert "blind" in {finding["layer"] for finding in reply["leak"]["findings"] if finding["leaked"]}


def test_the_journal_pays_once(root: Path, tmp_path: Path) -> None:
    teacher = ScriptedTeacher(Diagnosis(EvidencePatch(GOOD_PATCH.error_types, ((3, 4),))))
    with serving(teacher, root, Journal(tmp_path / "j.sqlite")) as server:
        first = call(server, "/v1/repair", BODY)[1]
        again = call(server, "/v1/repair", BODY)[1]
    assert first["patch"] == again["patch"] and len(teacher.requests) == 1
    assert again["diagnosis"]["cost"]["cached"] is True


def test_the_command_serves_an_openai_server_without_torch_and_stops_on_sigterm(root: Path) -> None:
    code = (
        "import sys\nfrom ffr.cli.main import main\ncode = main(sys.argv[1:])\n"
        "assert not {'torch', 'transformers', 'trl'} & set(sys.modules)\nsys.exit(code)\n"
    )
    with FakeServer(lambda request, number: say(PATCH)) as upstream:
        words = [
            "serve-teacher", "--root", str(root), "--port", "0", "--fix.teacher.base-url", upstream.base_url,
            "--fix.teacher.model", "fake-vl", "--fix.teacher.max-tool-calls", "0",
        ]  # fmt: skip
        process = subprocess.Popen(
            [sys.executable, "-u", "-c", code, *words],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            env={**os.environ, "COLUMNS": "200"},
        )  # fmt: skip
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line.startswith("listening on 127.0.0.1 port "), line + process.stdout.read()
            connection = http.client.HTTPConnection("127.0.0.1", int(line.split()[4].rstrip(":")), timeout=60)
            connection.request("POST", "/v1/repair", json.dumps(BODY), {"content-type": "application/json"})
            reply = json.loads(connection.getresponse().read())
            connection.close()
            process.send_signal(signal.SIGTERM)
            rest = process.stdout.read()
            assert process.wait(30) == 0, rest
        finally:
            process.kill()
            process.wait()
    assert reply["status"] == "ready", reply
    assert reply["patch"]["guidance"] == "Watch these frames again."
    assert "stopped; responses: {'200': 1}" in rest
    shown = [
        p for m in upstream.requests[0]["messages"] if isinstance(m["content"], list) for p in m["content"]
    ]
    assert sum(part["type"] == "image_url" for part in shown) == 8


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--host", "0.0.0.0"), "needs a token"),
        (("--host", "0.0.0.0", "--token-env", "FFR_NO_SUCH_VARIABLE"), "at least 16 ASCII characters"),
        (("--fix.teacher.type", "none"), "nobody to ask"),
    ],
)
def test_the_command_refuses(
    root: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], message: str
) -> None:
    from ffr.cli.main import main

    code = main(["serve-teacher", "--root", str(root), "--fix.teacher.type", "oracle", *words])
    assert code == 1
    assert message in capsys.readouterr().err
