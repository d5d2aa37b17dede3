"""The `sft` algorithm on a data set: rows that carry a written trace (Video-R1's CoT files).

Video-R1 and VideoRFT keep the thought of a row in `process` and its answer in `solution`; a row
without `process` teaches no completion and is left out, counted and named.
"""

from __future__ import annotations

import logging
import math
import random
from collections.abc import Iterator, Sequence

from ffr.config import Config
from ffr.engines.sft import Pair, sft
from ffr.engines.trl.setup import EngineConfigError, Sink, TrainResult
from ffr.observe import MediaError, observe
from ffr.types import Sample

log = logging.getLogger(__name__)


def trace_of(sample: Sample) -> str | None:
    """The completion that a row teaches, `process` then the answer in its tags; None without one."""
    process = sample.meta.get("process")
    if not isinstance(process, str) or not process.strip():
        return None
    return f"{process.strip()}\n<answer>{sample.answer}</answer>"


def sft_on_samples(cfg: Config, samples: Sequence[Sample], *, sinks: Sequence[Sink] = ()) -> TrainResult:
    """Supervised training on the traces of a data set; what `ffr train` runs for `algorithm = "sft"`.

    Args:
        cfg: The run; `train.num_epochs` and `train.max_steps` give its length.
        samples: Rows with and without traces.
        sinks: Told about each optimiser step on the main process.

    Returns:
        `TrainResult`; `skipped` names the rows without a trace and clips that cannot be decoded.

    Raises:
        EngineConfigError: No row has a trace, or too few for one step.
    """
    from accelerate import PartialState

    taught = [sample for sample in samples if trace_of(sample) is not None]
    skipped = [f"{s.uid}: no `process` field" for s in samples if trace_of(s) is None]
    if not taught:
        raise EngineConfigError(
            f"train.algorithm = 'sft' needs rows with a `process` field; none of {len(samples)} has one"
        )
    if skipped:
        log.warning("%d of %d rows teach nothing, the first: %s", len(skipped), len(samples), skipped[0])
    per_step = cfg.train.questions_per_step * PartialState().num_processes
    steps = math.ceil(len(taught) * cfg.train.num_epochs / per_step)
    steps = min(steps, cfg.train.max_steps) if cfg.train.max_steps else steps
    result = sft(cfg, _pairs(cfg, taught, skipped), total_steps=steps, sinks=sinks)
    if result.steps < steps:
        log.warning("%d of %d steps: too few clips could be decoded", result.steps, steps)
    return TrainResult(
        steps=result.steps,
        metrics=result.metrics,
        output_dir=result.output_dir,
        student_dir=result.student_dir,
        skipped=tuple(skipped),
    )


def _pairs(cfg: Config, samples: Sequence[Sample], skipped: list[str]) -> Iterator[Pair]:
    """Endless epochs in a seeded order; a clip that cannot be decoded is named once and left out."""
    order = random.Random(cfg.train.seed)
    lost: set[str] = set()
    while len(lost) < len(samples):
        for sample in order.sample(samples, len(samples)):
            if sample.uid in lost:
                continue
            try:
                obs = observe(sample, cfg.observe)
            except MediaError as error:
                lost.add(sample.uid)
                skipped.append(f"{sample.uid}: {error}")
                log.warning("sample %s is left out of training: %s", sample.uid, error)
                continue
            yield obs, trace_of(sample) or ""
