"""`train.report_to`: the run's own metrics reach the trackers that people already use."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny

from ffr.engines.trl import flow as flow_module
from ffr.engines.trl import train


def test_tensorboard_gets_our_metrics(checkpoint: Path, tmp_path: Path, monkeypatch) -> None:
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    monkeypatch.setattr(flow_module, "verify", tiny.coin)
    settings = {"algorithm": "grpo", "max_steps": 2, "micro_batch_size": 4, "report_to": ("tensorboard",)}
    cfg = tiny.config(checkpoint, tmp_path / "run", train=settings)
    sink = tiny.Notes()
    train(cfg, tiny.samples(tmp_path, 2), teacher=None, sinks=[sink])
    events = sorted((tmp_path / "run").rglob("events.out.tfevents.*"))
    assert len(events) == 1
    board = event_accumulator.EventAccumulator(str(events[0].parent)).Reload()
    shown = {
        tag: [event.value for event in board.Scalars(tag)]
        for tag in board.Tags()["scalars"]
        if tag.endswith(("find/first_pass_accuracy", "train/kl"))
    }
    assert len(shown) == 2
    for tag, values in shown.items():
        name = next(name for name in ("find/first_pass_accuracy", "train/kl") if tag.endswith(name))
        assert values == pytest.approx([row[name] for row in sink.rows], abs=1e-6)
