"""TRL 1.16's advantage and loss, written out here from its formulas, against ours.

TRL's names: `dapo` is our token_mean (its normalizer is the global token count), `grpo` our seq_mean,
`dr_grpo` ours. The engine tests compare with TRL's trainer itself.
"""

import pytest
import torch

from ffr.reason import ffr_loss, group_advantages

torch.set_num_threads(1)


def trl_advantages(rewards: torch.Tensor, num_generations: int, scale: str) -> torch.Tensor:
    """`scale_rewards` group or none on a flat reward vector, with TRL's NaN-aware deviation."""
    mean = torch.nanmean(rewards.view(-1, num_generations), dim=1).repeat_interleave(num_generations)
    advantages = rewards - mean
    if scale == "std":
        grouped = rewards.view(-1, num_generations)
        count = (~grouped.isnan()).sum(dim=1)
        variance = torch.nanmean((grouped - torch.nanmean(grouped, dim=1, keepdim=True)) ** 2, dim=1)
        std = torch.sqrt(variance * count / (count - 1)).repeat_interleave(num_generations)
        advantages = advantages / (std + 1e-4)
    return torch.nan_to_num(advantages, nan=0.0)


@pytest.mark.parametrize("scale", ["std", "none"])
@pytest.mark.parametrize("seed", range(5))
def test_advantages_equal_trls(seed: int, scale: str) -> None:
    g = torch.Generator().manual_seed(seed)
    rewards = torch.randint(0, 5, (6, 8), generator=g).float() / 2
    ours = group_advantages(rewards, scale=scale)
    theirs = trl_advantages(rewards.double().flatten(), 8, scale).view(6, 8)
    torch.testing.assert_close(ours.double(), theirs, rtol=0, atol=1e-6)


def trl_loss(lp, old, ref, advantages, mask, *, loss_type: str, limit: int) -> torch.Tensor:
    coef_1 = torch.exp(lp - old)
    coef_2 = coef_1.clamp(1 - 0.2, 1 + 0.2)
    per_token = -torch.min(coef_1 * advantages.unsqueeze(1), coef_2 * advantages.unsqueeze(1))
    per_token = per_token + 0.04 * (torch.exp(ref - lp) - (ref - lp) - 1)
    if loss_type == "grpo":
        return ((per_token * mask).sum(-1) / mask.sum(-1).clamp(min=1.0)).mean()
    if loss_type == "dr_grpo":
        return (per_token * mask).sum() / (per_token.size(0) * limit)
    return (per_token * mask).sum() / mask.sum().clamp(min=1.0)  # dapo in one process, one micro-batch


@pytest.mark.parametrize(
    ("norm", "loss_type"), [("token_mean", "dapo"), ("seq_mean", "grpo"), ("dr_grpo", "dr_grpo")]
)
@pytest.mark.parametrize("seed", range(3))
def test_loss_and_gradient_equal_trls(norm: str, loss_type: str, seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    start = -2 * torch.rand((4, 7), generator=g, dtype=torch.float64)
    old, ref = (start + 0.4 * torch.randn((4, 7), generator=g, dtype=torch.float64) for _ in range(2))
    mask = (torch.arange(7) < torch.tensor([[7], [3], [5], [0]])).int()
    advantages = torch.randn(4, generator=g, dtype=torch.float64)
    ours_at, theirs_at = (start.clone().requires_grad_() for _ in range(2))
    ours = ffr_loss(
        ours_at, old, advantages, mask, ref_logprobs_BT=ref, norm=norm, max_completion_tokens=9
    ).loss
    theirs = trl_loss(theirs_at, old, ref, advantages, mask, loss_type=loss_type, limit=9)
    ours.backward()
    theirs.backward()
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-9)
    torch.testing.assert_close(ours_at.grad, theirs_at.grad, rtol=0, atol=1e-9)
    assert float(ours_at.grad.abs().max()) > 0.0
