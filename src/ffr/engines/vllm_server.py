"""Rollouts from a vLLM server: one request each, so that a finished rollout does not wait for the others.

The server reads the conversation and the frames (`vllm_wire`), samples with a seed per rollout, and returns
ids and log-probabilities. Start it with

    VLLM_SERVER_DEV_MODE=1 vllm serve MODEL --trust-request-mm-kwargs \
        --logprobs-mode processed_logprobs --max-logprobs -1 --weight-transfer-config '{"backend": "nccl"}'

Frame times come with a request, which the first flag allows. `processed_logprobs` are those of the
distribution that was sampled from (temperature, bans): mu of `sampler_correction`. Weights arrive by
`ffr.engines.vllm_weights`.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import os
import random
import re
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Sequence
from typing import Any, Final
from urllib.parse import urlsplit

import httpx2

from ffr.config import FindConfig, VllmConfig
from ffr.engines.batch import Batcher, unwrap
from ffr.engines.encode import Encoder
from ffr.engines.hf import banned_tokens, stop_ids
from ffr.engines.vllm_wire import MIN_VERSION, Request, build_request, read_reply, version_words
from ffr.find import SamplerError
from ffr.fix.background import on_private_loop
from ffr.fix.faults import TeacherFault, status_fault
from ffr.fix.overlap import gather_or_cancel
from ffr.fix.teacher import FailureKind
from ffr.types import Observation, Rollout

log = logging.getLogger(__name__)

MAX_BODY_BYTES: Final = 64 * 2**20
MAX_KEPT_REQUESTS: Final = 64
BACKOFF_S: Final = 0.5
MAX_BACKOFF_S: Final = 8.0
START_HINT: Final = "start one (configs/ffr_qwen2_5vl_7b.toml shows how) or correct train.vllm.base_urls"


class VllmServerSampler:
    """`Sampler` and `SingleSampler` over `vllm serve`.

    Args:
        model: the student in this process: its vocabulary and end tokens; never sampled from.
        encoder: turns observations into prompts.
        find: temperature, top-p, completion limit.
        vllm: addresses, limits, retries.
        seed: start of the random streams until `reseed`.

    Example:
        >>> sampler = VllmServerSampler(model, encoder, find=cfg.find, vllm=cfg.train.vllm)  # doctest: +SKIP
    """

    remote = True
    """The weights are elsewhere: whoever updates them must send them."""

    def __init__(
        self, model: Any, encoder: Encoder, *, find: FindConfig, vllm: VllmConfig, seed: int = 0
    ) -> None:
        if not vllm.base_urls:
            raise ValueError("train.vllm.base_urls is empty")
        self.model = model
        self.encoder = encoder
        self.find = find
        self.batcher = Batcher(model, encoder.pad_id)
        self.stop_ids = stop_ids(unwrap(model), encoder)
        banned = banned_tokens(unwrap(model), encoder).nonzero()[:, 0].tolist()
        self.banned = frozenset(banned) - self.stop_ids
        self._vllm = vllm
        self._urls = tuple(url.rstrip("/") for url in vllm.base_urls)
        self._lock = threading.Lock()
        self._requests: OrderedDict[str, Request] = OrderedDict()
        self._net: _Net | None = None
        # Its own generator: the run's seeds must not depend on the network.
        self._random = random.Random()
        self.reseed(seed)

    @property
    def base_urls(self) -> tuple[str, ...]:
        """Addresses of the servers, without a slash at the end."""
        return self._urls

    def reseed(self, *parts: int) -> None:
        """Starts new random streams, named by `parts` (seed, step, rank): a resumed run repeats them."""
        self.forget()
        self._stream = parts
        self._drawn: Counter[tuple[str, str]] = Counter()

    def forget(self) -> None:
        """Frees the encoded pictures of the round's views."""
        with self._lock:
            self._requests.clear()

    async def sample(
        self, observations: Sequence[Observation], *, num: int, source: str = "policy"
    ) -> list[list[Rollout]]:
        """Samples `num` rollouts of each observation, all at once.

        Raises:
            SamplerError: no server, another prompt there than here, or a reply that is no rollout.
            EncodeError: an observation cannot be shown to this model.
        """
        asked: list[tuple[Observation, int]] = []
        for obs in observations:
            for _ in range(num):
                name = (obs.view_id, source)
                asked.append((obs, self._drawn[name]))
                self._drawn[name] += 1
        rollouts = await on_private_loop(self._sample_all(asked, source))
        return [rollouts[at : at + num] for at in range(0, len(rollouts), num)]

    async def _sample_all(self, asked: Sequence[tuple[Observation, int]], source: str) -> list[Rollout]:
        return await gather_or_cancel([self.sample_one(obs, source=source, stream=k) for obs, k in asked])

    async def sample_one(self, obs: Observation, *, source: str, stream: int) -> Rollout:
        """One rollout of one observation.

        Args:
            obs: any view.
            source: `policy` or `repaired`, kept on the rollout.
            stream: which of the view's random streams; equal names give equal seeds.

        Raises:
            SamplerError: no server, another prompt there than here, or a reply that is no rollout.
            EncodeError: the observation cannot be shown to this model.
        """
        net = self._bound_net()
        deadline = time.monotonic() + self._vllm.rollout_deadline_s
        name = await net.model_name(self, obs.sample_uid, deadline)
        request = await asyncio.to_thread(self._prepared, obs, name)
        body = request.body(stream_seed(self._stream, obs.view_id, source, stream))
        content = await self._ask(net, "POST", "/chat/completions", body, obs.sample_uid, deadline)
        return await asyncio.to_thread(self._read, content, request, obs, source)

    async def aclose(self) -> None:
        """Closes the connections of the running loop."""
        net, self._net = self._net, None
        if net is not None and net.loop is asyncio.get_running_loop():
            await net.client.aclose()

    def _prepared(self, obs: Observation, model: str) -> Request:
        # One at a time: the encoder keeps what it has seen, and a view's pictures are encoded once.
        with self._lock:
            known = self._requests.get(obs.view_id)
            if known is None:
                known = build_request(
                    self.encoder,
                    obs,
                    model=model,
                    find=self.find,
                    banned=sorted(self.banned),
                    stop_ids=sorted(self.stop_ids),
                )
                self._requests[obs.view_id] = known
                while len(self._requests) > MAX_KEPT_REQUESTS:
                    self._requests.popitem(last=False)
            return known

    def _read(self, content: bytes, request: Request, obs: Observation, source: str) -> Rollout:
        with self._lock:  # a tokenizer serves one thread at a time
            reply = read_reply(
                content, request.prompt, self.encoder, banned=self.banned, stop_ids=self.stop_ids
            )
            text = self.encoder.decode(reply.token_ids, self.stop_ids)
        return Rollout(obs, text, reply.token_ids, reply.logprobs, reply.finish, source)

    def _bound_net(self) -> _Net:
        loop = asyncio.get_running_loop()
        if self._net is None or self._net.loop is not loop:
            self._net = _Net(loop, self._vllm, self._urls)
        return self._net

    async def _ask(self, net: _Net, method: str, path: str, body: bytes, uid: str, deadline: float) -> bytes:
        """One request with its retries; a question always begins at the same server, whose caches know it."""
        home = int.from_bytes(hashlib.sha256(uid.encode()).digest()[:4], "big")
        fault = TeacherFault(FailureKind.TIMEOUT, "the deadline passed before the first attempt")
        url = self._urls[home % len(self._urls)]
        for attempt in range(self._vllm.max_retries + 1):
            if attempt:
                jitter = self._random.uniform(0.0, min(MAX_BACKOFF_S, BACKOFF_S * 2 ** (attempt - 1)))
                pause = max(jitter, fault.retry_after_s or 0.0)
                if pause >= deadline - time.monotonic():
                    break
                await asyncio.sleep(pause)
            url = self._urls[(home + attempt) % len(self._urls)]
            try:
                base = url.removesuffix("/v1") if path == "/version" else url
                return await net.attempt(method, base + path, body, deadline)
            except TeacherFault as error:
                fault = error
                log.info("rollout of %s: attempt %d at %s: %s", uid, attempt + 1, url, error)
                if not error.retryable:
                    break
        raise SamplerError(
            f"sample {uid!r}: no rollout from the vLLM server at {url}: {fault}; {_remedy(fault)}"
        )

    async def identify(self, net: _Net, uid: str, deadline: float) -> str:
        """The name of the served model; refuses a server that is too old."""
        content = await self._ask(net, "GET", "/version", b"", uid, deadline)
        listed = await self._ask(net, "GET", "/models", b"", uid, deadline)
        try:
            version = str(json.loads(content)["version"])
            name = str(json.loads(listed)["data"][0]["id"])
        except (ValueError, LookupError, TypeError) as error:
            raise SamplerError(
                f"{self._urls[0]} does not answer like vLLM (/version, /v1/models: {error}); {START_HINT}"
            ) from error
        if (found := parse_version(version)) is not None and found < MIN_VERSION:
            raise SamplerError(
                f"{self._urls[0]} runs vLLM {version}: it ignores frame times, so clips would get other "
                f"positions than in training; use vLLM {version_words(MIN_VERSION)} or later"
            )
        return name


