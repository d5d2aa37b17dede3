"""The paper's maths: pure functions on torch tensors, nothing else (FFR eq. 1, 4, 7-11)."""

from ffr.reason.advantage import group_advantages
from ffr.reason.choose import best_of_group, choose
from ffr.reason.kl import kl_k3
from ffr.reason.loss import LossOutputs, aggregate, clipped_surrogate, ffr_loss
from ffr.reason.outcome import outcome
from ffr.reason.ratio import (
    importance_ratio,
    reliance,
    sampler_correction,
    shaped_weight,
    token_log_ratio,
    true_is_ratio,
)
from ffr.reason.reward import robust_improvement_reward, taxed_mask

__all__ = [
    "LossOutputs",
    "aggregate",
    "best_of_group",
    "choose",
    "clipped_surrogate",
    "ffr_loss",
    "group_advantages",
    "importance_ratio",
    "kl_k3",
    "outcome",
    "reliance",
    "robust_improvement_reward",
    "sampler_correction",
    "shaped_weight",
    "taxed_mask",
    "token_log_ratio",
    "true_is_ratio",
]
