"""`ffr doctor train`: whether a run would start, fit and find its teacher, before it is launched."""

from __future__ import annotations

import asyncio
import importlib
import json
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import App, Parameter
from cyclopts.validators import Number
from rich.console import Console

from ffr.cli.doctor import FOR_TRAINING, Check, check_data, check_gpu, check_versions, print_checks
from ffr.cli.doctor_memory import check_memory, gpu_memory_gib
from ffr.cli.doctor_teacher import reachable
from ffr.cli.errors import EXIT_FAILED, EXIT_OK, ConfigError
from ffr.cli.settings import load_config, parse_overrides
from ffr.cli.train import ConfigFiles, SettingWords, config_files
from ffr.config import Config
from ffr.engines.memory import trainable, weight_bytes
from ffr.engines.memory_advice import Plan
from ffr.engines.shapes import ShapeError, find_shape, packaged

if TYPE_CHECKING:
    from ffr.types import Observation

GB = 1e9
FLAGS = ("--config", "--strategy", "--world-size", "--gpu-memory-gib", "--json", "--help")
Strategy = Literal["ddp", "fsdp2", "zero3"]

app = App(
    name="train",
    help="Check a run before it starts: memory, disk, teacher, data, output.",
    help_prologue="ffr doctor train [-c FILE ...] [--section.key VALUE ...]",
    help_epilogue=(
        "Examples:\n"
        "  ffr doctor train -c configs/ffr_qwen2_5vl_7b.toml --world-size 8 --strategy zero3\n"
        "  ffr doctor train -c configs/ffr_qwen2_5vl_7b.toml --model.lora.rank 64 --gpu-memory-gib 80\n\n"
        "The memory is an estimate from the student's config.json and the settings, not a measurement.\n"
        "Exit code 1 if something failed."
    ),
    help_format="plaintext",
    usage="",
)


@dataclass(frozen=True, slots=True)
class Row:
    """The first row of the data as the student would see it.

    Example:
        >>> Row(checks=(), prompt_tokens=1374, patches=4096).patches
        4096
    """

    checks: tuple[Check, ...]
    prompt_tokens: int | None = None
    """None where it could not be encoded."""
    patches: int | None = None


@app.default
def train(
    *settings: SettingWords,
    config: ConfigFiles = None,
    strategy: Strategy = "ddp",
    world_size: Annotated[int, Parameter(validator=Number(gte=1))] = 1,
    gpu_memory_gib: Annotated[float | None, Parameter(validator=Number(gt=0))] = None,
    json_out: Annotated[Path | None, Parameter(name="--json")] = None,
) -> int:
    """Check a run before it starts: memory, disk, teacher, data, output. Exit code 1: something failed.

    Args:
        settings: Single settings, which win over the files.
        config: TOML files; later ones win.
        strategy: How the processes share weights and optimiser (configs/accelerate/).
        world_size: Number of processes, one GPU each.
        gpu_memory_gib: Memory of a GPU; that of this machine's when not given.
        json_out: Also write everything as JSON.
    """
    console = Console(highlight=False)
    memory: dict[str, Any] = {}
    checks = [*check_versions(), check_gpu()]
    try:
        cfg = load_config(config_files(config), parse_overrides(settings, flags=FLAGS))
    except ConfigError as error:
        checks += [Check("configuration", "fail", problem) for problem in error.problems]
    else:
        checks = [
            *_needed(checks, cfg),
            Check("configuration", "ok", f"{cfg.train.algorithm} on {cfg.model.path}"),
        ]
        checks += _sources(cfg, console)
        row = first_row(cfg)
        checks += row.checks
        plan = Plan(cfg, strategy, world_size, row.prompt_tokens, row.patches)
        found, memory = check_memory(plan, gpu_memory_gib or _gpu(cfg), console)
        checks += [*found, check_disk(plan), *check_teacher(cfg), *check_output(cfg)]
    print_checks(checks, console)
    failed = any(check.state == "fail" for check in checks)
    if json_out is not None:
        content = {
            "ok": not failed,
            "checks": [{"name": c.name, "state": c.state, "detail": c.detail} for c in checks],
            "memory": memory,
        }
        json_out.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return EXIT_FAILED if failed else EXIT_OK


def _needed(checks: list[Check], cfg: Config) -> Iterator[Check]:
    """What `ffr doctor` merely misses, a training run cannot do without."""
    for check in checks:
        needed = check.name in FOR_TRAINING and (check.name != "peft" or cfg.model.lora.rank)
        missing = check.state == "warn" and needed
        yield Check(check.name, "fail", check.detail) if missing else check


def _gpu(cfg: Config) -> float | None:
    return None if cfg.train.cpu else gpu_memory_gib()


def _sources(cfg: Config, console: Console) -> Iterator[Check]:
    for check in check_data(cfg, console):
        yield Check(check.name, "fail", check.detail) if check.detail == "data.sources is empty" else check


def first_row(cfg: Config) -> Row:
    """Decodes the first row of the mixture and encodes it for the student."""
    from ffr.data import DataError, load_data
    from ffr.observe import MediaError, observe

    if not cfg.data.sources or any(not source.path.is_file() for source in cfg.data.sources):
        return Row(())
    try:
        samples = load_data(cfg.data).samples
        if not samples:
            return Row(())
        started = time.perf_counter()
        obs = observe(samples[0], cfg.observe)
    except (DataError, MediaError) as error:
        return Row((Check("first row", "fail", str(error)),))
    took = time.perf_counter() - started
    size = f"{obs.frames[0].width_px}x{obs.frames[0].height_px} px" if obs.frames else "no frames"
    words = f"{samples[0].uid}: {len(obs.frames)} frames of {size} in {took:.2f} s"
    decoded = Check("first row", "ok", words)
    encoded = _encode(cfg, obs)
    return Row((decoded, *encoded.checks), encoded.prompt_tokens, encoded.patches)