class _Net:
    """Connections, slots and the served model's name: what belongs to one event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop, vllm: VllmConfig, urls: Sequence[str]) -> None:
        self.loop = loop
        self._vllm = vllm
        self._slots = asyncio.Semaphore(vllm.concurrency)
        self._naming = asyncio.Lock()
        self._name = ""
        hosts = {urlsplit(url).hostname or "" for url in urls}
        key = os.environ.get(vllm.api_key_env)
        self.client = httpx2.AsyncClient(
            timeout=httpx2.Timeout(vllm.attempt_timeout_s, connect=min(10.0, vllm.attempt_timeout_s)),
            limits=httpx2.Limits(max_connections=vllm.concurrency),
            follow_redirects=False,
            trust_env=not hosts <= {"localhost", "127.0.0.1", "::1"},
            headers={"Authorization": f"Bearer {key}"} if key else {},
        )

    async def model_name(self, sampler: VllmServerSampler, uid: str, deadline: float) -> str:
        """The served model's name, asked for once."""
        async with self._naming:
            if not self._name:
                self._name = await sampler.identify(self, uid, deadline)
        return self._name

    async def attempt(self, method: str, url: str, body: bytes, deadline: float) -> bytes:
        """One request's whole body; whatever goes wrong is a `TeacherFault`."""
        limit_s = max(0.0, deadline - time.monotonic())
        try:
            async with asyncio.timeout(limit_s), self._slots, asyncio.timeout(self._vllm.attempt_timeout_s):
                return await self._send(method, url, body)
        except TimeoutError as error:
            raise TeacherFault(FailureKind.TIMEOUT, "no complete reply in time") from error
        except httpx2.TimeoutException as error:
            raise TeacherFault(FailureKind.TIMEOUT, f"the server fell silent ({_words(error)})") from error
        except httpx2.HTTPError as error:
            raise TeacherFault(FailureKind.CONNECTION, _words(error)) from error
        except httpx2.InvalidURL as error:
            raise TeacherFault(FailureKind.BAD_REQUEST, _words(error)) from error

    async def _send(self, method: str, url: str, body: bytes) -> bytes:
        headers = {"Content-Type": "application/json"}
        async with self.client.stream(method, url, content=body or None, headers=headers) as response:
            content = bytearray()
            async for chunk in response.aiter_bytes():
                content += chunk
                if len(content) > MAX_BODY_BYTES:
                    raise TeacherFault(FailureKind.TOO_LARGE, f"body is longer than {MAX_BODY_BYTES} bytes")
            if response.status_code != 200:
                said = bytes(content[:2000]).decode("utf-8", "replace")
                raise status_fault(response.status_code, response.headers, said)
            return bytes(content)


