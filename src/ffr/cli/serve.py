"""`ffr serve`: a checkpoint behind the OpenAI API, for harnesses and for `ffr eval`."""

from __future__ import annotations

import asyncio
import logging
import os
import shlex
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import App, Group, Parameter
from cyclopts.validators import Number
from rich.console import Console

from ffr.cli.errors import EXIT_OK, CliError, ConfigError
from ffr.cli.eval_flags import Switch
from ffr.cli.serve_teacher import read_token
from ffr.cli.train import log_to

if TYPE_CHECKING:
    from ffr.eval.models.checkpoint import Checkpoint
    from ffr.serve.media import MediaReader, MediaRules
    from ffr.serve.openai_proxy import Backend, ProxyService
    from ffr.serve.vllm import VllmChild

PositiveFlag = Annotated[int, Parameter(validator=Number(gte=1))]
MiB = 2**20


@Parameter(name="*", group=Group("What is served", sort_key=1))
@dataclass(frozen=True, kw_only=True)
class ModelFlags:
    """The model: a checkpoint, or another server.

    Example:
        >>> ModelFlags(model="micro-student").engine
        'auto'
    """

    model: Annotated[str, Parameter(show_default=False)] = ""
    """Checkpoint or run directory, hub id, or micro-student."""
    upstream: Annotated[str, Parameter(show_default=False)] = ""
    """Instead: address of a server that is there already, e.g. http://127.0.0.1:8000/v1."""
    upstream_model: Annotated[str, Parameter(show_default=False)] = ""
    """Its name for the model; the only one it lists when not given."""
    api_key_env: str = "OPENAI_API_KEY"
    """Environment variable with the key of that server."""
    name: Annotated[str, Parameter(show_default=False)] = ""
    """Name under which the model is served; that of its directory when not given."""
    engine: Literal["auto", "vllm", "transformers"] = "auto"
    """auto takes vLLM where it is installed."""
    vllm_args: Annotated[str, Parameter(show_default=False, allow_leading_hyphen=True)] = ""
    """Further words for `vllm serve`, e.g. "--tensor-parallel-size 2"."""


@Parameter(name="*", group=Group("Who may ask, and how much", sort_key=2))
@dataclass(frozen=True, kw_only=True)
class DoorFlags:
    """Address and limits.

    Example:
        >>> DoorFlags().host
        '127.0.0.1'
    """

    host: str = "127.0.0.1"
    """Address to listen on; another than loopback needs --token-env."""
    port: Annotated[int, Parameter(validator=Number(gte=0, lte=65535))] = 8000
    """0 takes a free one."""
    token_env: str | None = None
    """Environment variable with the bearer token that clients must send."""
    max_requests: PositiveFlag = 128
    """At a time; more are answered 503."""
    max_body_mb: PositiveFlag = 256
    """Of one request."""
    deadline: Annotated[float, Parameter(validator=Number(gt=0))] = 1800.0
    """Seconds for one request, its wait included."""


@Parameter(name="*", group=Group("What requests may show", sort_key=3))
@dataclass(frozen=True, kw_only=True)
class MediaFlags:
    """Pictures and clips.

    Example:
        >>> MediaFlags().images_as_video
        False
    """

    media_root: Path | None = None
    """file:// is taken for files under it; without it no file is opened."""
    images_as_video: Switch = False
    """Several pictures of one turn are the frames of one clip, in order."""
    images_fps: Annotated[float, Parameter(validator=Number(gt=0))] = 1.0
    """Frames per second of such a clip; a request's mm_processor_kwargs.fps wins."""
    frames: int | None = None
    """Of a clip whose request names no number; as in training where that is known, else 16."""
    max_px: int | None = None
    """Upper limit of a frame's area; as in training where that is known, else 100352."""
    min_px: int | None = None
    """Lower limit of a frame's area; as in training where that is known, else 12544."""
    max_images: PositiveFlag = 256
    """Of one request."""
    max_frames: PositiveFlag = 256
    """Of one clip."""
    isolate: Switch = False
    """Decode each clip in a process that can be killed; always so on another address than loopback."""
    cache_dir: Path | None = None
    """Frame cache, shared with training."""
    inline_files: Switch = False
    """With --upstream: send files as data, to a server that does not see them."""


@Parameter(name="*", group=Group("How it answers", sort_key=4))
@dataclass(frozen=True, kw_only=True)
class AnswerFlags:
    """The alias NAME:answer, and a checkpoint in this process.

    Example:
        >>> AnswerFlags().batch_size
        1
    """

    prompt: Literal["video_r1", "brief", "none"] | None = None
    """Instruction that NAME:answer appends; as in training where that is known, else video_r1."""
    answer_tokens: int | None = None
    """At least so many tokens for NAME:answer; as in training where that is known, else 1024."""
    max_tokens: PositiveFlag = 8192
    """transformers: what a request may ask for at most; larger numbers are lowered to it."""
    batch_size: PositiveFlag = 1
    """transformers: requests answered in one call; above 1 a reply may depend on its neighbours."""
    max_prompt_tokens: PositiveFlag = 32_768
    """transformers: longer prompts are refused."""
    dtype: Literal["auto", "bfloat16", "float32"] = "auto"
    """transformers: of the weights; auto is bfloat16 on an accelerator, float32 on a CPU."""
    attention: Literal["sdpa", "flash_attention_2", "eager"] = "sdpa"
    """transformers: implementation of attention."""
    device: str = "auto"
    """transformers: auto, cpu, cuda, cuda:1."""


