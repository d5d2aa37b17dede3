"""The default engine: GRPO training on top of TRL, with video and per-row observations of our own."""

from ffr.engines.trl.setup import EngineConfigError, Sink, TrainResult
from ffr.engines.trl.run import train

__all__ = ["EngineConfigError", "Sink", "TrainResult", "train"]
