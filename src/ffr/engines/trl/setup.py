"""From our configuration to TRL's: checks, arguments, the model, and the order of the questions."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn

from ffr.config import Config
from ffr.types import Trace

MICRO_STUDENT = "micro-student"
CHECKPOINTS = "checkpoints"
STUDENT = "student"


class EngineConfigError(ValueError):
    """Settings that cannot be trained together; the message names the keys and the remedy."""


class Sink(Protocol):
    """Where a run reports to: once per optimiser step, on the main process."""

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Numbers of one optimiser step."""
        ...

    def traces(self, step: int, traces: Sequence[Trace]) -> None:
        """Groups of one optimiser step, observations included."""
        ...

    def finish(self, summary: Mapping[str, float]) -> None:
        """The run is over."""
        ...


@dataclass(frozen=True)
class TrainResult:
    """What a run leaves behind.

    Example:
        >>> TrainResult(steps=3, metrics={}, output_dir=Path("o"), student_dir=Path("o/student")).steps
        3
    """

    steps: int
    """Optimiser steps done in all, those before a resume included."""
    metrics: Mapping[str, float]
    """Metrics of the last step."""
    output_dir: Path
    student_dir: Path
    """Hugging Face directory of the trained student, processor included."""
    resumed_from: Path | None = None
    skipped: tuple[str, ...] = ()
    """`uid: reason` of the samples whose media cannot be decoded."""


def check_config(cfg: Config) -> None:
    """Refuses what this engine cannot train.

    Raises:
        EngineConfigError: with the keys, their values and what to change.
    """
    rows = cfg.train.questions_per_step * cfg.find.group_size
    if cfg.train.algorithm == "sft":
        raise EngineConfigError(
            "train.algorithm = 'sft' has its own loop: ffr.engines.traces.sft_on_samples "
            "(`ffr train` takes it)"
        )
    if cfg.find.group_size < 2:
        raise EngineConfigError(f"find.group_size = {cfg.find.group_size}: a group needs at least 2 rollouts")
    if rows % cfg.rows_per_pass:
        raise EngineConfigError(
            f"train.micro_batch_size = {cfg.rows_per_pass} does not divide "
            f"train.questions_per_step * find.group_size = {rows}"
        )
    if cfg.train.save_every % cfg.train.updates_per_batch:
        raise EngineConfigError(
            f"train.save_every = {cfg.train.save_every} is not a multiple of train.updates_per_batch = "
            f"{cfg.train.updates_per_batch}: a checkpoint between the passes over one batch of rollouts "
            "could not be resumed exactly"
        )


def schedule(num_samples: int, cfg: Config, world_size: int) -> list[int]:
    """Sample index of every question of the run, in order: a function of the seed and the sizes.

    Epochs are independent permutations, laid end to end; the last batch is filled from the next one, so
    that no question is dropped. Consecutive runs of `questions_per_step` go to one process.
    """
    per_batch = cfg.train.questions_per_step * world_size
    num_batches = math.ceil(num_samples * cfg.train.num_epochs / per_batch)
    if cfg.train.max_steps is not None:
        num_batches = min(num_batches, math.ceil(cfg.train.max_steps / cfg.train.updates_per_batch))
    order: list[int] = []
    epoch = 0
    while len(order) < num_batches * per_batch:
        order += np.random.default_rng((cfg.train.seed, epoch)).permutation(num_samples).tolist()
        epoch += 1
    return order[: num_batches * per_batch]


def num_steps(num_questions: int, cfg: Config, world_size: int) -> int:
    """Optimiser steps for a schedule of this length."""
    steps = num_questions // (cfg.train.questions_per_step * world_size) * cfg.train.updates_per_batch
    return steps if cfg.train.max_steps is None else min(steps, cfg.train.max_steps)


def grpo_arguments(cfg: Config, total_steps: int) -> Any:
    """TRL's `GRPOConfig` for our configuration.

    Everything that TRL would otherwise decide is set: its defaults move between releases. Values that
    only its own loss reads are set to what ours does, so that a reader of `training_args.bin` is not
    misled.
    """
    from trl import GRPOConfig

    train, find = cfg.train, cfg.find
    accumulate = train.questions_per_step * find.group_size // cfg.rows_per_pass
    scheduler = train.schedule
    if scheduler == "constant" and train.warmup_ratio:
        scheduler = "constant_with_warmup"
    with warnings.catch_warnings():
        # The old name of activation checkpointing, which all supported releases know.
        warnings.filterwarnings("ignore", message=".*gradient_checkpointing.*", category=FutureWarning)
        return GRPOConfig(**_grpo_values(cfg, total_steps, accumulate, scheduler))


