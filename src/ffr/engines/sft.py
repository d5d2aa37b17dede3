"""Supervised fine-tuning of an ordinary Hugging Face student on written completions."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from ffr.algorithms import nll_loss
from ffr.config import Config
from ffr.engines.batch import Batcher
from ffr.engines.encode import Encoder
from ffr.engines.hf import stop_ids
from ffr.engines.packed import completion_logprobs
from ffr.engines.trl.export import save_processor
from ffr.engines.trl.setup import STUDENT, EngineConfigError, Sink, TrainResult, load_student, lora_config
from ffr.types import Observation

Pair = tuple[Observation, str]


def sft(
    cfg: Config,
    pairs: Iterable[Pair],
    *,
    total_steps: int | None = None,
    model: Any = None,
    processor: Any = None,
    sinks: Sequence[Sink] = (),
) -> TrainResult:
    """Trains on completions with the mean token loss of each step's batch.

    One optimiser step takes `train.questions_per_step` pairs of each process, in forward passes of
    `train.micro_batch_size`. A completion is closed with the student's end token.

    Args:
        cfg: model, learning rate, schedule, limits and output directory are read.
        pairs: observations (patched ones too) with their completion; may be a stream.
        total_steps: length of the run; needed for a stream without length, and where
            `train.max_steps` is not set.
        model: an already loaded student; loaded from `cfg.model` when None.
        processor: its processor.
        sinks: told about each optimiser step on the main process.

    Returns:
        `TrainResult`; the student is written as a Hugging Face directory.

    Raises:
        EngineConfigError: the length of the run is not known, the pairs ran out at the start, or the
            launcher asks for sharded weights.
        EncodeError: a pair cannot be shown to the student.
    """
    from accelerate import Accelerator

    steps = _length(cfg, pairs, total_steps)
    _check_launch()
    precision = "bf16" if cfg.model.dtype == "bfloat16" else "no"
    accelerator = Accelerator(cpu=cfg.train.cpu, mixed_precision=precision)
    torch.manual_seed(cfg.train.seed)
    if model is None:
        model, processor = _student(cfg)
    encoder = Encoder(processor, max_prompt_tokens=cfg.find.max_prompt_tokens)
    batcher = Batcher(model, encoder.pad_id)
    end = _end_token(model, encoder)
    weights = [p for p in model.parameters() if p.requires_grad]
    optimizer, schedule = _optimizer(cfg, weights, steps)
    model, optimizer = accelerator.prepare(model, optimizer)
    model.train()
    step, metrics = 0, dict[str, float]()
    for batch in islice(_batches(cfg, pairs, accelerator), steps):
        loss = _update(cfg, batch, model, batcher, encoder, end, accelerator)
        norm = accelerator.clip_grad_norm_(weights, cfg.train.max_grad_norm)
        step += 1
        metrics = {"train/loss": loss, "train/grad_norm": float(norm), **_advance(optimizer, schedule)}
        if accelerator.is_main_process:
            for sink in sinks:
                sink.metrics(step, metrics)
    if not step:
        raise EngineConfigError(f"sft needs at least {cfg.train.questions_per_step} pairs for one step")
    return _finish(cfg, accelerator, model, processor, sinks, step, metrics)


def _end_token(model: Any, encoder: Encoder) -> int:
    end = encoder.tokenizer.eos_token_id
    if end not in stop_ids(model, encoder):
        raise EngineConfigError("the tokenizer names no end token")
    return end


def _check_launch() -> None:
    for name in ("ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED"):
        if os.environ.get(name, "").lower() in ("1", "true"):
            raise EngineConfigError(
                "train.algorithm = 'sft' keeps whole weights in each process: launch it with "
                "configs/accelerate/ddp.yaml (and --model.lora.rank for large students)"
            )


def _student(cfg: Config) -> tuple[Any, Any]:
    """The student of the configuration, with adapters if it asks for them, and its processor."""
    model, processor = load_student(cfg, sharded=False)
    if (lora := lora_config(cfg)) is not None:
        from peft import get_peft_model

        model = get_peft_model(model, lora)
    return model, processor


def _optimizer(cfg: Config, weights: list[Any], steps: int) -> tuple[torch.optim.Optimizer, Any]:
    """AdamW over `weights` and its learning-rate schedule over `steps`."""
    from transformers import get_scheduler

    optimizer = torch.optim.AdamW(weights, lr=cfg.train.learning_rate, weight_decay=cfg.train.weight_decay)
    warmup = round(cfg.train.warmup_ratio * steps)
    return optimizer, get_scheduler(cfg.train.schedule, optimizer, warmup, num_training_steps=steps)


def _advance(optimizer: torch.optim.Optimizer, schedule: Any) -> dict[str, float]:
    """One optimiser step; the learning rate that it was taken with."""
    rate = schedule.get_last_lr()[0]
    optimizer.step()
    schedule.step()
    optimizer.zero_grad()
    return {"train/learning_rate": rate}


def _update(
    cfg: Config,
    batch: Sequence[Pair],
    model: Any,
    batcher: Batcher,
    encoder: Encoder,
    end: int,
    accelerator: Any,
) -> float:
    """Gradients of one step's batch; returns its mean token loss over all processes."""
    prompts = [encoder.encode(obs) for obs, _ in batch]
    completions = [completion_ids(encoder, text, end) for _, text in batch]
    local = torch.tensor(float(sum(map(len, completions))), device=accelerator.device)
    normalizer = accelerator.reduce(local, reduction="sum") / accelerator.num_processes
    size, total = cfg.rows_per_pass, torch.zeros((), device=accelerator.device)
    for start in range(0, len(batch), size):
        part = slice(start, start + size)
        with accelerator.autocast():
            logprobs, mask = completion_logprobs(
                model, batcher, prompts[part], completions[part], shared=cfg.model.shared_prefix
            )
        loss = nll_loss(logprobs, mask, normalizer=normalizer)
        accelerator.backward(loss)
        total += loss.detach()
    return float(accelerator.reduce(total, reduction="mean"))


