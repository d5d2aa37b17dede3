"""The flags of `ffr eval` in groups, and the settings that they make."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

from cyclopts import Group, Parameter

from ffr.cli.errors import ConfigError

if TYPE_CHECKING:
    from ffr.eval.models.openai import ServerSettings
    from ffr.eval.settings import EvalConfig

Switch = Annotated[bool, Parameter(negative=(), show_default=False)]


@Parameter(name="*", group=Group("What is asked", sort_key=1))
@dataclass(frozen=True, kw_only=True)
class AskFlags:
    """Which questions, how often, and where the answers go.

    Example:
        >>> AskFlags(model="micro-student", benchmarks="microworld").seeds
        '42'
    """

    model: str
    """Checkpoint or run directory, hub id, micro-student, a server's address, or a name behind --base-url."""
    benchmarks: str
    """Names with commas, such as mvbench,tempcompass; all are listed below."""
    root: Path = Path("data")
    """Directory with one folder per benchmark, or of the one benchmark that is asked."""
    frames: Annotated[str, Parameter(show_default=False)] = ""
    """Numbers of frames with commas; as in training where that is known, else 16."""
    seeds: str = "42"
    """Seeds with commas; with --temperature 0 they change nothing and one is run."""
    tasks: Annotated[str, Parameter(show_default=False)] = ""
    """Tasks with commas (or mvbench:action_count, or all); those of published tables when not given."""
    limit: int | None = None
    """Questions per benchmark, taken from its tasks in turn."""
    output_dir: Path | None = None
    """Of the run; outputs/eval/NAME when not given."""
    resume: Switch = False
    """Go on with the run in the output directory; questions without an answer are asked again."""
    name: Annotated[str, Parameter(show_default=False)] = ""
    """Of the model, in tables."""
    display: Literal["rich", "plain", "none"] = "rich"
    """A bar, a line now and then, or nothing."""


@Parameter(name="*", group=Group("How it is shown and answered", sort_key=2))
@dataclass(frozen=True, kw_only=True)
class ShowFlags:
    """Frames, prompt, decoding.

    Example:
        >>> ShowFlags().temperature
        0.0
    """

    prompt: Literal["video_r1", "brief", "official"] | None = None
    """Prompt template, or the benchmark's own words; as in training where that is known."""
    frame_rule: Literal["uniform", "official"] = "uniform"
    """Evenly spread frames, or those that the benchmark's authors take."""
    max_px: int | None = None
    """Upper limit of a frame's area; as in training where that is known, else 100352."""
    min_px: int | None = None
    """Lower limit of a frame's area; as in training where that is known, else 12544."""
    no_state_frames: Switch = False
    """Leave the frames' numbers and times out of the prompt."""
    temperature: float = 0.0
    """0 is greedy."""
    top_p: float = 1.0
    """Nucleus."""
    max_tokens: int | None = None
    """Of one answer; as in training where that is known, else 1024."""
    cache_dir: Path | None = None
    """Frame cache, shared with training."""
    workers: int = 2
    """Threads that decode clips ahead."""
    isolate: Switch = False
    """Decode each clip in a process that can be killed, for files nobody vouches for."""


@Parameter(name="*", group=Group("A checkpoint", sort_key=3))
@dataclass(frozen=True, kw_only=True)
class LocalFlags:
    """How a checkpoint is loaded.

    Example:
        >>> LocalFlags().dtype
        'auto'
    """

    batch_size: int | None = None
    """Questions of one call; 8 when not given, 32 for the micro student."""
    dtype: Literal["auto", "bfloat16", "float32"] = "auto"
    """Of the weights; auto is bfloat16 on an accelerator, float32 on a CPU."""
    attention: Literal["sdpa", "flash_attention_2", "eager"] = "sdpa"
    """Implementation of attention."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1."""


@Parameter(name="*", group=Group("A server", sort_key=4))
@dataclass(frozen=True, kw_only=True)
class ServerFlags:
    """How a server is asked.

    Example:
        >>> ServerFlags().media
        'auto'
    """

    base_url: Annotated[str, Parameter(show_default=False)] = ""
    """Its address, e.g. http://127.0.0.1:8000/v1."""
    api_key_env: str = "OPENAI_API_KEY"
    """Environment variable with its key."""
    media: Literal["auto", "video", "frames"] = "auto"
    """Send a clip as one video or as pictures; auto tries video first."""
    image_format: Literal["png", "jpeg"] = "png"
    """Of pictures."""
    concurrency: int = 16
    """Requests at once."""
    retries: int = 4
    """Of a request that fails."""
    timeout: float = 600.0
    """Of one request, seconds."""
    extra_body: Annotated[str, Parameter(show_default=False)] = ""
    """Further fields of a request, as JSON."""


