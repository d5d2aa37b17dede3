"""`ffr train`: any algorithm on any data, from one configuration."""

from __future__ import annotations

import logging
import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import App, Parameter
from rich.console import Console
from rich.logging import RichHandler

from ffr.cli.errors import CliError, ConfigError
from ffr.cli.help import settings_help
from ffr.cli.launcher import describe_launch
from ffr.cli.progress import RichProgress
from ffr.cli.settings import load_config, parse_overrides, to_json
from ffr.config import Config

if TYPE_CHECKING:
    from ffr.data import ReadResult
    from ffr.fix import Teacher
    from ffr.types import Sample

ConfigFiles = Annotated[
    list[Path] | None,
    Parameter(
        name=["--config", "-c"], consume_multiple=True, negative=(), help="TOML files; later ones win."
    ),
]
SettingWords = Annotated[str, Parameter(show=False, allow_leading_hyphen=True)]
FLAGS = ("--config", "--dry-run", "--resume", "--help")

app = App(
    name="train",
    help="Train a student with Find-Fix-Reason or a baseline.",
    help_prologue="ffr train [-c FILE ...] [--section.key VALUE ...] [--dry-run] [--resume]",
    help_epilogue=settings_help(
        examples=(
            "ffr train -c configs/ffr_qwen2_5vl_7b.toml --dry-run",
            "ffr train -c configs/ffr_qwen2_5vl_7b.toml --fix.teacher.base-url URL",
            "ffr train -c configs/grpo_qwen2_5vl_7b.toml --train.report-to wandb",
            "accelerate launch --config_file configs/accelerate/fsdp2.yaml -m ffr train -c FILE",
            "ffr train -c configs/ffr_qwen2_5vl_7b.toml --model.lora.rank 64",
            "accelerate launch --config_file configs/accelerate/ddp.yaml -m ffr train -c FILE --resume",
        )
    ),
    help_format="plaintext",
    usage="",
)


@app.default
def train(
    *settings: SettingWords,
    config: ConfigFiles = None,
    dry_run: Annotated[bool, Parameter(negative=())] = False,
    resume: Annotated[bool, Parameter(negative=())] = False,
) -> int:
    """Train a student with Find-Fix-Reason or a baseline.

    Args:
        settings: Single settings, which win over the files.
        config: TOML files; later ones win.
        dry_run: Print the resolved configuration as JSON, on standard error how the launcher spreads the
            weights, and stop.
        resume: Go on from the last checkpoint in report.output_dir.
    """
    cfg = load_config(config_files(config), parse_overrides(settings, flags=FLAGS))
    launch = describe_launch()
    if dry_run:
        if is_main_process():
            print(to_json(cfg))
            print(f"launched as: {launch}", file=sys.stderr)
        return 0
    if not resume and is_main_process():
        refuse_to_overwrite(cfg.report.output_dir)
    run_training(cfg, resume=resume)
    return 0


def config_files(config: list[Path] | None) -> list[Path]:
    """The files of `--config`; raises ConfigError for the flag without a file."""
    if config == []:
        raise ConfigError(["--config: value missing; it takes one or more TOML files"])
    return config or []


def run_training(cfg: Config, *, resume: bool = False, console: Console | None = None) -> Any:
    """Data, teacher, engine and sinks for one run; what `ffr train` and `ffr demo` both call.

    Args:
        cfg: The resolved configuration.
        resume: Go on from the last checkpoint.
        console: Where to write; standard output when None.

    Returns:
        The engine's TrainResult.

    Raises:
        CliError: No data, no teacher, a teacher that never succeeded, settings that do not go together,
            or a checkpoint that cannot be used.
    """
    console = console or Console(quiet=not is_main_process())
    log_to(console)
    samples = load_samples(cfg, console)
    teacher = build_teacher(cfg)
    from ffr.engines.trl import EngineConfigError  # torch, transformers, trl
    from ffr.engines.trl import train as train_engine
    from ffr.engines.trl.checkpoint import CheckpointError
    from ffr.engines.trl.ranks import PeerError
    from ffr.fix import NoTeacherError
    from ffr.report import RunWriter

    progress = RichProgress(
        planned_steps(cfg, len(samples), world_size()), display=cfg.report.display, console=console
    )
    sinks: list[Any] = [progress]
    if is_main_process():
        sinks.insert(0, RunWriter(cfg.report.output_dir, cfg.model_dump(mode="json")))
    try:
        if cfg.train.algorithm == "sft":
            return _supervised(cfg, samples, sinks, resume=resume)
        return train_engine(cfg, samples, teacher=teacher, sinks=sinks, resume=resume)
    except (NoTeacherError, EngineConfigError, CheckpointError, PeerError) as error:
        raise CliError(str(error)) from error
    finally:
        progress.close()


