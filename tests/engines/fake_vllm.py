"""A server on loopback that speaks vLLM's chat API over a tiny Hugging Face student.

What it reads off the wire goes through its own processor, not through our encoder: a prompt that the wire
format distorts comes out with other ids. Tokens are drawn by `HFSampler` from the seed of the request.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import io
import json
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import torch
from PIL import Image

from ffr.config import FindConfig
from ffr.engines.encode import Encoder
from ffr.engines.hf import HFSampler
from ffr.types import Frame, Observation


@dataclass
class Faults:
    """What the server does wrong."""

    statuses: list[int] = field(default_factory=list)
    """Statuses of the next replies, before it works."""
    version: str = "0.32.0"
    resize: bool = False
    """Ignores `do_resize`: frames are shrunk."""
    ignore_system: bool = False
    add_token: int | None = None
    """Claims to have sampled this token."""
    shift: float = 0.0
    """Added to every log-probability that it reports."""
    stop_word: str = ""
    words: str = "busy"
    """In the body of a reply with a bad status."""


class FakeVllm:
    """`with FakeVllm(model, processor) as server: server.base_url`."""

    def __init__(self, model: Any, processor: Any) -> None:
        self.model = model
        self.processor = processor
        self.faults = Faults()
        self.requests: list[dict[str, Any]] = []
        self.pushes = 0
        self._lock = threading.Lock()
        handler = type("Handler", (_Handler,), {"owner": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    def __enter__(self) -> FakeVllm:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(10)

    def push(self, weights: Any) -> None:
        """A `WeightSink`: what NCCL does between two GPUs."""
        with self._lock:
            self.pushes += 1
            state = {weight.name: weight.value().clone() for weight in weights}
            missing, unknown = self.model.load_state_dict(state, strict=False)
            assert not unknown and all("rotary" in name for name in missing), (missing, unknown)

    def chat(self, body: dict[str, Any]) -> dict[str, Any]:
        with self._lock:
            self.requests.append(body)
            return self._complete(body)

    def _complete(self, body: dict[str, Any]) -> dict[str, Any]:
        frames, images, parts = [], [], []
        messages = [dict(message) for message in body["messages"]]
        if self.faults.ignore_system:
            messages = [message for message in messages if message["role"] != "system"]
        for message in messages:
            message["content"] = [_part(part, frames, images) for part in message["content"]]
            parts += [part["text"] for part in message["content"] if part["type"] == "text"]
        shown = self._prompt_ids(messages, frames, images, body)
        obs = self._observation(messages, frames, images, body)
        ids, logprobs = self._draw(obs, body)
        if self.faults.add_token is not None:
            ids[0] = self.faults.add_token
        rows = [
            {"token": f"token_id:{i}", "logprob": lp + self.faults.shift, "top_logprobs": []}
            for i, lp in zip(ids, logprobs, strict=True)
        ]
        ended = ids[-1] in body["stop_token_ids"]
        return {
            "id": "c",
            "object": "chat.completion",
            "model": body["model"],
            "prompt_token_ids": shown,
            "choices": [
                {
                    "index": 0,
                    "message": {"role": "assistant", "content": ""},
                    "finish_reason": self.faults.stop_word or ("stop" if ended else "length"),
                    "token_ids": ids,
                    "logprobs": {"content": rows},
                }
            ],
        }

    def _prompt_ids(self, messages: list, frames: list, images: list, body: dict[str, Any]) -> list[int]:
        from transformers.video_utils import VideoMetadata

        text = self.processor.apply_chat_template(
            messages, add_generation_prompt=body["add_generation_prompt"], tokenize=False
        )
        resize = body.get("mm_processor_kwargs", {}).get("do_resize", True) or self.faults.resize
        if self.faults.resize:
            frames = [np.asarray(Image.fromarray(f).resize((28, 28))) for f in frames]
        given: dict[str, Any] = {}
        if frames:
            clip = dict(body["media_io_kwargs"]["video"])
            assert clip.pop("num_frames") == -1 and len(clip["frames_indices"]) == len(frames)
            sampling = clip.pop("do_sample_frames")
            given["videos"] = [torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2)]
            given["videos_kwargs"] = {
                "do_resize": resize,
                "do_sample_frames": sampling,
                "video_metadata": [VideoMetadata(**clip)],
            }
        if images:
            given["images"] = [torch.from_numpy(image).permute(2, 0, 1) for image in images]
            given["images_kwargs"] = {"do_resize": resize}
        return [int(i) for i in self.processor(text=[text], **given)["input_ids"][0]]

    def _observation(self, messages: list, frames: list, images: list, body: dict[str, Any]) -> Observation:
        user = messages[-1]["content"]
        system = messages[0]["content"][0]["text"] if messages[0]["role"] == "system" else None
        times = [t / 1000 for t in body["media_io_kwargs"]["video"]["frames_indices"]] if frames else [0.0]
        pictures = [_frame(k, pixels, t) for k, (pixels, t) in enumerate(zip(frames, times, strict=False))]
        again = [_frame(k, pixels, 0.0) for k, pixels in enumerate(images)]
        if not frames and user and user[0]["type"] == "image":
            pictures, again = again[:1], again[1:]
        words = json.dumps([body["messages"], body.get("media_io_kwargs")])
        return Observation(
            sample_uid="wire",
            frames=tuple(pictures),
            prompt="".join(part["text"] for part in user if part["type"] == "text"),
            view_id=hashlib.sha256(words.encode()).hexdigest(),
            system=system,
            extra_frames=tuple(again),
            duration_s=body["media_io_kwargs"]["video"]["duration"] if frames else 0.0,
        )

    def _draw(self, obs: Observation, body: dict[str, Any]) -> tuple[list[int], list[float]]:
        assert (body["top_k"], body["repetition_penalty"], body["n"]) == (0, 1.0, 1)
        find = FindConfig(
            temperature=body["temperature"],
            top_p=body["top_p"],
            max_completion_tokens=body["max_completion_tokens"],
        )
        sampler = HFSampler(self.model, Encoder(self.processor), find=find)
        sampler.stop_ids = frozenset(body["stop_token_ids"])
        sampler._banned = torch.zeros_like(sampler._banned)
        sampler._banned[[int(i) for i, bias in body["logit_bias"].items() if bias == -100.0]] = True
        generator = torch.Generator().manual_seed(body["seed"])
        sampler._uniforms = lambda *_: torch.rand(1, find.max_completion_tokens, generator=generator)
        [[rollout]] = asyncio.run(sampler.sample([obs], num=1))
        return list(rollout.token_ids), list(rollout.logprobs or ())


class _Handler(BaseHTTPRequestHandler):
    owner: FakeVllm
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        return

    def do_GET(self) -> None:
        if self.path == "/version":
            self._answer(200, {"version": self.owner.faults.version})
        elif self.path == "/v1/models":
            self._answer(200, {"data": [{"id": "tiny"}]})
        else:
            self._answer(404, {"error": "no such path"})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if self.path != "/v1/chat/completions":
            return self._answer(404, {"error": "no such path"})
        if self.owner.faults.statuses:
            return self._answer(self.owner.faults.statuses.pop(0), {"error": self.owner.faults.words})
        self._answer(200, self.owner.chat(body))

    def _answer(self, status: int, value: Any) -> None:
        content = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


def _part(part: dict[str, Any], frames: list, images: list) -> dict[str, Any]:
    """A message part as the chat template knows it; its pixels go into the lists."""
    if part["type"] == "video_url":
        head, data = part["video_url"]["url"].split(",", 1)
        assert head == "data:video/jpeg;base64"
        frames += [_decode(word) for word in data.split(",")]
        return {"type": "video"}
    if part["type"] == "image_url":
        images.append(_decode(part["image_url"]["url"].split(",", 1)[1]))
        return {"type": "image"}
    return part


def _decode(word: str) -> np.ndarray:
    return np.array(Image.open(io.BytesIO(base64.b64decode(word, validate=True))).convert("RGB"))


def _frame(k: int, pixels: np.ndarray, t: float) -> Frame:
    digest = hashlib.sha256(pixels.tobytes()).hexdigest()
    return Frame(k + 1, k, t, digest, pixels.shape[1], pixels.shape[0], pixels)
