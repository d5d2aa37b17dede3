"""The OpenAI door over real sockets, before a model that says what a test wants and keeps what it sees."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import io
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
from PIL import Image

from ffr.config import ObserveConfig
from ffr.eval import BENCHMARKS, get_benchmark, score
from ffr.eval.benchmarks.samples import write_sample
from ffr.eval.models import Generation, Reply
from ffr.eval.models.media import video_uri
from ffr.observe import make_frame
from ffr.observe.chat import Chat, Part, Turn, chat_view
from ffr.serve import ServeConfig, Server
from ffr.serve.answer import INSTRUCTIONS, NO_ANSWER, asked_for, bare_answer, with_instruction
from ffr.serve.local import LocalBackend, LocalConfig
from ffr.serve.media import MediaReader, MediaRules
from ffr.serve.openai_proxy import Backend, ProxyConfig, ProxyService
from ffr.serve.upstream import UpstreamBackend, UpstreamError
from tests.fix.common import write_clip
from tests.fix.fake_server import FakeServer, reply_json, say

TOKEN = "a-token-of-some-length"
OBSERVE = ObserveConfig(num_frames=4, max_frame_px=84 * 56, min_frame_px=28 * 28, max_image_px=84 * 56)
QUESTION = (
    "What falls?\nA. a cup\nB. a ball\nAnswer with the option's letter from the given choices directly."
)
THOUGHT = "<think>A cup? No.</think>\n<answer>(B) a ball</answer>"
Say = Callable[[Chat, Generation], str | Reply]


class Model:
    """An answerer that keeps what it was asked."""

    name, engine = "fake", "fake"

    def __init__(self, say: Say = lambda view, generation: THOUGHT) -> None:
        self.say = say
        self.calls: list[tuple[list[Chat], Generation]] = []
        self.gate = threading.Event()
        self.gate.set()

    async def answer(self, observations: Any, generation: Generation) -> list[Reply]:
        self.calls.append((list(observations), generation))
        await asyncio.to_thread(self.gate.wait, 30)
        said = [self.say(view, generation) for view in observations]
        return [s if isinstance(s, Reply) else Reply(s, "stop", 7, num_prompt_tokens=11) for s in said]

    @property
    def view(self) -> Chat:
        return self.calls[-1][0][-1]

    @property
    def generation(self) -> Generation:
        return self.calls[-1][1]


@contextlib.contextmanager
def running(make: Callable[[], Backend], *, root: Path | None = None, **changes: Any) -> Iterator[Server]:
    """A proxy on a free port, in a thread with its own loop."""
    started, ended = threading.Event(), threading.Event()
    box: list[Server] = []
    limits = {name: changes.pop(name) for name in list(changes) if name in ServeConfig.__dataclass_fields__}

    async def main() -> None:
        service = ProxyService(ProxyConfig(name="m", root=root, **changes), make())
        server = Server(ServeConfig(port=0, **limits), service)
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


def local(model: Model, rules: MediaRules | None = None, **limits: Any) -> Callable[[], Backend]:
    rules = rules or MediaRules(observe=OBSERVE)
    return lambda: LocalBackend(model, MediaReader(rules), LocalConfig(name="m", **limits))


def client(server: Server, key: str = "EMPTY") -> openai.OpenAI:
    return openai.OpenAI(
        base_url=f"http://127.0.0.1:{server.port}/v1", api_key=key, max_retries=0, timeout=60
    )


def ask(server: Server, content: Any, *, model: str = "m", **fields: Any) -> Any:
    messages = [{"role": "user", "content": content}]
    return client(server).chat.completions.create(model=model, messages=messages, **fields)


def text(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words}


def picture(value: int, size: tuple[int, int] = (84, 56), form: str = "PNG") -> dict[str, Any]:
    buffer = io.BytesIO()
    Image.fromarray(np.full((size[1], size[0], 3), value, np.uint8)).save(buffer, form)
    data = base64.b64encode(buffer.getvalue()).decode()
    return {"type": "image_url", "image_url": {"url": f"data:image/{form.lower()};base64,{data}"}}


def video(url: str) -> dict[str, Any]:
    return {"type": "video_url", "video_url": {"url": url}}


def refused(server: Server, content: Any, **fields: Any) -> tuple[int, str, str]:
    """Status, code and words of a refusal."""
    with pytest.raises(openai.APIStatusError) as caught:
        ask(server, content, **fields)
    body = caught.value.response.json()["error"]
    assert set(body) == {"message", "type", "param", "code"}
    return caught.value.status_code, body["code"], body["message"]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("proxy")
    media = base / "media"
    media.mkdir()
    write_clip(media / "a clip #1 50%.mp4")
    (base / "secret.mp4").write_bytes((media / "a clip #1 50%.mp4").read_bytes())
    (media / "out.mp4").symlink_to(base / "secret.mp4")
    (media / "junk.mp4").write_bytes(b"no video at all" * 100)
    Image.fromarray(np.full((40, 40, 3), 77, np.uint8)).save(media / "p.png")
    return media


def test_two_names_are_listed_and_others_are_refused() -> None:
    with running(local(Model())) as server:
        assert [one.id for one in client(server).models.list()] == ["m", "m:answer"]
        status, code, words = refused(server, QUESTION, model="gpt-4o")
        assert (status, code) == (404, "model_not_found") and "m:answer" in words


def test_the_plain_name_returns_what_the_model_says_and_what_it_cost() -> None:
    model = Model()
    with running(local(model)) as server:
        done = ask(server, QUESTION, temperature=0.7, top_p=0.9, max_tokens=16, seed=5)
    assert done.choices[0].message.content == THOUGHT and done.choices[0].finish_reason == "stop"
    assert (done.usage.prompt_tokens, done.usage.completion_tokens, done.usage.total_tokens) == (11, 7, 18)
    assert model.generation == Generation(temperature=0.7, top_p=0.9, max_tokens=16, seed=5)
    assert model.view.prompt == QUESTION and model.view.turns[0].role == "user"


def test_the_alias_lets_the_model_think_and_returns_the_letter() -> None:
    model = Model()
    with running(local(model), answer_tokens=300) as server:
        done = ask(server, [picture(9), text(QUESTION)], model="m:answer", max_tokens=16, stop=["\n"])
        message = done.choices[0].message
        assert (message.content, message.reasoning_content) == ("B", "A cup? No.")
        assert model.generation.max_tokens == 300 and done.model == "m:answer"
        asked = model.view.turns[0].parts
        assert [part.kind for part in asked] == ["image", "text"]
        assert asked[1].text.startswith(QUESTION + "\nThink about this") and "option letter" in asked[1].text
        ask(server, QUESTION, model="m:answer", max_tokens=2000)
        assert model.generation.max_tokens == 2000
        own = QUESTION + " Use <answer></answer>."
        ask(server, own, model="m:answer")
        assert model.view.prompt == own  # it asks for the tags itself


def test_parts_keep_their_order_and_their_turns() -> None:
    model = Model()
    with running(local(model)) as server:
        messages = [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": [text("First:"), picture(10), text("Second:"), picture(200)]},
            {"role": "assistant", "content": "Two."},
            {"role": "user", "content": "Which is brighter?"},
        ]
        client(server).chat.completions.create(model="m", messages=messages)  # type: ignore[arg-type]
    system, first, said, last = model.view.turns
    assert (system.role, said.role, last.parts) == ("system", "assistant", (Part("Which is brighter?"),))
    assert [part.kind for part in first.parts] == ["text", "image", "text", "image"]
    shades = [int(part.frames[0].pixels.mean()) for part in first.parts if part.frames]
    assert shades == [10, 200] and model.view.prompt.splitlines()[-1] == "Which is brighter?"


def test_pictures_are_pictures_or_one_clip_as_the_switch_says() -> None:
    content = [picture(10), picture(20), picture(30, form="JPEG"), text(QUESTION)]
    apart, together = Model(), Model()
    with running(local(apart)) as server:
        ask(server, content)
    assert [part.kind for part in apart.view.parts] == ["image", "image", "image", "text"]
    rules = MediaRules(observe=OBSERVE, images_as_video=True, images_fps=2.0)
    with running(local(together, rules)) as server:
        ask(server, content)
        clip, words = together.view.parts
        assert clip.kind == "video" and words.text == QUESTION
        assert [frame.timestamp_s for frame in clip.frames] == [0.0, 0.5, 1.0] and clip.duration_s == 1.5
        assert [int(frame.pixels.mean()) for frame in clip.frames] == [10, 20, 30]
        ask(server, content, extra_body={"mm_processor_kwargs": {"fps": 4}})
        assert together.view.parts[0].duration_s == 0.75
        ask(server, [picture(10), text(QUESTION)])
        assert together.view.parts[0].kind == "image"
        status, _, words = refused(server, [picture(10), picture(20, (28, 56)), text(QUESTION)])
        assert status == 400 and "different sizes" in words


def test_clips_come_as_data_or_as_files_under_the_root(root: Path) -> None:
    model = Model()
    path = root / "a clip #1 50%.mp4"  # 32 frames, frame k a little brighter than frame k - 1
    rules = MediaRules(root=root, observe=OBSERVE)
    data = "data:video/mp4;base64," + base64.b64encode(path.read_bytes()).decode()
    with running(local(model, rules), root=root) as server:
        for url in (path.as_uri(), f"file://{path}", f"file://localhost{path}", data):
            ask(server, [video(url), text(QUESTION)])
            clip = model.view.parts[0]
            assert [frame.source_index for frame in clip.frames] == [0, 10, 21, 31], url
            assert clip.duration_s == 4.0
        ask(server, [video(path.as_uri())], extra_body={"media_io_kwargs": {"video": {"num_frames": 9}}})
        assert len(model.view.frames) == 9
        few = {"mm_processor_kwargs": {"max_pixels": 28 * 56, "min_pixels": 28 * 28}}
        ask(server, [video(path.as_uri())], extra_body=few)
        assert {(frame.width_px, frame.height_px) for frame in model.view.frames} == {(28, 28)}
        ask(server, [{"type": "image_url", "image_url": (root / "p.png").as_uri()}])
        assert int(model.view.frames[0].pixels.mean()) == 77
    frames = tuple(
        make_frame(np.full((56, 84, 3), 20 * k, np.uint8), number=k, source_index=k, timestamp_s=k / 2)
        for k in range(1, 5)
    )
    with running(local(model)) as server:
        ask(server, [video(video_uri(frames))], extra_body={"media_io_kwargs": {"video": {"num_frames": 4}}})
    assert [frame.timestamp_s for frame in model.view.frames] == [0.0, 0.5, 1.0, 1.5]
    assert model.view.duration_s == 0.0 and model.view.parts[0].duration_s == 2.0


@pytest.mark.parametrize(
    ("url", "status", "code"),
    [
        ("file:///etc/passwd", 403, "outside_root"),
        ("file:///etc/no-such-file", 403, "outside_root"),
        ("file://{root}/../secret.mp4", 403, "outside_root"),
        ("file://{root}/%2e%2e/secret.mp4", 403, "outside_root"),
        ("file://{root}/out.mp4", 403, "outside_root"),
        ("file://{root}", 403, "outside_root"),
        ("file://elsewhere{root}/junk.mp4", 403, "outside_root"),
        ("file:junk.mp4", 403, "outside_root"),
        ("file://{root}/junk.mp4\0", 403, "outside_root"),
        ("file://{root}/none.mp4", 404, "missing"),
        ("file://{root}/junk.mp4", 400, "undecodable"),
        ("http://127.0.0.1:1/a.mp4", 400, "bad_url"),
        ("https://example.org/a.mp4", 400, "bad_url"),
        ("/etc/passwd", 400, "bad_url"),
        ("concat:a.mp4", 400, "bad_url"),
        ("data:image/png;base64,AAAA", 400, "bad_url"),
        ("data:video/mp4;base64,%%%", 400, "bad_url"),
        ("data:video/mp4,abc", 400, "bad_url"),
        ("data:video/mp4;base64,", 400, "empty"),
        (
            "data:video/mp4;base64," + base64.b64encode(b"#EXTM3U\nhttp://127.0.0.1/").decode(),
            400,
            "undecodable",
        ),
    ],
)
def test_nothing_else_is_opened_or_fetched(root: Path, url: str, status: int, code: str) -> None:
    model = Model()
    with running(local(model, MediaRules(root=root, observe=OBSERVE)), root=root) as server:
        got = refused(server, [video(url.replace("{root}", str(root))), text(QUESTION)])
        assert got[:2] == (status, code)
        assert str(root.parent) not in got[2] and not model.calls


def test_without_a_root_no_file_is_opened(root: Path) -> None:
    with running(local(Model())) as server:
        status, code, words = refused(server, [video((root / "p.png").as_uri())])
        assert (status, code) == (403, "no_files") and "--media-root" in words


def test_limits_on_pictures_frames_pixels_and_bodies() -> None:
    model = Model()
    rules = MediaRules(observe=OBSERVE, max_images=3, max_frames=8)
    with running(local(model, rules), max_body_bytes=100_000) as server:
        assert refused(server, [picture(1)] * 4)[:2] == (413, "too_many")
        clip = [video("data:video/mp4;base64,AAAA")]
        many = {"media_io_kwargs": {"video": {"num_frames": 9}}}
        assert refused(server, clip, extra_body=many)[:2] == (413, "too_many")
        for kwargs in (
            {"max_pixels": 10**7},
            {"max_pixels": 10},
            {"min_pixels": 10**6},
            {"max_pixels": "big"},
        ):
            assert refused(server, clip, extra_body={"mm_processor_kwargs": kwargs})[0] == 400
        assert refused(server, "x" * 200_000)[:2] == (413, "too_large")
        assert refused(server, [video("data:video/mp4;base64,AAAA")] * 9)[:2] == (413, "too_many")
        assert not model.calls
    with running(local(model)) as server:
        assert refused(server, "x" * 400_001)[:2] == (413, "too_long")


def test_bodies_in_memory_are_limited_together() -> None:
    with running(local(Model()), max_held_bytes=100_000) as server:
        head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: 90000\r\n\r\n"
        with socket.create_connection(("127.0.0.1", server.port), timeout=30) as sock:
            sock.sendall(head)  # its body never comes
            while not server._held:
                time.sleep(0.01)
            assert refused(server, "x" * 50_000)[:2] == (503, "busy")
            assert ask(server, "short").choices[0].message.content == THOUGHT
        while server._held:
            time.sleep(0.01)
        assert ask(server, "x" * 50_000).choices[0].message.content == THOUGHT


def post(server: Server, body: bytes, **headers: str) -> tuple[int, dict[str, Any]]:
    import http.client

    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    connection.request("POST", "/v1/chat/completions", body, {"content-type": "application/json", **headers})
    reply = connection.getresponse()
    return reply.status, json.loads(reply.read())


def test_garbage_is_refused_in_openais_words() -> None:
    model = Model()
    good: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
    with running(local(model)) as server:
        for body in (b"{", b"[]", b"\xff", b"[" * 100_000, b"{}", b'{"model": 3, "messages": []}'):
            status, reply = post(server, body)
            assert status == 400 and reply["error"]["type"] == "invalid_request_error", body[:20]
            assert reply["error"]["message"] and "Traceback" not in json.dumps(reply)
        changes: list[dict[str, Any]] = [
            {"temperature": -1}, {"temperature": "hot"}, {"top_p": 0}, {"max_tokens": 0}, {"n": 99},
            {"seed": "x"}, {"messages": "hi"},
            {"messages": [{"role": "user", "content": [{"type": "audio"}]}]},
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            {"messages": [{"role": "wizard", "content": "hi"}]},
            {"messages": [{"role": "assistant", "content": "B"}]},
            {"messages": [{"role": "system", "content": [picture(1)]}, *good["messages"]]},
            {"stream": True}, {"tools": [{}]}, {"logprobs": True}, {"presence_penalty": 0.4},
            {"chat_template_kwargs": {"chat_template": "{{ 1 }}"}}, {"chat_template_kwargs": {"a": [1]}},
            {"media_io_kwargs": {"video": {"num_frames": "all"}}},
        ]  # fmt: skip
        for change in changes:
            status, reply = post(server, json.dumps({**good, **change}).encode())
            assert status == 400 and reply["error"]["message"], change
        assert not model.calls
        kept = {
            "chat_template_kwargs": {"enable_thinking": False},
            "user": "u",
            "presence_penalty": 0,
            "n": None,
        }
        assert post(server, json.dumps({**good, **kept}).encode())[0] == 200
        assert model.view.template == {"enable_thinking": False}
        assert post(server, json.dumps(good).encode(), **{"content-type": "text/plain"})[0] == 415


def test_several_completions_have_seeds_in_turn_and_stop_strings_cut() -> None:
    model = Model(lambda view, generation: f"seed {generation.seed}. More.")
    with running(local(model)) as server:
        done = ask(server, "hi", n=3, seed=10, temperature=1.0, stop=[". "])
        assert [choice.message.content for choice in done.choices] == ["seed 10", "seed 11", "seed 12"]
        assert done.usage.completion_tokens == 21 and done.usage.prompt_tokens == 11
        ask(server, "hi", temperature=1.0)
        first = model.generation.seed
        ask(server, "hi", temperature=1.0)
        assert model.generation.seed != first  # no seed: every request has its own
        ask(server, "hi", max_tokens=32_768)
        assert model.generation.max_tokens == 8192 and model.generation.temperature == 0.0


def test_a_failing_model_is_an_error_of_its_request_alone() -> None:
    def speak(view: Chat, generation: Generation) -> str | Reply:
        if "long" in view.prompt:
            return Reply.failed("encode", "the prompt has 99 tokens")
        if "raise" in view.prompt:
            raise RuntimeError("a secret of the implementation")
        return Reply.failed("model", "CUDA error") if "bad" in view.prompt else "fine"

    with running(local(Model(speak))) as server:
        assert refused(server, "long")[:2] == (400, "bad_request")
        for words in ("bad", "raise"):
            status, code, message = refused(server, words)
            assert (
                (status, code) == (500, "model_failed") and "secret" not in message and "CUDA" not in message
            )
        assert ask(server, "good").choices[0].message.content == "fine"


def test_requests_share_a_call_only_when_asked_to_and_only_with_equal_settings() -> None:
    for size, expected in ((1, [1, 1, 1, 1, 1]), (4, [1, 3, 1])):
        model = Model(lambda view, generation: view.prompt)
        model.gate.clear()
        said: dict[str, str] = {}
        with running(local(model, batch_size=size)) as server:

            def work(words: str, seed: int, server: Server = server, said: dict[str, str] = said) -> None:
                said[words] = ask(server, words, seed=seed).choices[0].message.content

            threads = [threading.Thread(target=work, args=(f"q{k}", 7 if k < 4 else 8)) for k in range(5)]
            threads[0].start()
            while not model.calls:
                time.sleep(0.01)
            for thread in threads[1:]:
                thread.start()
            while server._running < 5:
                time.sleep(0.01)
            time.sleep(0.3)
            model.gate.set()
            for thread in threads:
                thread.join(60)
        assert said == {f"q{k}": f"q{k}" for k in range(5)}
        assert sorted(len(views) for views, _ in model.calls) == sorted(expected)


def test_strangers_need_the_token(root: Path) -> None:
    with running(local(Model()), token=TOKEN) as server:
        with pytest.raises(openai.AuthenticationError):
            client(server, "wrong").models.list()
        assert len(client(server, TOKEN).models.list().data) == 2
    service = ProxyService(ProxyConfig(name="m"), local(Model())())
    with pytest.raises(ValueError, match="needs a token"):
        Server(ServeConfig(host="0.0.0.0"), service)


# --- the bare answer -------------------------------------------------------------------------------------


def outputs(gold: str, option: str) -> list[str]:
    """Ways in which a student gives the gold answer, all of which must come out right."""
    return [
        f"<think>Either A or E. Yes or no? 3 of 10.</think>\n<answer>{gold}</answer>",
        f"<think>a man, a dog</think><answer> {gold}.</answer>",
        f"<think>...</think>{gold}",
        f"First a man walks. A box is there. The answer is {gold}.",
        f"<answer>{gold}",
        *([f"<think>A?</think><answer>({gold}) {option}</answer>", f"<answer>{gold}. {option}</answer>",
           f"<think>A?</think><answer>{option}</answer>"] if option else []),
    ]  # fmt: skip


@pytest.mark.parametrize("name", [name for name in BENCHMARKS if name not in ("microworld", "video_r1")])
def test_the_bare_answer_survives_every_scorer_of_lmms_eval(name: str, tmp_path: Path) -> None:
    benchmark = get_benchmark(name)
    items = [i for i in benchmark.load(write_sample(name, tmp_path)).items if i.target.kind != "caption"]
    assert items
    model = Model()
    with running(local(model)) as server:
        for number, item in enumerate(items):
            option = item.target.text if item.target.kind == "choice" else ""
            said = outputs(item.target.answer, option)
            for raw in said if number % 5 == 0 else said[:1]:
                model.say = lambda view, generation, raw=raw: raw
                done = ask(server, item.official_prompt, model="m:answer", max_tokens=16)
                content = done.choices[0].message.content
                found = score(name, item.record, content, profile="lmms_eval")
                assert found.value == 1.0, (item.uid, raw, content, found)
            for raw in ("", "<think>a man said A, B or", "<think>It</think><answer></answer>"):
                answer = bare_answer(item.official_prompt, raw).answer
                found = score(name, item.record, answer, profile="lmms_eval")
                # Wrong and counted, never left out of the average for being empty.
                assert found.value == 0.0 and answer == NO_ANSWER
                assert found.note in ("", "needs_judge", "random_in_harness") or name == "mmvu"


@pytest.mark.parametrize(
    ("question", "raw", "expected"),
    [
        ("Match.\nOption 1: a dog runs.\nOption 2: a cat sits.", "<answer>Option 2</answer>", "Option 2"),
        ("Match.\nOption 1: a dog runs.\nOption 2: a cat sits.", "<answer>2</answer>", "Option 2"),
        ("Match.\nSentence A: a dog runs.\nSentence B: a cat sits.", "<answer>B</answer>", "Sentence B"),
        ("Match.\nCaption A: a dog.\nCaption B: a cat.", "So it is Caption A.", "Caption A"),
        (
            "Does it glow?\nPlease answer yes or no:",
            "<think>no?</think><answer>Yes, it does.</answer>",
            "yes",
        ),
        ("Does it glow?\nPlease answer yes or no:", "<think>yes?</think>No.", "no"),
        ("The options are: {'A': 'left', 'B': 'right', 'C': 'up'}. Your answer:", "<answer>up</answer>", "C"),
        ("Which?\n(A) red\n(B) blue\nOnly give the best option.", "<answer>(B) blue</answer>", "B"),
        ("Which?\nA) red\nB) blue", "<answer>blue</answer>", "B"),
        ("Which?\nA: red\nB: blue", "B: blue", "B"),
        ("How many chairs are in this room?", "<answer>about 12</answer>", "12"),
        ("What is the length of the bed in centimeters?", "<answer>2.1 meters</answer>", "210"),
        ("What trick is this?", "<think>m</think><answer>Dolly Zoom</answer>", "Dolly Zoom"),
        ("How fast is it, at the end?", "<answer>3 m/s</answer>", "3 m/s"),
        ("What is the price?", "<answer>2,500</answer>", "2500"),
        ("A list:\nA. one\nB. two\nWhich of these?\nA. cup\nB. box", "<answer>box</answer>", "B"),
    ],
)
def test_the_form_of_the_answer_is_that_of_the_question(question: str, raw: str, expected: str) -> None:
    assert bare_answer(question, raw).answer == expected


def test_thoughts_stay_beside_the_answer() -> None:
    plain = bare_answer(QUESTION, "B")
    assert (plain.answer, plain.thoughts) == ("B", "")
    untagged = bare_answer(QUESTION, "The cup stands. The answer is B.")
    assert (untagged.answer, untagged.thoughts) == ("B", "The cup stands. The answer is B.")
    cut = bare_answer(QUESTION, "<think>The cup or the")
    assert (cut.answer, cut.thoughts, cut.rule) == (NO_ANSWER, "The cup or the", "none")
    assert bare_answer(QUESTION, "<answer>B</answer>", "kept apart").thoughts == "kept apart"


def test_the_instruction_names_the_form() -> None:
    kinds = ["Which?\nA. a\nB. b", "Option 1: x\nOption 2: y", "Answer yes or no:", "How many?", "Why?"]
    assert [asked_for(q).kind for q in kinds] == ["choice", "match", "yes_no", "number", "open"]
    texts = [with_instruction(q, "video_r1") for q in kinds]
    for words, said in zip(
        ("option letter", "such as Option 1", "yes or no within", "number", "as text"), texts, strict=True
    ):
        assert words in said and "<think> </think>" in said
    assert with_instruction("Why?", "none") == "Why?"
    assert with_instruction("Why?\n", "brief") == "Why?\n" + INSTRUCTIONS["brief"]


def test_reading_a_question_takes_linear_time() -> None:
    hostile = [
        "A. x" + " " * 60_000 + "y",
        "A. x\n" * 9_000,
        "'A': " * 9_000,
        "Option 1: a\n" * 4_000,
        "(" * 60_000,
    ]
    started = time.process_time()
    for question in hostile:
        asked_for(question)
        bare_answer(QUESTION, question)
    assert time.process_time() - started < 60  # quadratic time would be hours


# --- a conversation's name ---------------------------------------------------------------------------------


def test_equal_conversations_are_the_same_view() -> None:
    def view(words: str = "hi", shade: int = 3, time_s: float = 0.0, **template: Any) -> str:
        frame = make_frame(
            np.full((28, 28, 3), shade, np.uint8), number=1, source_index=0, timestamp_s=time_s
        )
        return chat_view("any", [Turn("user", (Part(words), Part(frames=(frame,))))], template).view_id

    assert view() == view()
    others = [
        view("ho"),
        view(shade=4),
        view(time_s=1.0),
        view(enable_thinking=True),
        view(enable_thinking=1),
    ]
    assert len({view(), *others}) == 6


# --- over another server -----------------------------------------------------------------------------------


def behind(server: FakeServer, rules: MediaRules | None = None, **fields: Any) -> Callable[[], Backend]:
    media = rules or MediaRules(observe=OBSERVE)
    return lambda: UpstreamBackend(server.base_url, **{"model": "big", "media": MediaReader(media), **fields})


def test_over_another_server_only_name_and_alias_change(root: Path) -> None:
    rules = MediaRules(root=root, observe=OBSERVE)
    path = root / "a clip #1 50%.mp4"
    with (
        FakeServer(lambda request, number: say(THOUGHT)) as fake,
        running(behind(fake, rules, key="k3y"), root=root, answer_tokens=500) as server,
    ):
        extra = {"top_k": 3, "media_io_kwargs": {"video": {"num_frames": 7}}}
        content = [video(f"file://{path}"), picture(5), text(QUESTION)]
        done = ask(server, content, temperature=0.5, logprobs=True, extra_body=extra)
        assert done.choices[0].message.content == THOUGHT and done.usage.prompt_tokens == 100
        done = ask(server, content, model="m:answer", max_tokens=16, stop=["."], seed=4)
        assert (done.choices[0].message.content, done.model) == ("B", "m:answer")
        assert done.choices[0].message.reasoning_content == "A cup? No."
    raw, asked = fake.requests
    assert (raw["model"], raw["temperature"], raw["logprobs"], raw["top_k"]) == ("big", 0.5, True, 3)
    assert raw["media_io_kwargs"] == {"video": {"num_frames": 7}} and "max_tokens" not in raw
    sent = raw["messages"][0]["content"]
    assert sent[0]["video_url"]["url"] == path.as_uri() and sent[1:] == [picture(5), text(QUESTION)]
    assert (asked["max_tokens"], asked["seed"], "stop" in asked) == (500, 4, False)
    assert asked["messages"][0]["content"][2]["text"].startswith(QUESTION + "\nThink")
    assert all("bearer k3y" in head.lower() for head in fake.headers)


def test_thoughts_that_the_server_keeps_apart_stay_thoughts() -> None:
    message = {"role": "assistant", "content": "Answer: B", "reasoning_content": "hm"}
    body = {"choices": [{"index": 0, "finish_reason": "stop", "message": message}]}
    with FakeServer(lambda request, number: reply_json(body)) as fake, running(behind(fake)) as server:
        done = ask(server, QUESTION, model="m:answer")
    assert (done.choices[0].message.content, done.choices[0].message.reasoning_content) == ("B", "hm")


def test_files_and_pictures_are_sent_on_as_the_rules_say(root: Path) -> None:
    with FakeServer(lambda request, number: say("B")) as fake:
        rules = MediaRules(root=root, observe=OBSERVE, images_as_video=True)
        with running(behind(fake, rules, inline=True), root=root) as server:
            ask(server, [video((root / "junk.mp4").as_uri()), text(QUESTION)])
            ask(server, [picture(10), picture(90), text(QUESTION)])
            for url in ("file:///etc/passwd", f"file://{root}/out.mp4", "http://127.0.0.1/a.mp4"):
                assert refused(server, [video(url)])[0] in (400, 403)
    inline, clip = fake.requests
    url = inline["messages"][0]["content"][0]["video_url"]["url"]
    assert base64.b64decode(url.removeprefix("data:video/mp4;base64,")) == (root / "junk.mp4").read_bytes()
    assert [part["type"] for part in clip["messages"][0]["content"]] == ["video_url", "text"]
    assert clip["messages"][0]["content"][0]["video_url"]["url"].startswith("data:video/mp4;base64,")
    assert clip["media_io_kwargs"] == {"video": {"num_frames": 2}}


def test_a_failing_server_behind_is_said_so() -> None:
    def script(request: dict[str, Any], number: int) -> Any:
        words = json.dumps(request["messages"])
        if "long" in words:
            return reply_json({"error": {"message": "too long for k3y-secret"}}, 400)
        if "down" in words:
            return reply_json({"error": "x"}, 503)
        if "key" in words:
            return reply_json({"error": {"message": "no"}}, 401)
        return reply_json({"odd": 1}) if "odd" in words else reply_json([1])

    with FakeServer(script) as fake, running(behind(fake, key="k3y-secret")) as server:
        assert refused(server, "long") == (400, "upstream_refused", "too long for ***")
        for words in ("down", "key", "odd", "list"):
            assert refused(server, words)[:2] == (502, "upstream")
    gone = UpstreamBackend("http://127.0.0.1:9/v1", model="big", media=MediaReader(MediaRules()))
    with running(lambda: gone) as server:
        status, code, words = refused(server, "hi")
        assert (status, code) == (502, "upstream") and "can't be reached" in words


def test_the_name_behind_is_found_or_asked_for() -> None:
    async def settle(base_url: str) -> str:
        backend = UpstreamBackend(base_url, media=MediaReader(MediaRules()))
        try:
            return await backend.settle()
        finally:
            await backend.aclose()

    with (
        running(local(Model())) as server,
        pytest.raises(UpstreamError, match=r"m, m:answer.*--upstream-model"),
    ):
        asyncio.run(settle(f"http://127.0.0.1:{server.port}/v1"))
    with pytest.raises(UpstreamError, match="is it up"):
        asyncio.run(settle("http://127.0.0.1:9/v1"))


def test_mistakes_of_the_command_are_said_before_anything_is_loaded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from ffr.cli.main import main

    for words, code, said in (
        ([], 2, "either --model DIR or --upstream URL"),
        (["--model", "micro-student", "--upstream", "http://127.0.0.1:1/v1"], 2, "either --model"),
        (["--model", str(tmp_path / "nothing")], 1, "no such directory"),
        (["--model", "micro-student", "--media-root", str(tmp_path / "nothing")], 1, "no such directory"),
        (["--model", "micro-student", "--host", "0.0.0.0"], 1, "needs a token"),
        (["--upstream", "http://127.0.0.1:9/v1"], 1, "is it up"),
    ):
        assert main(["serve", *words]) == code, words
        assert said in capsys.readouterr().err.replace("\n", " "), words