MODEL, DOOR, MEDIA, ANSWER = ModelFlags(), DoorFlags(), MediaFlags(), AnswerFlags()

app = App(
    name="serve",
    help="Put a checkpoint, or another server, behind the OpenAI API with a harness's needs in mind.",
    help_epilogue="\n".join(
        (
            "Examples:",
            "  ffr serve --model outputs/ffr --media-root data",
            "  ffr serve --model outputs/ffr --engine vllm --media-root data",
            "  ffr serve --upstream http://127.0.0.1:8001/v1 --name ffr-7b --port 8000",
            "",
            "Two models are listed. NAME speaks as it was trained. NAME:answer gets the",
            "think/answer instruction and room to think, whatever the client asks for, and",
            "returns the bare answer as `content` and the thoughts as `reasoning_content`:",
            "",
            "  python -m lmms_eval --model openai --tasks mvbench --model_args \\",
            "    model=NAME:answer,base_url=http://127.0.0.1:8000/v1,api_key=EMPTY,\\",
            "    max_frames_num=16,timeout=600,num_concurrent=32,pass_video_url=True",
            "  run.py --model NAME:answer --base-url http://127.0.0.1:8000/v1 --key EMPTY \\",
            "    --data MVBench_MP4_16f --video-llm --local-media       (VLMEvalKit)",
            "",
            "lmms-eval without pass_video_url sends loose pictures: --images-as-video puts",
            "them together. Ctrl-C stops: running requests may end first.",
        )
    ),
    help_format="plaintext",
)


@app.default
def serve(
    *,
    model: ModelFlags = MODEL,
    door: DoorFlags = DOOR,
    media: MediaFlags = MEDIA,
    answer: AnswerFlags = ANSWER,
) -> int:
    """Put a checkpoint, or another server, behind the OpenAI API with a harness's needs in mind."""
    if bool(model.model) == bool(model.upstream):
        raise ConfigError(["give either --model DIR or --upstream URL"])
    from ffr.eval.base import EvalDataError
    from ffr.serve import ServeConfig, is_loopback

    console = Console(highlight=False, soft_wrap=True)
    log_to(console)
    logging.getLogger("ffr.serve").setLevel(logging.INFO)
    if media.media_root is not None and not media.media_root.is_dir():
        raise CliError(f"--media-root {media.media_root}: no such directory")
    cfg = ServeConfig(
        door.host,
        door.port,
        read_token(door.token_env),
        max_body_bytes=door.max_body_mb * MiB,
        max_held_bytes=4 * door.max_body_mb * MiB,
        max_requests=door.max_requests,
        read_timeout_s=60.0,
        request_deadline_s=door.deadline,
    )
    try:
        job = _Job(model, media, answer, isolate=media.isolate or not is_loopback(door.host))
        asyncio.run(job.run(cfg, console))
    except (EvalDataError, ValueError, RuntimeError) as error:
        raise CliError(str(error)) from error
    except OSError as error:
        raise CliError(f"cannot listen on {door.host} port {door.port}: {error.strerror or error}") from error
    return EXIT_OK


