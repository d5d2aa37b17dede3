"""The KL estimator of eq. 11 (Schulman's k3)."""

from __future__ import annotations

from torch import Tensor

from ffr.reason.ratio import MAX_LOG_RATIO, at_least_float32


def kl_k3(logprobs_BT: Tensor, ref_logprobs_BT: Tensor) -> Tensor:
    """Per-token estimate of KL(pi || pi_ref) from tokens sampled by pi.

        d = log pi_ref(y_t) - log pi(y_t);   k3 = exp(d) - d - 1

    Source: FFR eq. 11 and GRPO (arXiv 2402.03300) eq. 4. Non-negative, 0 iff the two agree; its gradient
    in log pi is 1 - exp(d). TRL computes it without a clamp, the authors' release clamps d to +-10; here
    d is clamped to +-20 before exp, which only guards float32.

    Args:
        logprobs_BT: log pi, shape (B, T); carries the gradient.
        ref_logprobs_BT: log pi_ref under the same observation, shape (B, T); no gradient.

    Returns:
        Shape (B, T), >= 0 up to rounding.
    """
    gap = (at_least_float32(ref_logprobs_BT).detach() - at_least_float32(logprobs_BT)).clamp(
        -MAX_LOG_RATIO, MAX_LOG_RATIO
    )
    return gap.expm1() - gap