def completion_ids(encoder: Encoder, text: str, end: int) -> tuple[int, ...]:
    """Tokens of a completion, closed with the end token."""
    return (*encoder.tokenizer(text, add_special_tokens=False)["input_ids"], end)


def _batches(cfg: Config, pairs: Iterable[Pair], accelerator: Any) -> Iterator[list[Pair]]:
    mine = islice(pairs, accelerator.process_index, None, accelerator.num_processes)
    while len(batch := list(islice(mine, cfg.train.questions_per_step))) == cfg.train.questions_per_step:
        yield batch


def _length(cfg: Config, pairs: Iterable[Pair], total_steps: int | None) -> int:
    if total_steps or cfg.train.max_steps:
        return total_steps or cfg.train.max_steps or 0
    if isinstance(pairs, Sequence):
        return max(1, math.floor(len(pairs) / cfg.train.questions_per_step))
    raise EngineConfigError("sft on a stream needs its length: set train.max_steps or pass total_steps")


def _finish(
    cfg: Config,
    accelerator: Any,
    model: Any,
    processor: Any,
    sinks: Sequence[Sink],
    step: int,
    metrics: dict[str, float],
) -> TrainResult:
    student = cfg.report.output_dir / STUDENT
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        Path(student).mkdir(parents=True, exist_ok=True)
        whole = accelerator.unwrap_model(model)
        if hasattr(whole, "merge_and_unload"):
            whole = whole.merge_and_unload()
        whole.save_pretrained(student)
        save_processor(processor, student)
        for sink in sinks:
            sink.finish({"steps": float(step), **metrics})
    return TrainResult(steps=step, metrics=metrics, output_dir=cfg.report.output_dir, student_dir=student)