def _encode(cfg: Config, obs: Observation) -> Row:
    try:
        encode = importlib.import_module("ffr.engines.encode")
        transformers = importlib.import_module("transformers")
    except ImportError as error:
        return Row((Check("encoded", "warn", f"not tried: {error}"),))
    try:
        auto = transformers.AutoProcessor
        processor = auto.from_pretrained(packaged(cfg.model.path), local_files_only=True)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        return Row((Check("encoded", "warn", f"no processor of {cfg.model.path} on this machine: {reason}"),))
    try:
        encoder = encode.Encoder(processor, max_prompt_tokens=cfg.find.max_prompt_tokens)
        prompt = encoder.encode(obs)
    except encode.EncodeError as error:
        return Row((Check("encoded", "fail", str(error)),))
    visual = sum(medium.num_features for medium in prompt.media)
    patches = visual * processor.image_processor.merge_size**2
    words = (
        f"{prompt.num_tokens} prompt tokens, {visual} of them visual "
        f"(find.max_prompt_tokens = {cfg.find.max_prompt_tokens})"
    )
    return Row((Check("encoded", "ok", words),), prompt.num_tokens, patches)


def check_disk(plan: Plan) -> Check:
    """Checkpoints and the exported student against the free space of `report.output_dir`."""
    cfg = plan.cfg
    try:
        shape, _ = find_shape(cfg.model.path)
    except ShapeError as error:
        return Check("disk", "warn", f"not estimated: {error}")
    stored, compute = weight_bytes(cfg, plan.strategy, plan.world_size)
    learned, whole = trainable(cfg, shape), shape.num_parameters * stored
    weights = 4 * learned if cfg.model.lora.rank else whole
    states = 12 if plan.strategy == "zero3" and plan.world_size > 1 and compute < 4 else 8
    one = weights + states * learned
    # The oldest one goes after the new one is whole.
    num = cfg.train.keep_checkpoints + 1 if cfg.train.algorithm != "sft" else 0
    needed = num * one + whole
    free = shutil.disk_usage(_existing(cfg.report.output_dir)).free
    words = (
        f"{num} checkpoints of {one / GB:.1f} GB and the student {whole / GB:.1f} GB, {free / GB:.1f} GB free"
    )
    if needed <= free:
        return Check("disk", "ok", words)
    fits = int((free - whole) // one) - 1 if one else 0
    remedy = (
        f"train.keep_checkpoints = {fits} fits, or"
        if fits >= 1
        else f"free at least {(needed - free) / GB:.0f} GB, or"
    )
    return Check("disk", "fail", f"{words}; {remedy} point report.output_dir at a larger disk")


def check_teacher(cfg: Config) -> list[Check]:
    """Whether there is a teacher for an algorithm that repairs, and whether it answers."""
    teacher = cfg.fix.teacher
    if cfg.train.algorithm not in ("ffr", "ffr_released"):
        return [Check("teacher", "ok", f"none needed by train.algorithm = {cfg.train.algorithm!r}")]
    if teacher.type == "oracle":
        return [Check("teacher", "ok", "the oracle, in this process")]
    state = "warn" if cfg.fix.allow_no_teacher else "fail"
    if teacher.type == "none":
        return [Check("teacher", state, "fix.teacher.type = 'none': this would be plain GRPO")]
    if not teacher.base_url:
        remedy = "set fix.teacher.base_url to an OpenAI-compatible server, with /v1"
        return [Check("teacher", state, f"fix.teacher.base_url is empty: {remedy}")]
    found = asyncio.run(reachable(teacher))
    return [Check(f"teacher: {c.name}", state if c.state == "fail" else c.state, c.detail) for c in found]


def check_output(cfg: Config) -> Iterator[Check]:
    """Whether the output directory can be written, and what a start or `--resume` would find there."""
    folder = cfg.report.output_dir
    try:
        with tempfile.NamedTemporaryFile(dir=_existing(folder), prefix=".ffr-doctor-"):
            pass
        yield Check("output", "ok", f"{folder} can be written")
    except OSError as error:
        yield Check("output", "fail", f"report.output_dir = {folder}: {error}; choose another one")
    held = [name for name in ("metrics.jsonl", "traces", "checkpoints") if (folder / name).exists()]
    if not held:
        yield Check("resume", "ok", "a fresh run")
        return
    checkpoints: Any = importlib.import_module("ffr.engines.trl.checkpoint")
    find: Callable[[Path], Any] = checkpoints.find_checkpoint
    found = find(folder / "checkpoints")
    for path, reason in found.refused:
        yield Check("resume", "warn", f"{path.name} would not be used: {reason}")
    words = f"{folder} holds a run ({', '.join(held)})"
    if found.path is None:
        remedy = "choose another report.output_dir, or remove it"
        yield Check("resume", "warn", f"{words} without a whole checkpoint: {remedy}")
    else:
        yield Check("resume", "ok", f"{words}; `ffr train --resume` goes on from {found.path.name}")


def _existing(folder: Path) -> Path:
    """The folder, or its nearest parent that exists."""
    return next(path for path in (folder.absolute(), *folder.absolute().parents) if path.is_dir())
