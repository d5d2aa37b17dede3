"""The engine's door: configuration and samples in, a trained student out."""

from __future__ import annotations

import asyncio
import logging
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from ffr.algorithms import Algorithm, make_algorithm
from ffr.config import Config
from ffr.engines.encode import Encoder
from ffr.engines.hf import HFSampler
from ffr.engines.prefix import ROUND_BYTES
from ffr.engines.trl import checkpoint as checkpoints
from ffr.engines.trl import setup
from ffr.engines.trl.flow import GroupFlow
from ffr.engines.trl.setup import EngineConfigError, Sink, TrainResult
from ffr.fix import NoTeacherError, RepairFlow, Teacher
from ffr.fix.cache import Journal
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
    start = _start_from(cfg, resume)
    # First of all: it starts the process group, and ZeRO-3 must know of it before a model is loaded.
    world_size = setup.grpo_arguments(cfg, 1).world_size
    samples, skipped = _decodable(cfg, samples, world_size)
    order = setup.schedule(len(samples), cfg, world_size)
    args = setup.grpo_arguments(cfg, setup.num_steps(len(order), cfg, world_size))
    trainer = _build(cfg, samples, order, args, algorithm, teacher, sinks)
    trainer.train(resume_from_checkpoint=None if start is None else str(start))
    student = cfg.report.output_dir / setup.STUDENT
    _export(trainer, student)
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
) -> Any:
    from datasets import Dataset
    from transformers import PrinterCallback

    from ffr.engines.trl.trainer import FFRTrainer

    model, processor = setup.load_student(cfg, sharded=args.deepspeed is not None)
    encoder = Encoder(processor, max_prompt_tokens=cfg.find.max_prompt_tokens)
    room = ROUND_BYTES if algorithm.repairs and teacher is not None else 0
    sampler = HFSampler(model, encoder, find=cfg.find, seed=cfg.train.seed, prefix_bytes=room)
    repairs = None
    if algorithm.repairs and teacher is not None:
        journal = Journal(cfg.report.output_dir / "teacher.sqlite")
        repairs = RepairFlow(teacher=teacher, sampler=sampler, fix=cfg.fix, find=cfg.find, journal=journal)
    flow = GroupFlow(samples, cfg, sampler=sampler, algorithm=algorithm, repairs=repairs)
    rows = Dataset.from_dict({"prompt": ["ffr"] * len(order), "index": list(order)})
    with warnings.catch_warnings():
        # TRL checks model_init_kwargs and reward columns that this trainer does not use.
        warnings.simplefilter("ignore", category=UserWarning)
        trainer = FFRTrainer(
            cfg=cfg,
            sampler=sampler,
            flow=flow,
            sinks=sinks,
            model=model,
            args=args,
            train_dataset=rows,
            processing_class=processor,
            peft_config=setup.lora_config(cfg),
        )
    trainer.remove_callback(PrinterCallback)  # the sinks show the run
    if trainer.is_fsdp_enabled:
        raise EngineConfigError("FSDP is not supported by this engine; use DDP or DeepSpeed ZeRO-2/3")
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


def _export(trainer: Any, student: Path) -> None:
    """Writes the student as an ordinary directory; adapters are merged into it."""
    unwrapped = trainer.accelerator.unwrap_model(trainer.model)
    adapters = hasattr(unwrapped, "merge_and_unload")
    if trainer.is_deepspeed_enabled:
        trainer.save_model(str(student))
        if adapters:
            log.warning("%s holds the adapter alone: merge it into the base model to serve it", student)
    elif trainer.accelerator.is_main_process:
        whole = unwrapped.merge_and_unload() if adapters else unwrapped
        whole.save_pretrained(student)
    if trainer.accelerator.is_main_process:
        trainer.processing_class.save_pretrained(student)
    trainer.accelerator.wait_for_everyone()