class _Job:
    """From the flags to a running server."""

    def __init__(self, model: ModelFlags, media: MediaFlags, answer: AnswerFlags, *, isolate: bool) -> None:
        from ffr.eval.models.checkpoint import default_name, find_checkpoint

        self.model, self.media, self.answer = model, media, answer
        self.found = find_checkpoint(model.model) if model.model else None
        self.rules = _rules(media, self.found, isolate=isolate)
        self.name = model.name or (default_name(self.found.path) if self.found else "")
        self.child: VllmChild | None = None

    async def run(self, cfg: Any, console: Console) -> None:
        """Starts the model, serves until a signal, stops the model."""
        from ffr.serve import Server

        Server.check(cfg)  # before minutes are spent on a model
        service = None
        try:
            backend, what = await self._backend(console)
            service = self._service(backend)
            await _serve(Server(cfg, service), self.child, console, what)
        finally:
            if self.child is not None:
                await self.child.aclose()
        console.print(f"completions: {dict(sorted(service.counters.items()))}", markup=False)

    def _service(self, backend: Backend) -> ProxyService:
        from ffr.serve.openai_proxy import ProxyConfig, ProxyService

        trained = dict(self.found.trained) if self.found else {}
        tokens = self.answer.answer_tokens or trained.get("find", {}).get("max_completion_tokens") or 1024
        style = self.answer.prompt or trained.get("observe", {}).get("prompt") or "video_r1"
        proxy = ProxyConfig(self.name, style, tokens, self.media.media_root)
        return ProxyService(proxy, backend)

    async def _backend(self, console: Console) -> tuple[Backend, str]:
        from ffr.serve.media import MediaReader
        from ffr.serve.upstream import UpstreamBackend

        reader = MediaReader(self.rules)
        if self.found is None:
            key = os.environ.get(self.model.api_key_env, "")
            upstream = UpstreamBackend(
                self.model.upstream,
                model=self.model.upstream_model,
                key=key,
                media=reader,
                inline=self.media.inline_files,
            )
            behind = await upstream.settle()
            self.name = self.name or behind
            return upstream, f"{behind} at {self.model.upstream}"
        if (command := _vllm(self.model.engine)) is None:
            return await self._local(self.found, reader), f"{self.found.path} (transformers)"
        self.child = await self._start(command, self.found, console)
        behind = UpstreamBackend(self.child.base_url, model=self.name, key=self.child.key, media=reader)
        return behind, f"{self.found.path} (vllm)"

    async def _start(self, command: str, found: Checkpoint, console: Console) -> VllmChild:
        from ffr.serve.vllm import VllmChild, VllmPlan, free_port

        extra = tuple(shlex.split(self.model.vllm_args))
        child = VllmChild(VllmPlan(command, found.path, self.name, free_port(), self.rules, extra))
        console.print("$ " + shlex.join(child.plan.command()), markup=False)
        await child.start()
        try:
            await child.wait_ready()
        except BaseException:
            await child.aclose()
            raise
        return child

    async def _local(self, found: Checkpoint, reader: MediaReader) -> Backend:
        try:
            from ffr.engines.chat import ChatEncoder
            from ffr.eval.models.hf import HFAnswerer
        except ImportError as error:
            raise CliError(
                f"a checkpoint needs torch and transformers ({error}): pip install 'find-fix-reason[train]', "
                "or install vllm, or give --upstream of a server"
            ) from None
        from ffr.serve.local import LocalBackend, LocalConfig

        flags = self.answer
        answerer = HFAnswerer(
            found,
            name=self.name,
            dtype=flags.dtype,
            attention=flags.attention,
            device=flags.device,
            encoder=partial(ChatEncoder, max_prompt_tokens=flags.max_prompt_tokens),
        )
        default = min(1024, flags.max_tokens)
        limits = LocalConfig(self.name, default, flags.max_tokens, flags.batch_size)
        backend = LocalBackend(answerer, reader, limits)
        await backend.warm_up()
        return backend


def _vllm(engine: str) -> str | None:
    """The vLLM command that is to be used; None for transformers."""
    from ffr.serve.vllm import find_vllm

    if engine == "transformers":
        return None
    command = find_vllm()
    if command is None and engine == "vllm":
        raise CliError("--engine vllm: there is no `vllm` command; pip install 'find-fix-reason[vllm]'")
    return command


def _rules(media: MediaFlags, found: Checkpoint | None, *, isolate: bool) -> MediaRules:
    """What requests may show: flags first, then what the student was trained with, then our defaults."""
    from ffr.config import ObserveConfig
    from ffr.serve.media import MediaRules

    trained: dict[str, Any] = dict(found.trained.get("observe") or {}) if found else {}
    flags = {
        "num_frames": media.frames,
        "max_frame_px": media.max_px,
        "min_frame_px": media.min_px,
        "size_factor_px": found.size_factor_px if found else None,
        "cache_dir": media.cache_dir,
    }
    kept = {name: value for name, value in trained.items() if name in ObserveConfig.model_fields}
    values = {**kept, **{name: value for name, value in flags.items() if value is not None}}
    return MediaRules(
        root=media.media_root,
        observe=ObserveConfig.model_validate({**values, "cache_dir": media.cache_dir}),
        max_images=media.max_images,
        max_frames=media.max_frames,
        images_as_video=media.images_as_video,
        images_fps=media.images_fps,
        isolate=isolate,
    )


async def _serve(server: Any, child: VllmChild | None, console: Console, what: str) -> None:
    """Serves until a signal; raises CliError if the child ends before."""
    ready = asyncio.Event()
    serving = asyncio.create_task(server.run(ready))
    waiting = asyncio.create_task(ready.wait())
    await asyncio.wait({serving, waiting}, return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
    if ready.is_set():
        names = f"{server.model}, {server.model}:answer"
        console.print(f"listening on {server.host} port {server.port}: {names}, {what}", markup=False)
    if child is not None:
        ended = asyncio.create_task(child.wait())
        await asyncio.wait({serving, ended}, return_when=asyncio.FIRST_COMPLETED)
        lost = not serving.done()
        (serving if lost else ended).cancel()
        if lost:
            await asyncio.gather(serving, return_exceptions=True)
            raise CliError("vllm ended; its messages are above")
    await serving
    console.print(f"stopped; responses: {dict(sorted(server.counters.items()))}", markup=False)
