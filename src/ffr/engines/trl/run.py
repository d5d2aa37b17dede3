"""The engine's door: configuration and samples in, a trained student out."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from ffr.algorithms import Algorithm, make_algorithm
from ffr.config import Config
from ffr.engines.clock import Clock, TimedSampler
from ffr.engines.encode import Encoder
from ffr.engines.prefix import ROUND_BYTES
from ffr.engines.trl import checkpoint as checkpoints
from ffr.engines.trl import ranks, setup, shards
from ffr.engines.trl.export import export_student
from ffr.engines.trl.flow import GroupFlow
from ffr.engines.trl.rollouts import make_sampler
from ffr.engines.trl.setup import EngineConfigError, Sink, TrainResult
from ffr.engines.trl.watch import Watch
from ffr.engines.vllm_server import VllmServerSampler
from ffr.fix import NoTeacherError, RepairFlow, Teacher
from ffr.fix.cache import Journal
from ffr.fix.overlap import OverlapFlow
from ffr.observe import check_clips
from ffr.types import Sample

log = logging.getLogger(__name__)
CHECK_LIMIT = 2000
"""Up to so many samples, every clip is decoded once before training; beyond, at its first use."""


def train(
    cfg: Config,
    samples: Sequence[Sample],
    *,
    teacher: Teacher | None,
    sinks: Sequence[Sink] = (),
    resume: bool | str = False,
) -> TrainResult:
    """Trains the student of `cfg` on `samples`.

    Args:
        cfg: the run; its seed, the samples and the teacher's journal determine the result.
        samples: what is trained on, in any order.
        teacher: who repairs; None for algorithms that do not, or with `fix.allow_no_teacher`.
        sinks: told about each optimiser step, on the main process.
        resume: True for the newest whole checkpoint of `report.output_dir` (a fresh start if there is
            none), or the path of one.

    Returns:
        `TrainResult`; the student is an ordinary Hugging Face directory.

    Raises:
        EngineConfigError: settings that do not go together.
        CheckpointError: the named checkpoint is not whole, or there are checkpoints and no `resume`.
        NoTeacherError: repairs were asked for and there is no working teacher.
    """
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return _train(cfg, samples, teacher, sinks, resume)
    # Inside a notebook's event loop: blocking it would deadlock whoever waits on it.
    with ThreadPoolExecutor(max_workers=1) as pool:
        return pool.submit(_train, cfg, samples, teacher, sinks, resume).result()


def _train(
    cfg: Config, samples: Sequence[Sample], teacher: Teacher | None, sinks: Sequence[Sink], resume: bool | str
) -> TrainResult:
    from transformers.utils import logging as hf_logging

    hf_logging.disable_progress_bar()
    setup.check_config(cfg)
    algorithm = make_algorithm(cfg)
    _check_teacher(cfg, algorithm, teacher)
    # First of all: it starts the process group, and ZeRO-3 must know of it before a model is loaded.
    world_size = setup.grpo_arguments(cfg, 1).world_size
    start = ranks.from_main(lambda: _start_from(cfg, resume))
    samples, skipped = _decodable(cfg, samples, world_size)
    order = setup.schedule(len(samples), cfg, world_size)
    args = setup.grpo_arguments(cfg, setup.num_steps(len(order), cfg, world_size))
    with _watch(cfg, args) as watch:
        trainer = _build(cfg, samples, order, args, algorithm, teacher, sinks, watch)
        if start is not None:
            ranks.main_does(trainer.accelerator, lambda: _check_start(start, trainer.position))
        trainer.train(resume_from_checkpoint=None if start is None else str(start))
        watch.enter("export")
        student = cfg.report.output_dir / setup.STUDENT
        export_student(trainer, student)
        watch.enter("done")
    result = TrainResult(
        steps=trainer.state.global_step,
        metrics=trainer.last_metrics,
        output_dir=cfg.report.output_dir,
        student_dir=student,
        resumed_from=start,
        skipped=skipped,
    )
    if trainer.accelerator.is_main_process:
        for sink in sinks:
            sink.finish({"steps": float(result.steps), **result.metrics})
    return result


def _build(
    cfg: Config,
    samples: Sequence[Sample],
    order: Sequence[int],
    args: Any,
    algorithm: Algorithm,
    teacher: Teacher | None,
    sinks: Sequence[Sink],
    watch: Watch | None = None,
) -> Any:
    from datasets import Dataset
    from transformers import PrinterCallback

    from ffr.engines.trl.trainer import FFRTrainer

    # Under `accelerate launch` the plugin alone says so.
    deepspeed = args.deepspeed is not None or args.deepspeed_plugin is not None
    sharded = deepspeed or shards.fsdp_is_wanted()
    model, processor = setup.load_student(cfg, sharded=sharded)
    encoder = Encoder(processor, max_prompt_tokens=cfg.find.max_prompt_tokens)
    sampler, weights = make_sampler(cfg, model, encoder, prefix_bytes=ROUND_BYTES if teacher else 0)
    overlap = isinstance(sampler, VllmServerSampler) and cfg.train.vllm.overlap
    clock = Clock()
    timed, repairs, journal = TimedSampler(sampler, clock), None, None
    if algorithm.repairs and teacher is not None:
        journal = Journal(cfg.report.output_dir / "teacher.sqlite")
        kind = OverlapFlow if overlap else RepairFlow
        repairs = kind(teacher=teacher, sampler=timed, fix=cfg.fix, find=cfg.find, journal=journal)
    flow = GroupFlow(
        samples,
        cfg,
        sampler=timed,
        algorithm=algorithm,
        repairs=repairs,
        watch=watch,
        clock=clock,
        overlap=overlap,
    )
    uids = [samples[index].uid for index in order]
    rows = Dataset.from_dict({"prompt": ["ffr"] * len(order), "index": list(order)})
    with warnings.catch_warnings():
        # TRL checks model_init_kwargs and reward columns that this trainer does not use.
        warnings.simplefilter("ignore", category=UserWarning)
        trainer = FFRTrainer(
            cfg=cfg,
            sampler=sampler,
            flow=flow,
            sinks=sinks,
            watch=watch,
            weights=weights,
            position=partial(_position, cfg, uids, args.world_size, journal),
            model=model,
            args=args,
            train_dataset=rows,
            processing_class=processor,
            peft_config=setup.lora_config(cfg),
        )
    trainer.remove_callback(PrinterCallback)  # the sinks show the run
    sampler.model = trainer.model
    return trainer


def _check_teacher(cfg: Config, algorithm: Algorithm, teacher: Teacher | None) -> None:
    if not algorithm.repairs or teacher is not None:
        return
    if not cfg.fix.allow_no_teacher:
        raise NoTeacherError(
            f"train.algorithm = {cfg.train.algorithm!r} repairs failed rollouts and there is no teacher; set "
            "fix.teacher, choose train.algorithm = 'grpo', or allow it with fix.allow_no_teacher = true"
        )
    log.warning("no teacher: train.algorithm = %r trains as plain GRPO", cfg.train.algorithm)


def _start_from(cfg: Config, resume: bool | str) -> Path | None:
    if isinstance(resume, str):
        return checkpoints.named_checkpoint(Path(resume))
    root = cfg.report.output_dir / setup.CHECKPOINTS
    if resume:
        found = checkpoints.find_checkpoint(root)
        for path, reason in found.refused:
            log.warning("checkpoint %s is not used: %s", path, reason)
        if found.path is None:
            log.warning("nothing to resume under %s: training starts from the beginning", root)
        return found.path
    if present := checkpoints.list_checkpoints(root):
        raise checkpoints.CheckpointError(
            f"{root} already holds {', '.join(p.name for p in present)}; go on with --resume, or choose "
            "another report.output_dir"
        )
    return None


def _decodable(
    cfg: Config, samples: Sequence[Sample], world_size: int
) -> tuple[Sequence[Sample], tuple[str, ...]]:
    if not samples:
        raise EngineConfigError("there is no sample to train on; check data.sources")
    if len(samples) > CHECK_LIMIT:
        return samples, ()
    from accelerate import PartialState
    from accelerate.utils import gather_object

    share = samples[PartialState().process_index :: world_size]
    local = [(clip.uid, clip.status, clip.detail) for clip in check_clips(share, cfg.observe)[1]]
    bad = sorted(gather_object(local) if world_size > 1 else local)
    if not bad:
        return samples, ()
    uids = {uid for uid, _, _ in bad}
    lines = tuple(f"{uid}: {status}: {detail}" for uid, status, detail in bad)
    log.warning("%d of %d samples are left out, their media cannot be decoded:", len(bad), len(samples))
    for line in lines:
        log.warning("  %s", line)
    good = [sample for sample in samples if sample.uid not in uids]
    if not good:
        raise EngineConfigError(f"no sample's media can be decoded, the first: {lines[0]}")
    return good, lines


def _watch(cfg: Config, args: Any) -> Watch:
    return Watch(
        cfg.report.output_dir / "ranks",
        rank=args.process_index,
        num_ranks=args.world_size,
        timeout_s=cfg.train.watchdog_s,
        abort=cfg.train.watchdog_abort,
    )


def _position(
    cfg: Config, uids: Sequence[str], world_size: int, journal: Journal | None, step: int
) -> checkpoints.Position:
    """Where the run stands after `step` optimiser steps."""
    shown = uids[: step // cfg.train.updates_per_batch * cfg.train.questions_per_step * world_size]
    return checkpoints.Position(
        step=step,
        num_processes=world_size,
        num_questions=len(shown),
        questions=hashlib.sha256("\n".join(shown).encode()).hexdigest(),
        teacher_outcomes=0 if journal is None else len(journal),
    )


def _check_start(start: Path, position: Callable[[int], checkpoints.Position]) -> None:
    if warning := checkpoints.check_position(start, position(checkpoints.step_of(start))):
        log.warning("%s", warning)