def _grpo_values(cfg: Config, total_steps: int, accumulate: int, scheduler: str) -> dict[str, Any]:
    train, find, reason = cfg.train, cfg.find, cfg.reason
    return {
        "output_dir": str(cfg.report.output_dir / CHECKPOINTS),
        "per_device_train_batch_size": cfg.rows_per_pass,
        "per_device_eval_batch_size": find.group_size,
        "gradient_accumulation_steps": accumulate,
        "steps_per_generation": accumulate,
        "num_iterations": train.updates_per_batch,
        "num_generations": find.group_size,
        "num_train_epochs": 1.0,
        "max_steps": total_steps,
        "learning_rate": train.learning_rate,
        "lr_scheduler_type": scheduler,
        "warmup_steps": round(train.warmup_ratio * total_steps),
        "weight_decay": train.weight_decay,
        "max_grad_norm": train.max_grad_norm,
        "seed": train.seed,
        "use_cpu": train.cpu,
        "bf16": cfg.model.dtype == "bfloat16",
        "gradient_checkpointing": cfg.model.gradient_checkpointing,
        "max_completion_length": find.max_completion_tokens,
        "temperature": find.temperature,
        "top_p": find.top_p,
        "beta": reason.kl_beta,
        "epsilon": reason.clip_eps,
        "loss_type": {"token_mean": "dapo", "seq_mean": "grpo", "dr_grpo": "dr_grpo"}[reason.loss_norm],
        "scale_rewards": "group" if reason.scale == "std" else "none",
        "use_bias_correction_kl": False,
        "importance_sampling_level": "token",
        "disable_dropout": not cfg.model.lora.dropout,
        "shuffle_dataset": False,
        "remove_unused_columns": False,
        "dataloader_num_workers": 0,
        "dataloader_pin_memory": not train.cpu,
        "save_strategy": "steps",
        "save_steps": train.save_every,
        "save_total_limit": None,  # whole checkpoints are counted by ours, after the new one is whole
        "logging_strategy": "steps",
        "logging_steps": 1,
        "report_to": list(train.report_to) or "none",
        "disable_tqdm": True,
        "log_completions": False,
        # Later than the watchdog, which knows who waits for whom.
        "ddp_timeout": int(max(1800.0, 10 * cfg.fix.teacher.step_deadline_s, 2 * (train.watchdog_s or 0.0))),
    }


def resolve_model_path(path: str) -> str:
    """Directory or hub id to load; `micro-student` is the student inside this package.

    Raises:
        EngineConfigError: the packaged student is not installed.
    """
    if path != MICRO_STUDENT:
        return path
    packaged = Path(str(resources.files("ffr"))) / "assets" / MICRO_STUDENT
    if not (packaged / "config.json").is_file():
        raise EngineConfigError(
            f"model.path = {MICRO_STUDENT!r}, but {packaged} holds no model; reinstall ffr"
        )
    return str(packaged)


def load_student(cfg: Config, *, sharded: bool) -> tuple[Any, Any]:
    """The policy and its processor.

    Weights that an optimiser updates directly are kept in float32 even for bfloat16 training (autocast
    computes in bfloat16): a step of 5e-6 is below bfloat16's resolution. ZeRO keeps its own float32 copy,
    and under LoRA the base is frozen, so both load the weights as `model.dtype` says.
    """
    from transformers import AutoModelForImageTextToText, AutoProcessor
    from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled

    path = resolve_model_path(cfg.model.path)
    dtype = getattr(torch, cfg.model.dtype) if sharded or cfg.model.lora.rank else torch.float32
    model = AutoModelForImageTextToText.from_pretrained(
        path, dtype=dtype, attn_implementation=cfg.model.attention
    )
    if is_deepspeed_zero3_enabled() and (renamed := getattr(model, "_weight_conversions", None)):
        # After a ZeRO-3 load transformers keeps the renamings that it did not need as well; undone on saving,
        # they would put prefixes before the names that other programs look for.
        model._weight_conversions = [renaming for renaming in renamed if renaming.was_used()]
    if cfg.model.freeze_vision:
        vision_tower(model, path).requires_grad_(False)
    processor = AutoProcessor.from_pretrained(path, padding_side="left", truncation_side="left")
    return model, processor


def vision_tower(model: nn.Module, path: str) -> nn.Module:
    """The module that turns pixels into features.

    Raises:
        EngineConfigError: the architecture keeps it elsewhere.
    """
    for name in ("visual", "vision_tower", "vision_model"):
        found = getattr(getattr(model, "model", model), name, None)
        if isinstance(found, nn.Module):
            return found
    raise EngineConfigError(f"model.freeze_vision: no vision tower found in {path}; set it to false")


def lora_config(cfg: Config) -> Any | None:
    """The adapters' settings for PEFT, or None to train all weights."""
    lora = cfg.model.lora
    if not lora.rank:
        return None
    from peft import LoraConfig

    targets = list(lora.target_modules)
    return LoraConfig(
        r=lora.rank,
        lora_alpha=lora.scaled_by,  # type: ignore[arg-type]
        lora_dropout=lora.dropout,
        target_modules="all-linear" if targets == ["all-linear"] else targets,
        exclude_modules=r".*\b(visual|vision_tower|vision_model)\b.*" if cfg.model.freeze_vision else None,
        task_type="CAUSAL_LM",
    )
