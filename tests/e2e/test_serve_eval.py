"""`ffr serve` as a process: a real checkpoint asked by the openai client and `ffr eval`; vLLM as a child."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
from PIL import Image

from ffr.eval import score
from ffr.eval.rows import EvalRow, read_rows
from ffr.eval.run import load_questions
from ffr.serve.answer import NO_ANSWER
from tests.eval.fakes import config, world
from tests.fix.common import write_clip

pytestmark = pytest.mark.timeout(600)  # real processes load a real model, on a machine that may be busy
QUIET = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "COLUMNS": "400"}
QUESTION = (
    "What falls?\nA. a cup\nB. a ball\nAnswer with the option's letter from the given choices directly."
)
STUDENT = ("--model", "micro-student", "--engine", "transformers")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MicroWorld's first questions, a clip beside them, and a clip outside."""
    base = tmp_path_factory.mktemp("serve")
    write_clip(base / "secret.mp4")
    made = world(base / "data", 12)
    write_clip(made / "clip.mp4")
    return made


@contextlib.contextmanager
def stopped(process: subprocess.Popen[str]) -> Iterator[None]:
    """Ends the process, whatever happens."""
    try:
        yield
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate(timeout=60)


def client(port: int) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="EMPTY", max_retries=0, timeout=300)


def picture(shade: int) -> dict[str, Any]:
    buffer = io.BytesIO()
    Image.fromarray(np.full((56, 84, 3), shade, np.uint8)).save(buffer, "PNG")
    data = base64.b64encode(buffer.getvalue()).decode()
    return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}}


def video(url: str) -> dict[str, Any]:
    return {"type": "video_url", "video_url": {"url": url}}


def ask(port: int, *content: dict[str, Any], model: str = "micro-student", **fields: Any) -> Any:
    parts: Any = [*content, {"type": "text", "text": QUESTION}]
    values = {"temperature": 0.0, "max_tokens": 48, **fields}
    return client(port).chat.completions.create(
        model=model, messages=[{"role": "user", "content": parts}], **values
    )


