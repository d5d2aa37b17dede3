"""`ffr eval` from the command line, against a server on loopback and with the shipped student."""

from __future__ import annotations

import json

import pytest

from ffr.eval.rows import read_rows, read_run
from tests.eval.fakes import world
from tests.fix.fake_server import FakeServer, reply_json, say


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return world(tmp_path_factory.mktemp("data"))


@pytest.fixture
def words(root, tmp_path):
    def make(url, *more, run="run"):
        flags = {
            "--model": "served", "--base-url": url, "--benchmarks": "microworld", "--root": root,
            "--frames": "4", "--max-px": 84 * 56, "--min-px": 784, "--media": "frames", "--retries": 0,
            "--output-dir": tmp_path / run,
        }  # fmt: skip
        kept = [part for flag, value in flags.items() if flag not in more for part in (flag, value)]
        return ("eval", *kept, *more)

    return make


def test_a_server_of_garbage_gets_a_table(ffr, words, tmp_path):
    texts = ["", "B" * 100_000, "ответ", "\x00", "<answer>B</answer>", "<think>B"]
    with FakeServer(lambda request, number: say(texts[number % 6])) as server:
        code, out, err = ffr(*words(server.base_url))
    assert code == 0 and err == ""
    assert "microworld: 12 questions" in out and "12/12" in out and "engine openai/frames, greedy" in out
    assert "indices" in out and "versions: python" in out
    table = json.loads((tmp_path / "run" / "table.json").read_text())
    assert table["lines"][0]["num_total"] == 12 and (tmp_path / "run" / "table.md").exists()
    assert read_run(tmp_path / "run").cards["microworld@4"]["indices_sha256"]


def test_failures_are_reported_and_resumed(ffr, words, tmp_path):
    down = {"on": True}

    def script(request, number):
        return (
            reply_json({"error": "no"}, 400) if down["on"] and number % 3 == 0 else say("<answer>A</answer>")
        )

    with FakeServer(script) as server:
        code, out, _ = ffr(*words(server.base_url, "--concurrency", 1))
        assert code == 1
        assert "WARNING: 4 answers are missing and count as wrong: 4 bad_request" in out
        code, _, err = ffr(*words(server.base_url))
        assert code == 1 and "holds a run already: go on with --resume" in err
        code, _, err = ffr(*words(server.base_url, "--resume", "--max-tokens", 7))
        assert code == 1 and "max_tokens 1024, now 7" in err
        down["on"] = False
        before = len(server.requests)
        code, out, _ = ffr(*words(server.base_url, "--resume"))
        assert code == 0 and "8 of 12 answers are there already" in out
        assert len(server.requests) - before == 4
    assert not any(row.error for row in read_rows(tmp_path / "run"))


def test_seeds_need_a_temperature(ffr, words, tmp_path):
    with FakeServer(lambda request, number: say("<answer>A</answer>")) as server:
        code, out, _ = ffr(*words(server.base_url, "--seeds", "42,123,456"))
        assert code == 0 and "only seed 42 is run" in out
        assert len(server.requests) == 12
        sampled = words(server.base_url, "--seeds", "42,123", "--temperature", "0.5", run="sampled")
        code, out, _ = ffr(*sampled)
        assert code == 0 and "WARNING" not in out
    assert {row.seed for row in read_rows(tmp_path / "run")} == {42}
    assert {row.seed for row in read_rows(tmp_path / "sampled")} == {42, 123}
    assert sorted({request["seed"] for request in server.requests}) == [42, 123]


@pytest.mark.parametrize(
    ("more", "code", "message"),
    [
        (("--frames", "16,x"), 2, "--frames: is '16,x', must be whole numbers"),
        (("--seeds", "1,1"), 2, "seeds must hold at least one value and none twice"),
        (("--top-p", "1.5"), 2, "--top-p: "),
        (("--max-px", "100"), 2, "min_frame_px 784 is above max_frame_px 100"),
        (("--extra-body", "[1]"), 2, "--extra-body: must be a JSON object"),
        (("--benchmarks", "mvbenhc"), 1, "unknown benchmark 'mvbenhc'; known: mmvu"),
        (("--tasks", "count"), 1, "no benchmark has it; microworld: counting"),
        (("--benchmarks", "lvbench"), 1, "lvbench: no annotation file under"),
    ],
)
def test_mistakes_are_named_before_anything_is_asked(ffr, words, more, code, message):
    got, _, err = ffr(*words("http://127.0.0.1:9/v1", *more))
    assert got == code and message in err and "Traceback" not in err


def test_no_such_checkpoint_and_no_such_server(ffr, root):
    code, _, err = ffr("eval", "--model", "no/such", "--benchmarks", "microworld", "--root", root)
    assert code == 1 and "no model of that name" in err
    code, _, err = ffr(
        "eval", "--model", "http://127.0.0.1:9/v1", "--benchmarks", "microworld", "--root", root
    )
    assert code == 1 and "is it up" in err


def test_the_micro_student_is_shown_clips_as_in_training(ffr, root, tmp_path):
    run = tmp_path / "run"
    code, out, err = ffr(
        "eval", "--model", "micro-student", "--benchmarks", "microworld", "--root", root, "--limit", 6,
        "--output-dir", run, "--display", "plain",
    )  # fmt: skip
    assert code == 0, err
    info = read_run(run)
    assert {key: info.config[key] for key in ("prompt", "max_frame_px", "max_tokens", "batch_size")} == {
        "prompt": "brief", "max_frame_px": 4704, "max_tokens": 48, "batch_size": 32,
    }  # fmt: skip
    assert info.engine == "hf" and info.name == "micro-student" and info.frames == (16,)
    assert "microworld: 6 of 12 questions" in out and "template" in out
    assert all(row.raw.startswith("<think>") for row in read_rows(run))


def test_help_names_the_sub_commands(ffr):
    code, out, _ = ffr("eval", "--help")
    assert code == 0
    for word in ("compare", "power", "rescore", "export", "show", "--benchmarks", "tempcompass", "Examples:"):
        assert word in out
