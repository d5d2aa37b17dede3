"""The trained student as an ordinary Hugging Face directory."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from ffr.engines.trl import ranks


def export_student(trainer: Any, student: Path) -> None:
    """Writes weights, configuration, processor and chat template; adapters are merged into the weights.

    The weights are written in `model.dtype`, also where the optimiser kept them in float32. All ranks must
    call it; the main process writes.

    Args:
        trainer: after training.
        student: the directory.
    """
    is_main = trainer.accelerator.is_main_process
    if trainer.whole is None:
        scope: Any = nullcontext(trainer.accelerator.unwrap_model(trainer.model))
    else:
        scope = trainer.whole.filled(trainer.model, device="cpu", keep=is_main)
    with scope as model:
        ranks.main_does(trainer.accelerator, lambda: _write(trainer, model, student))


def _write(trainer: Any, model: Any, student: Path) -> None:
    merged = model.merge_and_unload() if hasattr(model, "merge_and_unload") else model
    for parameter in merged.parameters():
        # The weights alone: rotary frequencies stay in float32, as in a model that is loaded.
        parameter.data = parameter.data.to(getattr(torch, trainer.cfg.model.dtype))
    merged.save_pretrained(student)
    save_processor(trainer.processing_class, student)


def save_processor(processor: Any, student: Path) -> None:
    """Writes the processor whole and in parts.

    transformers 5 reads one `processor_config.json`; servers and evaluation kits also look for the
    `preprocessor_config.json` and `video_preprocessor_config.json` of earlier releases.
    """
    processor.save_pretrained(student)
    for part in ("image_processor", "video_processor"):
        if (found := getattr(processor, part, None)) is not None:
            found.save_pretrained(student)