def stream_seed(parts: Sequence[int], view_id: str, source: str, stream: int) -> int:
    """Seed of one rollout: the name of its stream in `HFSampler`, so both back ends draw the same numbers."""
    words = "/".join(map(str, (*parts, view_id, source, stream)))
    return int.from_bytes(hashlib.sha256(words.encode()).digest()[:7], "big")


def parse_version(text: str) -> tuple[int, int] | None:
    """Major and minor number; None for a build from source, which may name any."""
    found = re.match(r"v?(\d+)\.(\d+)", text)
    return None if found is None or "dev" in text else (int(found[1]), int(found[2]))


def _remedy(fault: TeacherFault) -> str:
    if fault.kind is FailureKind.CONNECTION:
        return START_HINT
    if fault.kind is FailureKind.TIMEOUT:
        return "raise train.vllm.rollout_deadline_s or attempt_timeout_s, or lower train.vllm.concurrency"
    if fault.kind is FailureKind.AUTH:
        return "set the environment variable that train.vllm.api_key_env names"
    if "trust-request-mm-kwargs" in fault.detail:
        return "start the server with --trust-request-mm-kwargs: frame times come with each request"
    if fault.status == 404:
        return "train.vllm.base_urls must end in /v1"
    return "see the server's log"


def _words(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"[:200]