def evaluate(run: Path, root: Path, *words: object) -> dict[str, EvalRow]:
    """The rows of `ffr eval` on MicroWorld, by question."""
    shown = ("--prompt", "brief", "--max-px", 84 * 56, "--min-px", 28 * 28, "--max-tokens", 48)
    asked = ("--benchmarks", "microworld", "--root", root, "--output-dir", run, "--limit", 6, "--frames", 16)
    command = [sys.executable, "-m", "ffr", "eval", *map(str, (*words, *asked, *shown))]
    done = subprocess.run(
        command, env={**os.environ, **QUIET}, capture_output=True, text=True, timeout=400, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return {row.uid: row for row in read_rows(run)}


def serve(environment: dict[str, str], *words: object) -> tuple[subprocess.Popen[str], int]:
    """`ffr serve` as a process, and the port on which it listens."""
    process = subprocess.Popen(
        [sys.executable, "-m", "ffr", "serve", "--port", "0", *map(str, words)],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env=environment,
    )  # fmt: skip
    assert process.stdout is not None
    seen = ""
    for line in process.stdout:
        seen += line
        if line.startswith("listening on"):
            return process, int(line.split("port ")[1].split(":")[0])
    raise AssertionError(f"ended with {process.wait()}: {seen}")


def test_a_checkpoint_behind_the_openai_client(root: Path) -> None:
    clip = (root / "clip.mp4").as_uri()
    process, port = serve({**os.environ, **QUIET}, *STUDENT, "--media-root", root)
    with stopped(process):
        assert [one.id for one in client(port).models.list()] == ["micro-student", "micro-student:answer"]
        bare = ask(port).usage.prompt_tokens
        assert ask(port, picture(9)).usage.prompt_tokens == bare + 8  # six tiles between two marks
        assert ask(port, picture(9), picture(200)).usage.prompt_tokens == bare + 16
        shown = ask(port, video(clip), extra_body={"media_io_kwargs": {"video": {"num_frames": 8}}})
        assert shown.usage.prompt_tokens == bare + 4 * 6 + 2  # two frames share a row of tokens
        assert "<think>" in shown.choices[0].message.content
        assert ask(port, video(clip)).usage.prompt_tokens == bare + 8 * 6 + 2  # 16 frames, as in training

        words = [
            ask(port, video(clip), temperature=1.5, seed=seed).choices[0].message.content
            for seed in (1, 1, 2, 3, 4)
        ]
        assert words[0] == words[1] and len(set(words)) > 1

        for url, status in (
            ((root.parent / "secret.mp4").as_uri(), 403),
            (f"file://{root}/../secret.mp4", 403),
            ("file:///etc/passwd", 403),
            ((root / "none.mp4").as_uri(), 404),
            ("http://127.0.0.1:1/a.mp4", 400),
        ):
            with pytest.raises(openai.APIStatusError) as caught:
                ask(port, video(url))
            assert caught.value.status_code == status, url
        with pytest.raises(openai.BadRequestError):
            client(port).post("/chat/completions", body={"model": "micro-student"}, cast_to=object)


def test_ffr_eval_against_the_server_equals_the_local_run(root: Path, tmp_path: Path) -> None:
    local = evaluate(tmp_path / "local", root, "--model", "micro-student", "--batch-size", 1)
    # MicroWorld's clips last four seconds: sixteen frames, four a second.
    words = ("--images-as-video", "--images-fps", 4, "--media-root", root)
    process, port = serve({**os.environ, **QUIET}, *STUDENT, *words)
    with stopped(process):
        for item in load_questions(config(root, limit=6)).items:
            # A harness's question: with the alias's instruction it is the prompt of the local run.
            lines = [item.sample.question, *(f"{o.label}. {o.text}" for o in item.sample.options)]
            content: Any = [video(item.sample.video.as_uri()), {"type": "text", "text": "\n".join(lines)}]
            said = client(port).chat.completions.create(
                model="micro-student:answer", messages=[{"role": "user", "content": content}], max_tokens=1
            )
            message, row = said.choices[0].message, local[item.uid]
            found = row.scores["robust"]
            assert message.content == (found.extracted or NO_ANSWER)
            assert message.reasoning_content in row.raw and len(message.reasoning_content) > 10  # type: ignore[attr-defined]
            assert said.usage is not None and said.usage.completion_tokens == row.num_tokens
            right = score("microworld", item.record, message.content or "", profile="robust").value
            assert right == found.value
        address = ("--model", f"http://127.0.0.1:{port}/v1")
        clips = evaluate(tmp_path / "video", root, *address)
        frames = evaluate(tmp_path / "frames", root, *address, "--media", "frames")
    assert len(local) == 6 and set(local) == set(clips) == set(frames)
    for uid, row in local.items():
        # Pictures arrive bit for bit, and with their times they are the clip that was trained on.
        assert (frames[uid].raw, frames[uid].num_tokens) == (row.raw, row.num_tokens)
        assert frames[uid].num_prompt_tokens == row.num_prompt_tokens == clips[uid].num_prompt_tokens
        assert frames[uid].scores == row.scores and not clips[uid].error
    # A clip is sent as H.264: its pixels differ by a shade or two.
    same = sum(clips[uid].scores["robust"] == row.scores["robust"] for uid, row in local.items())
    assert same >= 5


FAKE_VLLM = '''#!{python}
"""Plays vLLM: notes its words, serves health and completions, ends when it is told to."""
import http.server, json, os, sys
words = sys.argv[1:]
port = int(words[words.index("--port") + 1])
with open(os.environ["FAKE_VLLM_LOG"], "w") as file:
    json.dump({{"words": words, "key": os.environ["VLLM_API_KEY"], "pid": os.getpid()}}, file)
if "--fail" in words:
    sys.exit(3)

class Handler(http.server.BaseHTTPRequestHandler):
    def reply(self, value):
        data = json.dumps(value).encode()
        self.send_response(200 if self.authorised else 401)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    @property
    def authorised(self):
        key = "Bearer " + os.environ["VLLM_API_KEY"]
        return self.path == "/health" or self.headers["authorization"] == key

    def do_GET(self):
        self.reply({{}})

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        text = "<think>" + body["model"] + "</think><answer>B</answer>"
        message = {{"role": "assistant", "content": text}}
        self.reply({{"choices": [{{"index": 0, "finish_reason": "stop", "message": message}}]}})
        if "end now" in str(body["messages"]):
            os._exit(7)

    def log_message(self, *args):
        pass

http.server.HTTPServer(("127.0.0.1", port), Handler).serve_forever()
'''


@pytest.fixture
def fake_vllm(tmp_path: Path) -> dict[str, str]:
    """An environment in which `vllm` is a script that notes how it was called."""
    script = tmp_path / "bin" / "vllm"
    script.parent.mkdir()
    script.write_text(FAKE_VLLM.format(python=sys.executable))
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    log = tmp_path / "vllm.json"
    return {
        **os.environ,
        "PATH": f"{script.parent}:{os.environ['PATH']}",
        "FAKE_VLLM_LOG": str(log),
        "COLUMNS": "400",
    }


def student_directory(folder: Path) -> Path:
    """What `ffr train` leaves, without weights: nothing here loads them."""
    (folder / "student").mkdir(parents=True)
    (folder / "student" / "config.json").write_text("{}")
    pixels = {"patch_size": 16, "merge_size": 2}
    (folder / "student" / "preprocessor_config.json").write_text(json.dumps(pixels))
    made = {"observe": {"num_frames": 12, "max_frame_px": 65_536}, "find": {"max_completion_tokens": 640}}
    (folder / "config.json").write_text(json.dumps(made))
    return folder


def test_vllm_is_started_with_the_students_settings_and_ended(
    fake_vllm: dict[str, str], root: Path, tmp_path: Path
) -> None:
    run = student_directory(tmp_path / "run")
    process, port = serve(
        fake_vllm, "--model", run, "--media-root", root, "--vllm-args", "--max-model-len 9000"
    )
    try:
        api = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="x", max_retries=0)
        assert [one.id for one in api.models.list()] == ["run/student", "run/student:answer"]
        messages: Any = [{"role": "user", "content": QUESTION}]
        done = api.chat.completions.create(model="run/student:answer", messages=messages)
        assert (done.choices[0].message.content, done.choices[0].message.reasoning_content) == (
            "B",
            "run/student",
        )  # type: ignore[attr-defined]
        noted = json.loads(Path(fake_vllm["FAKE_VLLM_LOG"]).read_text())
        words = noted["words"]
        assert words[:2] == ["serve", str(run / "student")] and words[-2:] == ["--max-model-len", "9000"]
        after = dict(zip(words[2::2], words[3::2], strict=True))
        assert after["--host"] == "127.0.0.1" and after["--served-model-name"] == "run/student"
        assert after["--allowed-local-media-path"] == str(root.resolve())
        assert json.loads(after["--media-io-kwargs"]) == {"video": {"num_frames": 12}}
        assert json.loads(after["--mm-processor-kwargs"])["max_pixels"] == 65_536
        assert after["--generation-config"] == "vllm" and len(noted["key"]) == 48
    finally:
        process.terminate()
        out, _ = process.communicate(timeout=60)
    assert process.returncode == 0 and "stopped; responses: {'200': 2}" in out, out
    with pytest.raises(ProcessLookupError):
        os.kill(noted["pid"], 0)


def test_a_vllm_that_ends_ends_the_server(fake_vllm: dict[str, str], tmp_path: Path) -> None:
    run = student_directory(tmp_path / "run")
    process, port = serve(fake_vllm, "--model", run, "--engine", "vllm")
    api = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="x", max_retries=0)
    messages: Any = [{"role": "user", "content": "end now"}]
    with contextlib.suppress(openai.OpenAIError):
        api.chat.completions.create(model="run/student", messages=messages)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 1 and "vllm ended" in out, out
    command = [
        sys.executable,
        "-m",
        "ffr",
        "serve",
        "--model",
        str(run),
        "--port",
        "0",
        "--vllm-args",
        "--fail 1",
    ]
    done = subprocess.run(command, env=fake_vllm, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1 and "vllm ended with 3" in done.stderr, done.stderr
