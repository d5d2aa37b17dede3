"""`ffr eval` as a process that is killed: rows and table after a resume are those of an unbroken run."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ffr.eval.rows import read_rows
from tests.eval.fakes import world
from tests.fix.fake_server import FakeServer, say

WAIT_S = 200
pytestmark = pytest.mark.timeout(600)  # real processes load a real model, on a machine that may be busy


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return world(tmp_path_factory.mktemp("data"), 36)


def start(root: Path, run: Path, *words: object) -> subprocess.Popen[str]:
    command = ["eval", "--benchmarks", "microworld", "--root", root, "--output-dir", run, *words]
    return subprocess.Popen(
        [sys.executable, "-m", "ffr", *map(str, command)],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    out, _ = process.communicate(timeout=WAIT_S)
    return process.returncode, out


def wait_for_rows(process: subprocess.Popen[str], run: Path, num: int) -> None:
    path, end = run / "rows.jsonl", time.monotonic() + WAIT_S
    while not path.exists() or path.read_bytes().count(b"\n") < num:
        assert process.poll() is None and time.monotonic() < end, finish(process)
        time.sleep(0.01)


def rows_of(run: Path) -> dict[object, object]:
    return {row.key: row for row in read_rows(run)}


def table_of(run: Path) -> object:
    return json.loads((run / "table.json").read_text())


def test_kill_9_then_resume_with_sampled_answers(root, tmp_path):
    words = (
        "--model",
        "micro-student",
        "--temperature",
        0.9,
        "--seeds",
        "1,2",
        "--frames",
        "8",
        "--batch-size",
        6,
    )
    code, out = finish(start(root, tmp_path / "whole", *words))
    assert code == 0, out
    run = tmp_path / "run"
    process = start(root, run, *words)
    wait_for_rows(process, run, 7)
    process.send_signal(signal.SIGKILL)
    assert finish(process)[0] == -signal.SIGKILL
    path = run / "rows.jsonl"
    path.write_bytes(path.read_bytes()[:-20])  # as if the kill had come in the middle of a write
    assert 0 < len(rows_of(run)) < 72
    code, out = finish(start(root, run, *words, "--resume"))
    assert code == 0 and "of 72 answers are there already" in out, out
    assert rows_of(run) == rows_of(tmp_path / "whole") and len(rows_of(run)) == 72
    assert table_of(run) == table_of(tmp_path / "whole")
    cards = [json.loads((folder / "eval.json").read_text()) for folder in (run, tmp_path / "whole")]
    assert cards[0] == cards[1] and cards[0]["cards"]["microworld@8"]["engine"] == "hf"


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGINT for other processes")
def test_ctrl_c_ends_cleanly_and_says_how_to_go_on(root, tmp_path):
    def script(request, number):
        time.sleep(0.05)
        words = json.dumps(request["messages"])
        return say(f"<answer>{'ABCD'[hashlib.sha256(words.encode()).digest()[0] % 4]}</answer>")

    run = tmp_path / "run"
    with FakeServer(script) as server:
        words = (
            "--model", "served", "--base-url", server.base_url, "--media", "frames", "--frames", "2,4",
            "--max-px", 84 * 56, "--min-px", 784, "--concurrency", 2,
        )  # fmt: skip
        process = start(root, run, *words)
        wait_for_rows(process, run, 5)
        process.send_signal(signal.SIGINT)
        code, out = finish(process)
        assert code == 130 and "Traceback" not in out, out
        assert "stopping when the answers under way are written" in out
        assert "answers to go; the same command with --resume goes on" in out
        kept = rows_of(run)
        assert 5 <= len(kept) < 72 and path_ends_whole(run)
        code, out = finish(start(root, run, *words, "--resume"))
        assert code == 0, out
        code, out = finish(start(root, tmp_path / "whole", *words))
        assert code == 0, out
    after = rows_of(run)
    assert {key: after[key] for key in kept} == kept
    assert after == rows_of(tmp_path / "whole") and len(after) == 72
    assert table_of(run) == table_of(tmp_path / "whole")


def path_ends_whole(run: Path) -> bool:
    return (run / "rows.jsonl").read_bytes().endswith(b"}\n")
