"""The Robust Improvement Reward (FFR eq. 8, arXiv 2604.16243)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

TaxOn = Literal["assisted_success", "any_patched"]


def taxed_mask(
    outcome: Tensor,
    first_correct: Tensor,
    patched: Tensor,
    *,
    tax_on: TaxOn = "assisted_success",
    chosen_correct: Tensor | None = None,
) -> Tensor:
    """Which chosen rollouts pay the patch tax.

        assisted_success:  taxed_i = (1 - z_i) * patched_i * z(chosen_i)
        any_patched:       taxed_i = (1 - z_i) * patched_i

    Source: the prose around FFR eq. 8 taxes assisted *success*; eq. 8 as written and the released code tax
    every patched rollout, failed repairs too.

    Args:
        outcome: R_acc of the chosen rollouts, any shape.
        first_correct: z of the first passes, same shape, bool or 0/1.
        patched: True where the chosen rollout was sampled under x + c, same shape.
        tax_on: The rule.
        chosen_correct: z of the chosen rollouts, same shape; None means outcome >= 1, which is right for
            multiple choice and numbers but not for graded scores.

    Returns:
        Bool tensor of the same shape.

    Raises:
        ValueError: An unknown rule.
    """
    assisted = patched.bool() & ~first_correct.bool()
    if tax_on == "any_patched":
        return assisted
    if tax_on == "assisted_success":
        success = outcome >= 1.0 if chosen_correct is None else chosen_correct.bool()
        return assisted & success
    raise ValueError(f"tax_on must be 'assisted_success' or 'any_patched', got {tax_on!r}")


def robust_improvement_reward(
    outcome: Tensor,
    format: Tensor,
    first_correct: Tensor,
    patched: Tensor,
    *,
    patch_tax: float = 0.3,
    tax_on: TaxOn = "assisted_success",
    chosen_correct: Tensor | None = None,
) -> Tensor:
    """RIR of each chosen rollout.

        R_i = R_acc(chosen_i) + R_fmt(chosen_i) - kappa * 1[taxed_i]

    Source: FFR eq. 8 (kappa 0.3). The released code computes the same scalar with `any_patched`, but
    applies it to the tokens of the failed first pass (see `algorithms/ffr_released.py`).

    Args:
        outcome: R_acc of the chosen rollouts in [0, 1], any shape.
        format: R_fmt of the chosen rollouts, same shape.
        first_correct: z of the first passes, same shape, bool or 0/1.
        patched: True where the chosen rollout was sampled under x + c, same shape.
        patch_tax: kappa >= 0.
        tax_on: See `taxed_mask`.
        chosen_correct: See `taxed_mask`.

    Returns:
        Tensor of the same shape, floating.

    Raises:
        ValueError: Shapes differ, kappa is negative, or the rule is unknown.
    """
    shapes = {tuple(t.shape) for t in (outcome, format, first_correct, patched)}
    if len(shapes) != 1:
        raise ValueError(
            f"outcome, format, first_correct and patched must share one shape, got {sorted(shapes)}"
        )
    if patch_tax < 0:
        raise ValueError(f"patch_tax must be >= 0, got {patch_tax}")
    taxed = taxed_mask(outcome, first_correct, patched, tax_on=tax_on, chosen_correct=chosen_correct)
    reward = outcome + format
    dtype = reward.dtype if reward.is_floating_point() else torch.get_default_dtype()
    return reward.to(dtype) - patch_tax * taxed.to(dtype)
