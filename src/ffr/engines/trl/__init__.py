"""The default engine: GRPO training on top of TRL, with video and per-row observations of our own."""

from ffr.engines.trl.run import train
from ffr.engines.trl.setup import EngineConfigError, Sink, TrainResult

__all__ = ["EngineConfigError", "Sink", "TrainResult", "train"]
