"""A model behind a real, at times misbehaving, server on loopback."""

from __future__ import annotations

import asyncio
import base64
import io
import json

import av
import numpy as np
import pytest
from PIL import Image

from ffr.eval.models import Generation
from ffr.eval.models.media import messages, video_uri
from ffr.eval.models.openai import OpenAIAnswerer, ServerError, ServerSettings, connect
from ffr.eval.results import load_run
from ffr.eval.rows import read_rows
from ffr.eval.runner import plain
from ffr.eval.table import build_table
from ffr.observe import make_frame
from ffr.types import Observation
from tests.eval.fakes import config, evaluate, world
from tests.fix.fake_server import FakeServer, Reply, reply_json, say


def gray(k):
    return 20 + 14 * k


def frames(num=4, step_s=0.5):
    made = []
    for k in range(num):
        pixels = np.full((56, 84, 3), gray(k), np.uint8)
        made.append(make_frame(pixels, number=k + 1, source_index=5 * k, timestamp_s=3 + k * step_s))
    return tuple(made)


def view(num=4, prompt="Which?", **values):
    return Observation("test/1", frames(num), prompt, "v", **values)


def ask(server, views, generation=Generation(), **changes):  # noqa: B008
    values = {"model": "m", "media": "frames", "retries": 0, "timeout_s": 20.0, **changes}
    answerer = OpenAIAnswerer(ServerSettings(server.base_url, **values))

    async def both():
        replies = await answerer.answer(views, generation)
        await answerer.aclose()
        return replies

    return asyncio.run(both())


def test_pictures_are_the_frames_bit_for_bit():
    with FakeServer(lambda request, number: say("<answer>B</answer>")) as server:
        (reply,) = ask(
            server, [view(system="Be brief.")], Generation(temperature=0.7, top_p=0.9, max_tokens=9, seed=5)
        )
    (request,) = server.requests
    assert {k: request[k] for k in ("model", "temperature", "top_p", "max_tokens", "seed")} == {
        "model": "m", "temperature": 0.7, "top_p": 0.9, "max_tokens": 9, "seed": 5,
    }  # fmt: skip
    system, user = request["messages"]
    assert system == {"role": "system", "content": "Be brief."}
    *pictures, text = user["content"]
    assert text == {"type": "text", "text": "Which?"}
    for part, frame in zip(pictures, frames(), strict=True):
        data = base64.b64decode(part["image_url"]["url"].removeprefix("data:image/png;base64,"))
        assert (np.asarray(Image.open(io.BytesIO(data))) == frame.pixels).all()
    assert (reply.text, reply.finish, reply.num_tokens, reply.num_prompt_tokens) == (
        "<answer>B</answer>", "stop", 10, 100,
    )  # fmt: skip


@pytest.mark.parametrize(("num", "step_s"), [(2, 0.5), (16, 1 / 3), (7, 241.3)])
def test_a_video_has_the_frames_at_their_times(num, step_s):
    data = base64.b64decode(video_uri(frames(num, step_s)).removeprefix("data:video/mp4;base64,"))
    with av.open(io.BytesIO(data)) as container:
        stream = container.streams.video[0]
        got = [(frame.time, frame.to_ndarray(format="rgb24")) for frame in container.decode(stream)]
        assert float(stream.average_rate) == pytest.approx(1 / step_s, rel=0.01)
    assert len(got) == num
    for k, (time_s, pixels) in enumerate(got):
        assert time_s == pytest.approx(k * step_s, rel=0.001, abs=0.001)
        assert abs(pixels.astype(int) - gray(k)).max() <= 3


def test_video_objects_go_with_their_number_of_frames():
    with FakeServer(lambda request, number: say("B")) as server:
        ask(server, [view(6), view(1)], media="video", extra_body={"top_k": 1})
    several = next(r for r in server.requests if "media_io_kwargs" in r)
    alone = next(r for r in server.requests if "media_io_kwargs" not in r)
    assert several["media_io_kwargs"] == {"video": {"num_frames": 6}} and several["top_k"] == 1
    assert [part["type"] for part in several["messages"][0]["content"]] == ["video_url", "text"]
    assert [part["type"] for part in alone["messages"][0]["content"]] == ["image_url", "text"]


def test_a_patch_and_its_frames_follow_the_prompt():
    content = messages(view(2, patch_text="Look again.", extra_frames=frames(1)), "video")[0]["content"]
    assert [part["type"] for part in content] == ["video_url", "text", "image_url"]
    assert content[1]["text"] == "Which?\nLook again."


