"""The training objective (FFR eq. 11, arXiv 2604.16243), as a loss to minimise.

    loss = norm_{i,t}[ -min(r A, clip(r, 1 - e, 1 + e) A) + beta k3 ]
    token_mean:  sum over all masked tokens / sum_i |chosen_i|              (eq. 11)
    seq_mean:    mean over rows of each row's token mean                    (the release)
    dr_grpo:     sum over all masked tokens / (B * max_completion_tokens)   (Dr. GRPO, arXiv 2503.20783)

The release has no clip (its ratio is always 1), uses seq_mean, and feeds the failed first pass.

Shapes: B rows (one completion each), T completion positions, padded; `mask_BT` says which count. Values
outside the mask may be anything, inf and NaN included: they reach neither loss nor gradient. A row without
tokens adds 0; a batch without tokens has loss 0 and a zero gradient.

A row whose completion was sampled under x + c can be trained in x (`view_treatment_B`):
    own       r = pi(y|x') / pi_old(y|x'), the sampling view; clipped          old: as sampled
    reattach  the same rule in x                                               old: recomputed under x
    shaped    f(p) A, f(p) = p / (p + gamma), p = pi(y|x); no clip             old: not read
    true_is   min(pi(y|x) / pi_old(y|x + c), clamp) A; no PPO clip             old: as sampled, under x + c
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ffr.reason.kl import kl_k3
from ffr.reason.ratio import at_least_float32, importance_ratio, shaped_weight, true_is_ratio

LossNorm = Literal["token_mean", "seq_mean", "dr_grpo"]
ViewTreatment = Literal["own", "reattach", "shaped", "true_is"]


@dataclass(frozen=True, slots=True)
class LossOutputs:
    """A loss with its gradient graph and detached scalars for the log.

    Example:
        >>> LossOutputs(loss=torch.tensor(0.1), metrics={"kl": torch.tensor(0.0)}).metrics["kl"].item()
        0.0
    """

    loss: Tensor
    """Scalar."""
    metrics: dict[str, Tensor]
    """Detached scalars: policy_loss, kl, clip_fraction, clip_fraction_low, clip_fraction_high, ratio_mean,
    ratio_max, ratio_min, num_tokens. Means are over the masked tokens of this call, so weight them by
    `num_tokens` when joining calls."""


def ffr_loss(
    logprobs_BT: Tensor,
    old_logprobs_BT: Tensor,
    advantages_B: Tensor,
    mask_BT: Tensor,
    *,
    ref_logprobs_BT: Tensor | None = None,
    clip_eps: float = 0.2,
    kl_beta: float = 0.04,
    norm: LossNorm = "token_mean",
    normalizer: Tensor | float | None = None,
    max_completion_tokens: int | None = None,
    view_treatment_B: Sequence[str] | None = None,
    shaping_gamma: float = 0.1,
    true_is_clamp: float = 2.0,
    token_weights_BT: Tensor | None = None,
) -> LossOutputs:
    """Negative of the FFR objective (eq. 11) over the trained completion tokens; formulas in the module.

    Args:
        logprobs_BT: log pi_theta, shape (B, T); the only input that receives a gradient.
        old_logprobs_BT: log pi_old, shape (B, T), under the view that the row's treatment names.
        advantages_B: A, shape (B,).
        mask_BT: 1 on completion tokens, shape (B, T).
        ref_logprobs_BT: log pi_ref, shape (B, T), in the view of `logprobs_BT`; needed if kl_beta > 0.
        clip_eps: e of the clip.
        kl_beta: beta; 0 drops the KL term.
        norm: How tokens are averaged.
        normalizer: See `aggregate`.
        max_completion_tokens: Completion limit, needed by dr_grpo.
        view_treatment_B: One of own, reattach, shaped, true_is per row; None is own for all.
        shaping_gamma: gamma of `shaped_weight`.
        true_is_clamp: Limit of `true_is_ratio`.
        token_weights_BT: Factor of each token's policy term (`sampler_correction`), shape (B, T).

    Raises:
        ValueError: Shapes differ, beta > 0 without a reference, or a switch is unknown or incomplete.
    """
    _check_shapes(logprobs_BT, old_logprobs_BT, advantages_B, mask_BT, ref_logprobs_BT)
    mask = mask_BT.bool()
    logprobs = _inside(logprobs_BT, mask)
    old = _inside(old_logprobs_BT, mask).detach()
    advantages = advantages_B.detach().to(logprobs.dtype).unsqueeze(-1)
    ratio = importance_ratio(logprobs, old)
    surrogate = clipped_surrogate(ratio, advantages, clip_eps)
    if view_treatment_B is not None:
        shaped, true_is = _rows(view_treatment_B, logprobs)
        surrogate = torch.where(shaped, shaped_weight(logprobs, shaping_gamma) * advantages, surrogate)
        ratio = torch.where(true_is, true_is_ratio(logprobs, old, true_is_clamp), ratio)
        surrogate = torch.where(true_is, ratio * advantages, surrogate)
    surrogate = _weighted(surrogate, token_weights_BT, mask)
    kl = _kl(logprobs, mask, ref_logprobs_BT, kl_beta)
    over = (norm, normalizer, max_completion_tokens)
    policy_loss = aggregate(-surrogate, mask, *over)
    loss = policy_loss if kl is None else policy_loss + kl_beta * aggregate(kl, mask, *over)
    metrics = _metrics(ratio.detach(), advantages, mask, clip_eps, view_treatment_B)
    metrics["policy_loss"] = policy_loss.detach()
    metrics["kl"] = _masked_mean(kl.detach(), mask) if kl is not None else torch.zeros_like(policy_loss)
    return LossOutputs(loss=loss, metrics=metrics)


def _weighted(surrogate: Tensor, token_weights_BT: Tensor | None, mask: Tensor) -> Tensor:
    if token_weights_BT is None:
        return surrogate
    if token_weights_BT.shape != mask.shape:
        raise ValueError(f"{tuple(token_weights_BT.shape)} token weights for {tuple(mask.shape)} tokens")
    return surrogate * _inside(token_weights_BT, mask).detach()


def clipped_surrogate(ratio_BT: Tensor, advantages_B1: Tensor, clip_eps: float) -> Tensor:
    """PPO's clipped objective of each token.

        min(r A, clip(r, 1 - e, 1 + e) A)

    Source: FFR eq. 2 and 11; PPO (arXiv 1707.06347) eq. 7. Constant in r, hence without gradient, where
    A > 0 and r > 1 + e, or A < 0 and r < 1 - e.

    Args:
        ratio_BT: r, shape (B, T).
        advantages_B1: A, shape (B, 1).
        clip_eps: e >= 0.

    Returns:
        Shape (B, T).
    """
    clipped = ratio_BT.clamp(1.0 - clip_eps, 1.0 + clip_eps)
    return torch.minimum(ratio_BT * advantages_B1, clipped * advantages_B1)


def aggregate(
    values_BT: Tensor,
    mask_BT: Tensor,
    norm: LossNorm,
    normalizer: Tensor | float | None = None,
    max_completion_tokens: int | None = None,
) -> Tensor:
    """Average per-token values as `norm` says (formulas in the module docstring).

    Args:
        values_BT: Shape (B, T), finite inside the mask.
        mask_BT: Shape (B, T).
        norm: token_mean, seq_mean or dr_grpo.
        normalizer: Replaces the local count, so that micro-batches and ranks add up to one batch: the
            total number of tokens (token_mean) or of rows (seq_mean, dr_grpo). Where an engine averages
            gradients over ranks, pass the total divided by the number of ranks. 0 (no rank has a token)
            counts as 1.
        max_completion_tokens: Needed by dr_grpo.

    Returns:
        Scalar; 0 for an empty mask.

    Raises:
        ValueError: Unknown norm, missing limit, or a negative normalizer.
    """
    mask = mask_BT.bool()
    sums_B = torch.where(mask, values_BT, torch.zeros_like(values_BT)).sum(dim=-1)
    lengths_B = mask.sum(dim=-1)
    if norm == "token_mean":
        return sums_B.sum() / _denominator(lengths_B.sum(), normalizer)
    rows = _denominator(torch.tensor(mask.shape[0], device=mask.device), normalizer)
    if norm == "seq_mean":
        return (sums_B / lengths_B.clamp(min=1)).sum() / rows
    if norm == "dr_grpo":
        if max_completion_tokens is None or max_completion_tokens < 1:
            raise ValueError(f"norm 'dr_grpo' needs max_completion_tokens >= 1, got {max_completion_tokens}")
        return sums_B.sum() / (rows * max_completion_tokens)
    raise ValueError(f"norm must be 'token_mean', 'seq_mean' or 'dr_grpo', got {norm!r}")


def _denominator(local: Tensor, normalizer: Tensor | float | None) -> Tensor:
    total = local if normalizer is None else torch.as_tensor(normalizer, device=local.device)
    if bool(total < 0):
        raise ValueError(f"normalizer must be >= 0, got {float(total)}")
    return torch.where(total == 0, torch.ones_like(total), total)


def _inside(values_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """Zero outside the mask, by selection: a product would keep NaN, in the backward pass too."""
    values = at_least_float32(values_BT)
    return torch.where(mask_BT, values, torch.zeros_like(values))


def _rows(treatment_B: Sequence[str], logprobs_BT: Tensor) -> tuple[Tensor, Tensor]:
    if len(treatment_B) != logprobs_BT.shape[0]:
        raise ValueError(f"{len(treatment_B)} view treatments for {logprobs_BT.shape[0]} rows")
    unknown = sorted(set(treatment_B) - {"own", "reattach", "shaped", "true_is"})
    if unknown:
        raise ValueError(f"unknown view treatment {unknown}; allowed: own, reattach, shaped, true_is")
    shaped, true_is = (
        torch.tensor([t == name for t in treatment_B], dtype=torch.bool, device=logprobs_BT.device)
        for name in ("shaped", "true_is")
    )
    return shaped.unsqueeze(-1), true_is.unsqueeze(-1)


def _kl(logprobs: Tensor, mask: Tensor, ref_logprobs_BT: Tensor | None, kl_beta: float) -> Tensor | None:
    if kl_beta == 0.0:
        return None
    if ref_logprobs_BT is None:
        raise ValueError(f"kl_beta = {kl_beta} needs ref_logprobs_BT; pass kl_beta=0 for no reference")
    return kl_k3(logprobs, _inside(ref_logprobs_BT, mask))


def _metrics(
    ratio: Tensor, advantages_B1: Tensor, mask: Tensor, clip_eps: float, treatment_B: Sequence[str] | None
) -> dict[str, Tensor]:
    clips = mask
    if treatment_B is not None:
        shaped, true_is = _rows(treatment_B, ratio)
        clips = mask & ~shaped & ~true_is
    low = (ratio < 1.0 - clip_eps) & (advantages_B1 < 0) & clips
    high = (ratio > 1.0 + clip_eps) & (advantages_B1 > 0) & clips
    # With no token at all the ratio reads 1, as it does on the first update of any batch.
    filled = torch.where(mask, ratio, torch.ones_like(ratio))
    empty = ratio.new_ones(1)
    flat = filled[mask] if bool(mask.any()) else empty
    return {
        "clip_fraction": _masked_mean((low | high).to(ratio.dtype), mask),
        "clip_fraction_low": _masked_mean(low.to(ratio.dtype), mask),
        "clip_fraction_high": _masked_mean(high.to(ratio.dtype), mask),
        "ratio_mean": flat.mean(),
        "ratio_max": flat.max(),
        "ratio_min": flat.min(),
        "num_tokens": mask.sum(),
    }


def _masked_mean(values_BT: Tensor, mask_BT: Tensor) -> Tensor:
    return torch.where(mask_BT, values_BT, torch.zeros_like(values_BT)).sum() / mask_BT.sum().clamp(min=1)


def _check_shapes(
    logprobs: Tensor, old: Tensor, advantages: Tensor, mask: Tensor, ref: Tensor | None
) -> None:
    if logprobs.dim() != 2 or old.shape != logprobs.shape or mask.shape != logprobs.shape:
        raise ValueError(
            f"log-probs, old log-probs and mask must share one shape (B, T), got {tuple(logprobs.shape)}, "
            f"{tuple(old.shape)}, {tuple(mask.shape)}"
        )
    if advantages.shape != logprobs.shape[:1]:
        raise ValueError(f"advantages must have shape ({logprobs.shape[0]},), got {tuple(advantages.shape)}")
    if ref is not None and ref.shape != logprobs.shape:
        raise ValueError(f"reference log-probs have shape {tuple(ref.shape)}, not {tuple(logprobs.shape)}")