def numbers(flag: str, text: str) -> tuple[int, ...]:
    """Whole numbers with commas.

    Raises:
        ConfigError: If a word is none.

    Example:
        >>> numbers("--frames", "16,32")
        (16, 32)
    """
    try:
        return tuple(int(word) for word in words(text))
    except ValueError:
        raise ConfigError([f"{flag}: is {text!r}, must be whole numbers with commas, as in 16,32"]) from None


def words(text: str) -> tuple[str, ...]:
    """Words with commas; none in an empty text.

    Example:
        >>> words("mvbench, tempcompass")
        ('mvbench', 'tempcompass')
    """
    return tuple(word.strip() for word in text.split(",") if word.strip())


def eval_config(
    ask: AskFlags,
    show: ShowFlags,
    trained: Mapping[str, Any],
    *,
    size_factor_px: int | None,
    batch_size: int,
    concurrency: int,
) -> EvalConfig:
    """The settings of a run: flags first, then what the student was trained with, then our defaults.

    Raises:
        ConfigError: If a value is not allowed; the message names the flag.
    """
    from pydantic import ValidationError

    from ffr.eval.settings import EvalConfig

    seen: Mapping[str, Any] = trained.get("observe") or {}
    find: Mapping[str, Any] = trained.get("find") or {}
    frames = numbers("--frames", ask.frames) if ask.frames else (seen.get("num_frames") or 16,)
    values: dict[str, Any] = {
        "benchmarks": words(ask.benchmarks),
        "root": ask.root,
        "tasks": words(ask.tasks),
        "limit": ask.limit,
        "frames": frames,
        "seeds": numbers("--seeds", ask.seeds),
        "frame_rule": show.frame_rule,
        "prompt": show.prompt or seen.get("prompt"),
        "state_frames": False if show.no_state_frames else seen.get("state_frames"),
        "max_frame_px": show.max_px or seen.get("max_frame_px"),
        "min_frame_px": show.min_px or seen.get("min_frame_px"),
        "max_image_px": seen.get("max_image_px"),
        "size_factor_px": size_factor_px or seen.get("size_factor_px"),
        "temperature": show.temperature,
        "top_p": show.top_p,
        "max_tokens": show.max_tokens or find.get("max_completion_tokens"),
        "batch_size": batch_size,
        "concurrency": concurrency,
        "workers": show.workers,
        "isolate": show.isolate,
        "cache_dir": show.cache_dir,
    }
    try:
        return EvalConfig.model_validate({key: value for key, value in values.items() if value is not None})
    except ValidationError as error:
        raise ConfigError(_problem(one) for one in error.errors(include_url=False)) from None


def server_settings(ask: AskFlags, server: ServerFlags) -> ServerSettings | None:
    """How the model is reached; None for a checkpoint.

    Raises:
        ConfigError: If --extra-body is no JSON object.
    """
    from ffr.eval.models.openai import ServerSettings

    is_url = ask.model.startswith(("http://", "https://"))
    if not is_url and not server.base_url:
        return None
    if is_url and server.base_url:
        raise ConfigError(
            ["--model: is an address, and so is --base-url; give the model's name with --model"]
        )
    return ServerSettings(
        base_url=ask.model if is_url else server.base_url,
        model="" if is_url else ask.model,
        api_key_env=server.api_key_env,
        media=server.media,
        image_format=server.image_format,
        timeout_s=server.timeout,
        retries=server.retries,
        concurrency=server.concurrency,
        extra_body=_object(server.extra_body),
    )


def _object(text: str) -> dict[str, Any]:
    if not text:
        return {}
    try:
        value: Any = json.loads(text)
    except ValueError as error:
        raise ConfigError([f"--extra-body: is no JSON ({error})"]) from None
    if not isinstance(value, dict):
        raise ConfigError(["--extra-body: must be a JSON object"])
    return cast("dict[str, Any]", value)


_FLAGS = {"max_frame_px": "--max-px", "min_frame_px": "--min-px"}


def _problem(error: Mapping[str, Any]) -> str:
    place = error["loc"]
    message = str(error["msg"]).removeprefix("Value error, ")
    if not place:
        return message
    key = str(place[0])
    return f"{_FLAGS.get(key, '--' + key.replace('_', '-'))}: {message}, got {error['input']!r}"
