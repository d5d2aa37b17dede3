"""One file per method; each opens with its numbered differences from GRPO."""

from ffr.algorithms.base import Algorithm, GroupScore
from ffr.algorithms.ffr import FFR
from ffr.algorithms.ffr_released import FFRReleased
from ffr.algorithms.grpo import GRPO
from ffr.algorithms.sft import nll_loss
from ffr.config import Config

__all__ = ["FFR", "GRPO", "Algorithm", "FFRReleased", "GroupScore", "make_algorithm", "nll_loss"]

_METHODS = {"ffr": FFR, "grpo": GRPO, "ffr_released": FFRReleased}


def make_algorithm(cfg: Config) -> Algorithm:
    """Build the method that `train.algorithm` names.

    Args:
        cfg: The whole configuration; only `train.algorithm` and `reason` are read.

    Returns:
        An `Algorithm`.

    Raises:
        ValueError: The name has no group score (`sft` has its own loop in `engines`).
    """
    name = cfg.train.algorithm
    if name not in _METHODS:
        raise ValueError(
            f"train.algorithm = {name!r} scores no groups; choose one of {sorted(_METHODS)}, "
            "or run the supervised loop for 'sft'"
        )
    return _METHODS[name](cfg.reason)
