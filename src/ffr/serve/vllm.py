"""`vllm serve` as a child process: its command line, its start, its end."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import secrets
import shutil
import signal
import socket
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import httpx2

from ffr.serve.media import MAX_CLIPS, MediaRules

log = logging.getLogger(__name__)

START_S: Final = 1800.0
"""How long a large model may take to load."""
STOP_S: Final = 20.0
_POLL_S: Final = 0.5


class VllmError(RuntimeError):
    """vLLM can't be started, or ended; the message says what to look at."""


def find_vllm() -> str | None:
    """Path of the `vllm` command: beside this Python, or on the search path."""
    beside = Path(sys.executable).with_name("vllm")
    return str(beside) if beside.is_file() else shutil.which("vllm")


@dataclass(frozen=True, slots=True)
class VllmPlan:
    """What is served, and on which port.

    Example:
        >>> VllmPlan("vllm", Path("student"), "m", 8001, MediaRules()).command()[:3]
        ('vllm', 'serve', 'student')
    """

    executable: str
    checkpoint: Path
    name: str
    port: int
    media: MediaRules
    extra: tuple[str, ...] = ()
    """Further words for `vllm serve`; they win over ours."""

    def command(self) -> tuple[str, ...]:
        """The command line; loopback only, with the decoding that the student was trained with."""
        cfg = self.media.observe
        pixels = {"max_pixels": cfg.max_frame_px, "min_pixels": cfg.min_frame_px}
        limits = {"image": self.media.max_images, "video": MAX_CLIPS}
        root = ("--allowed-local-media-path", str(self.media.root.resolve())) if self.media.root else ()
        return (
            self.executable,
            "serve",
            str(self.checkpoint),
            "--host",
            "127.0.0.1",
            "--port",
            str(self.port),
            "--served-model-name",
            self.name,
            "--limit-mm-per-prompt",
            _json(limits),
            "--media-io-kwargs",
            _json({"video": {"num_frames": cfg.num_frames}}),
            "--mm-processor-kwargs",
            _json(pixels),
            # A checkpoint's generation_config may hold a repetition penalty, which training has not.
            "--generation-config",
            "vllm",
            "--override-generation-config",
            _json({"temperature": 0.0}),
            *root,
            *self.extra,
        )


class VllmChild:
    """The running child; `start` it, `wait_ready`, and `aclose` it in the end.

    Args:
        plan: What it serves.

    Example:
        >>> child = VllmChild(plan)  # doctest: +SKIP
        >>> await child.start()  # doctest: +SKIP
    """

    def __init__(self, plan: VllmPlan) -> None:
        self.plan = plan
        self.key = secrets.token_hex(24)
        """Only the proxy knows it: other users of the machine are kept out."""
        self._process: asyncio.subprocess.Process | None = None

    @property
    def base_url(self) -> str:
        """Where it will answer."""
        return f"http://127.0.0.1:{self.plan.port}/v1"

    async def start(self) -> None:
        """Starts the process; its output goes where ours goes.

        Raises:
            VllmError: It can't be started.
        """
        try:
            self._process = await asyncio.create_subprocess_exec(
                *self.plan.command(),
                stdin=asyncio.subprocess.DEVNULL,
                env={**os.environ, "VLLM_API_KEY": self.key},
                start_new_session=True,  # Ctrl-C is for us: running requests may end first
            )
        except OSError as error:
            raise VllmError(f"{self.plan.executable}: {error.strerror or error}") from error

    async def wait_ready(self, limit_s: float = START_S) -> None:
        """Returns once `/health` answers.

        Raises:
            VllmError: The process ended, or the time is over.
        """
        end = time.monotonic() + limit_s
        async with httpx2.AsyncClient(timeout=5.0, trust_env=False) as client:
            while not await self._healthy(client):
                if self._process is not None and self._process.returncode is not None:
                    raise VllmError(f"vllm ended with {self._process.returncode}; its messages are above")
                if time.monotonic() > end:
                    raise VllmError(f"vllm did not answer within {limit_s:.0f} s; its messages are above")
                await asyncio.sleep(_POLL_S)

    async def wait(self) -> int:
        """The exit status, when it ends."""
        assert self._process is not None  # started before it is waited for
        return await self._process.wait()

    async def aclose(self) -> None:
        """Ends the process and its workers."""
        process = self._process
        if process is None:
            return
        for number, limit_s in ((signal.SIGTERM, STOP_S), (signal.SIGKILL, STOP_S)):
            self._signal(process.pid, number)
            try:
                await asyncio.wait_for(process.wait(), limit_s)
                break
            except TimeoutError:
                log.warning("vllm did not end on signal %d", number)

    def _signal(self, pid: int, number: int) -> None:
        try:
            os.killpg(pid, number)
        except ProcessLookupError:
            log.debug("vllm is gone already")

    async def _healthy(self, client: httpx2.AsyncClient) -> bool:
        try:
            reply = await client.get(self.base_url.removesuffix("/v1") + "/health")
        except httpx2.HTTPError as error:
            log.debug("vllm is not up yet: %s", type(error).__name__)
            return False
        return reply.status_code == 200


def free_port() -> int:
    """A port of the loopback address that nobody uses now."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def _json(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))