def test_thoughts_stay_apart():
    message = {"role": "assistant", "content": "B", "reasoning_content": "hm \ud83d"}
    body = {"choices": [{"index": 0, "finish_reason": "stop", "message": message}]}
    with FakeServer(lambda request, number: reply_json(body)) as server:
        (reply,) = ask(server, [view()])
    assert (reply.text, reply.reasoning, reply.error) == ("B", "hm ?", "")


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        (lambda: reply_json({"error": {"message": "too long"}}, 400), "bad_request"),
        (lambda: reply_json({"error": "down"}, 503), "server_error"),
        (lambda: reply_json({"error": "no"}, 401), "auth"),
        (lambda: Reply(b"<html>", 200, {"content-type": "text/html"}), "invalid_response"),
        (lambda: reply_json({"choices": []}), "invalid_response"),
        (lambda: Reply(act="reset"), "connection"),
        (lambda: Reply(act="slow_headers"), "timeout"),
        (lambda: Reply(act="huge"), "too_large"),
    ],
)
def test_every_failure_is_a_reply(answer, status):
    def script(request, number):
        bad = "bad" in json.dumps(request["messages"])
        return answer() if bad else say("B")

    with FakeServer(script) as server:
        good, bad = ask(server, [view(), view(prompt="bad")], timeout_s=2.0)
    assert good.ok and good.text == "B"
    assert not bad.ok and bad.error.startswith(f"{status}: ") and bad.text == ""


def test_a_fault_that_passes_is_retried():
    script = lambda request, number: reply_json({"error": "busy"}, 503) if number < 2 else say("B")  # noqa: E731
    with FakeServer(script) as server:
        (reply,) = ask(server, [view()], retries=3)
    assert reply.text == "B" and len(server.requests) == 3


def test_no_server_is_an_error_on_every_reply():
    answerer = OpenAIAnswerer(ServerSettings("http://127.0.0.1:9/v1", model="m", media="frames", retries=0))
    replies = asyncio.run(answerer.answer([view(), view()], Generation()))
    assert [reply.error.partition(":")[0] for reply in replies] == ["connection", "connection"]


def usage(text, tokens):
    message = {"role": "assistant", "content": text}
    choice = {"index": 0, "finish_reason": "stop", "message": message}
    return reply_json({"choices": [choice], "usage": {"prompt_tokens": tokens, "completion_tokens": 1}})


def kinds(request):
    return {part["type"] for part in request["messages"][0]["content"]} if request else set()


@pytest.mark.parametrize(
    ("video", "pictures", "media"),
    [
        (lambda: usage("yes", 50), None, "video"),
        (lambda: reply_json({"error": "no video"}, 400), 90, "frames"),
    ],
)
def test_connect_finds_the_name_and_what_the_server_takes(video, pictures, media):
    def script(request, number):
        if not request:
            return reply_json({"data": [{"id": "served"}]})
        if "video_url" in kinds(request):
            return video()
        return usage("yes", pictures if "image_url" in kinds(request) else 20)

    with FakeServer(script) as server:
        found = asyncio.run(connect(ServerSettings(server.base_url, retries=7)))
    assert (found.model, found.media, found.retries) == ("served", media, 7)


def test_connect_refuses_a_server_that_drops_the_frames():
    with FakeServer(lambda request, number: usage("yes", 20)) as server:
        with pytest.raises(
            ServerError, match=r"video: took the request without its frames .20 prompt tokens"
        ):
            asyncio.run(connect(ServerSettings(server.base_url, model="m")))
        settled = asyncio.run(connect(ServerSettings(server.base_url, model="m", media="video")))
    assert settled.media == "video"


def test_connect_names_several_models_and_a_dead_server():
    names = reply_json({"data": [{"id": "a"}, {"id": "b"}]})
    with (
        FakeServer(lambda request, number: names) as server,
        pytest.raises(ServerError, match=r"2 models \(a, b\)"),
    ):
        asyncio.run(connect(ServerSettings(server.base_url)))
    with pytest.raises(ServerError, match="is it up"):
        asyncio.run(connect(ServerSettings("http://127.0.0.1:9/v1", retries=0)))


def test_a_run_against_a_server_of_garbage(tmp_path):
    texts = ["", "B" * 100_000, "\x00", "ответ", "<answer>B</answer>", None]

    def script(request, number):
        return reply_json({"error": "bad"}, 400) if number % 7 == 6 else say(texts[number % 6])

    cfg = config(world(tmp_path / "data"), batch_size=1, concurrency=4)
    with FakeServer(script) as server:
        answerer = OpenAIAnswerer(ServerSettings(server.base_url, model="m", media="video", retries=0))
        evaluate(cfg, tmp_path / "run", None, respond=plain(answerer))
    rows = read_rows(tmp_path / "run")
    assert len(rows) == 12 and sum(bool(row.error) for row in rows) == 1
    assert build_table(load_run(tmp_path / "run")).lines[0].errors == {"bad_request": 1}