def _supervised(cfg: Config, samples: Sequence[Sample], sinks: Sequence[Any], *, resume: bool) -> Any:
    from ffr.engines.traces import sft_on_samples

    if resume:
        raise CliError("train.algorithm = 'sft' writes no checkpoints on the way: run it without --resume")
    return sft_on_samples(cfg, samples, sinks=sinks)


def log_to(console: Console) -> None:
    """Sends warnings of the rooms through the console, so that they do not tear the progress bar."""
    handler = RichHandler(console=console, show_time=False, show_path=False)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[handler])


def refuse_to_overwrite(output_dir: Path) -> None:
    """Raises CliError if the directory holds a run: its numbers would be mixed with the new ones."""
    found = [name for name in ("metrics.jsonl", "traces", "checkpoints") if (output_dir / name).exists()]
    if found:
        raise CliError(
            f"{output_dir} holds a run already ({', '.join(found)}): go on with --resume, choose another "
            "--report.output-dir, or remove it"
        )


def load_samples(cfg: Config, console: Console) -> Sequence[Sample]:
    """The samples of `cfg.data`, with a loud count of what was skipped.

    Raises:
        CliError: A malformed row, or nothing to train on.
    """
    from ffr.data import DataError, load_data

    if not cfg.data.sources:
        raise CliError(
            "data.sources is empty: name the question files in a TOML file,\n"
            '  [[data.sources]]\n  path = "questions.json"\n  root = "videos"'
        )
    missing = [str(source.path) for source in cfg.data.sources if not source.path.is_file()]
    if missing:
        raise CliError(f"data.sources: no such file: {', '.join(missing)} (relative to {Path.cwd()})")
    try:
        result = load_data(cfg.data)
    except DataError as error:
        raise CliError(str(error)) from error
    print_skipped(result, console)
    if not result.samples:
        raise CliError("data.sources: no row can be used, all of them were skipped (see above)")
    return result.samples


def print_skipped(result: ReadResult, console: Console, *, shown: int = 5) -> None:
    """How many rows there are, and how many were left out for which reason, with the first few of them."""
    skipped = result.skipped
    total = len(result.samples) + len(skipped)
    console.print(f"data: {len(result.samples)} of {total} rows can be used", highlight=False)
    if not skipped:
        return
    counts = ", ".join(f"{number} {status}" for status, number in sorted(result.counts.items()))
    console.print(f"WARNING: {len(skipped)} rows were skipped: {counts}", style="bold yellow", markup=False)
    for row in skipped[:shown]:
        place = f"{row.file}: row {row.row}" if row.row else str(row.file)
        line = f"  {place}: {row.field}: {row.reason}"
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    if len(skipped) > shown:
        console.print(f"  ... and {len(skipped) - shown} more", highlight=False)


def build_teacher(cfg: Config) -> Teacher | None:
    """The teacher, or None for an algorithm that never asks one.

    Raises:
        CliError: The algorithm repairs, there is no teacher, and `fix.allow_no_teacher` is off.
    """
    from ffr.fix import make_teacher

    if cfg.train.algorithm not in {"ffr", "ffr_released"}:
        return None
    teacher = make_teacher(cfg.fix, cfg.observe)
    if teacher is None and not cfg.fix.allow_no_teacher:
        raise CliError(
            f"train.algorithm = {cfg.train.algorithm!r} repairs rollouts but fix.teacher.type is "
            f"{cfg.fix.teacher.type!r}: this would be plain GRPO. Name a teacher, use "
            "--train.algorithm grpo, or insist with --fix.allow-no-teacher"
        )
    return teacher


def planned_steps(cfg: Config, num_samples: int, num_processes: int = 1) -> int:
    """Optimiser steps of the whole run: what the progress bar counts to.

    Example:
        >>> planned_steps(Config(), 4000, 8)
        500
    """
    per_step = cfg.train.questions_per_step * num_processes
    batches = math.ceil(num_samples * cfg.train.num_epochs / per_step)
    steps = batches * cfg.train.updates_per_batch
    return min(steps, cfg.train.max_steps) if cfg.train.max_steps else steps


def world_size() -> int:
    """Number of training processes, as the launcher says."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main_process() -> bool:
    """True in the process that writes and prints."""
    return os.environ.get("RANK", "0") == "0"
