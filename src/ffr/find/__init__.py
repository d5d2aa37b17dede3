"""Find: sample rollouts and judge them (torch-free; back ends live in `ffr.engines`)."""

from ffr.find.rollout import SamplerError, find
from ffr.find.sampler import Sampler
from ffr.find.verify import thresholds_from, verify

__all__ = ["Sampler", "SamplerError", "find", "thresholds_from", "verify"]
