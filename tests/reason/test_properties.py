"""What must hold for any rewards and any log-probabilities."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ffr.reason import (
    best_of_group,
    choose,
    ffr_loss,
    group_advantages,
    importance_ratio,
    kl_k3,
    reliance,
    robust_improvement_reward,
    shaped_weight,
    taxed_mask,
    true_is_ratio,
)
from ffr.types import Observation, Repair, RepairStatus, Rollout

torch.set_num_threads(1)
FAST = settings(max_examples=60, deadline=None)
rewards_lists = st.lists(st.floats(-1.0, 3.0, width=32), min_size=2, max_size=16)
slots = st.lists(st.tuples(st.booleans(), st.booleans(), st.booleans()), min_size=1, max_size=16)


@FAST
@given(rewards_lists, st.sampled_from(["std", "none"]))
def test_group_advantages_sum_to_zero(rewards: list[float], scale: str) -> None:
    advantages = group_advantages(torch.tensor(rewards, dtype=torch.float64), scale=scale)
    assert abs(float(advantages.sum())) < 1e-6


@FAST
@given(rewards_lists, st.randoms(use_true_random=False), st.sampled_from(["group", "first_pass"]))
def test_advantages_follow_a_permutation(rewards: list[float], random, baseline: str) -> None:
    order = list(range(len(rewards)))
    random.shuffle(order)
    values = torch.tensor(rewards, dtype=torch.float64)
    firsts = values - 0.25
    straight = group_advantages(values, baseline=baseline, first_rewards_PG=firsts)
    shuffled = group_advantages(values[order], baseline=baseline, first_rewards_PG=firsts[order])
    torch.testing.assert_close(shuffled, straight[order], rtol=0, atol=1e-9)


@FAST
@given(rewards_lists, rewards_lists)
def test_scaled_advantages_are_bounded_for_both_baselines(rewards: list[float], firsts: list[float]) -> None:
    size = min(len(rewards), len(firsts))
    values, before = (torch.tensor(r[:size], dtype=torch.float64) for r in (rewards, firsts))
    bound = math.sqrt(size - 1) + 1e-9
    assert float(group_advantages(values).abs().max()) <= bound
    scaled = group_advantages(values, baseline="first_pass", first_rewards_PG=before)
    assert float(scaled.abs().max()) <= bound


@FAST
@given(rewards_lists)
def test_without_repairs_the_first_pass_baseline_is_grpo(rewards: list[float]) -> None:
    values = torch.tensor(rewards, dtype=torch.float64)
    own = group_advantages(values, baseline="first_pass", first_rewards_PG=values)
    torch.testing.assert_close(own, group_advantages(values), rtol=0, atol=0)


@FAST
@given(slots, st.floats(0.0, 1.0), st.sampled_from(["assisted_success", "any_patched"]))
def test_a_patched_success_never_outranks_an_unaided_one(slots_G, tax: float, rule: str) -> None:
    first, patched, success = (torch.tensor(column) for column in zip(*slots_G, strict=True))
    patched = patched & ~first
    correct = first | (patched & success)
    form = torch.ones(len(slots_G))
    rewards = robust_improvement_reward(correct.float(), form, first, patched, patch_tax=tax, tax_on=rule)
    advantages = group_advantages(rewards)
    assert torch.isfinite(advantages).all()
    if first.any() and (patched & success).any():
        assert float(rewards[patched & success].max()) <= float(rewards[first].min())
        assert float(advantages[patched & success].max()) <= float(advantages[first].min())


@FAST
@given(slots)
def test_tax_rules_agree_on_successes_and_tax_no_unaided_rollout(slots_G) -> None:
    first, patched, success = (torch.tensor(column) for column in zip(*slots_G, strict=True))
    score = success.float()
    lenient = taxed_mask(score, first, patched)
    strict = taxed_mask(score, first, patched, tax_on="any_patched")
    assert torch.equal(lenient, strict & success)
    assert not (strict & (first | ~patched)).any()


@FAST
@given(st.integers(0, 10_000), st.sampled_from(["token_mean", "seq_mean", "dr_grpo"]))
def test_no_gradient_and_no_value_outside_the_mask(seed: int, norm: str) -> None:
    g = torch.Generator().manual_seed(seed)
    shape = (3, 5)
    lp = -3 * torch.rand(shape, generator=g) - 0.1
    old, ref = lp + 0.3 * torch.randn(shape, generator=g), lp + 0.3 * torch.randn(shape, generator=g)
    mask = torch.rand(shape, generator=g) < 0.6
    advantages = torch.randn(3, generator=g)

    def run(filler: float) -> tuple[torch.Tensor, torch.Tensor]:
        leaf = torch.where(mask, lp, torch.full(shape, filler)).requires_grad_()
        out = ffr_loss(
            leaf,
            torch.where(mask, old, torch.full(shape, -filler)),
            advantages,
            mask,
            ref_logprobs_BT=torch.where(mask, ref, torch.full(shape, filler)),
            norm=norm,
            max_completion_tokens=8,
            view_treatment_B=["own", "shaped", "true_is"],
        )
        out.loss.backward()
        assert leaf.grad is not None
        assert all(torch.isfinite(value).all() for value in out.metrics.values())
        return out.loss.detach(), leaf.grad

    plain, grad = run(-1.0)
    assert (grad[~mask] == 0).all()
    for filler in (float("nan"), float("inf"), float("-inf")):
        loss, dirty = run(filler)
        assert torch.equal(loss, plain) and torch.equal(dirty, grad)


@FAST
@given(st.lists(st.floats(-60.0, 0.0, width=32), min_size=1, max_size=8))
def test_ratio_is_one_when_nothing_changed(values: list[float]) -> None:
    lp = torch.tensor([values])
    assert (importance_ratio(lp, lp.clone()) == 1.0).all()
    assert (true_is_ratio(lp, lp.clone(), 2.0) == 1.0).all()
    assert (kl_k3(lp, lp.clone()) == 0.0).all()
    assert reliance(lp, lp.clone(), torch.ones_like(lp)).item() == 0.0


@FAST
@given(st.floats(-1e4, 0.0), st.floats(-1e4, 0.0))
def test_single_precision_never_overflows(a: float, b: float) -> None:
    lp, other = torch.tensor([[a]]), torch.tensor([[b]])
    assert torch.isfinite(importance_ratio(lp, other)).all()
    assert torch.isfinite(kl_k3(lp, other)).all() and (kl_k3(lp, other) >= 0).all()
    assert 0.0 <= float(shaped_weight(lp)) <= 1.0 / 1.1 + 1e-6
    assert 0.0 < float(true_is_ratio(lp, other, 2.0)) <= 2.0


def test_bfloat16_is_raised_before_exp() -> None:
    lp = torch.tensor([[-1.0, -2.0]], dtype=torch.bfloat16)
    assert importance_ratio(lp, lp).dtype == torch.float32
    assert kl_k3(lp, lp).dtype == torch.float32
    assert group_advantages(torch.tensor([1.0, 2.0], dtype=torch.bfloat16)).dtype == torch.float32


def test_micro_batches_add_up_to_the_batch() -> None:
    g = torch.Generator().manual_seed(0)
    lp, old = -torch.rand((4, 6), generator=g).double(), -torch.rand((4, 6), generator=g).double()
    mask = torch.arange(6) < torch.tensor([[6], [2], [4], [1]])
    advantages = torch.tensor([1.0, -1.0, 0.5, -0.5], dtype=torch.float64)
    totals = {"token_mean": mask.sum(), "seq_mean": 4, "dr_grpo": torch.tensor(4)}
    for norm, total in totals.items():
        whole = ffr_loss(lp, old, advantages, mask, kl_beta=0.0, norm=norm, max_completion_tokens=6).loss
        parts = sum(
            ffr_loss(
                lp[i : i + 1],
                old[i : i + 1],
                advantages[i : i + 1],
                mask[i : i + 1],
                kl_beta=0.0,
                norm=norm,
                normalizer=total,
                max_completion_tokens=6,
            ).loss
            for i in range(4)
        )
        torch.testing.assert_close(parts, whole, rtol=0, atol=1e-12)


def test_an_empty_batch_is_zero_even_over_an_empty_total() -> None:
    lp = torch.zeros((2, 3), requires_grad=True)
    out = ffr_loss(lp, lp, torch.ones(2), torch.zeros(2, 3), kl_beta=0.0, normalizer=0)
    out.loss.backward()
    assert out.loss.item() == 0.0 and lp.grad is not None and (lp.grad == 0).all()
    assert out.metrics["ratio_mean"].item() == out.metrics["ratio_max"].item() == 1.0
    assert out.metrics["num_tokens"].item() == 0


def test_reliance_is_the_gap_of_the_means() -> None:
    x, xc = torch.tensor([[-1.0, -3.0, -9.0]]), torch.tensor([[-0.5, -1.5, 7.0]])
    assert reliance(x, xc, torch.tensor([[1, 1, 0]])).tolist() == [-1.0]  # -2 - (-1)
    assert reliance(x, xc, torch.zeros(1, 3)).tolist() == [0.0]


def test_clamped_repairs_are_not_unlearned() -> None:
    rewards = torch.tensor([2.0] * 6 + [1.7] * 2)
    mask = torch.tensor([False] * 6 + [True] * 2)
    free, clamped = group_advantages(rewards), group_advantages(rewards, clamp_mask_PG=mask)
    assert (free[6:] < -1.6).all() and (clamped[6:] == 0).all()
    assert torch.equal(free[:6], clamped[:6])


@pytest.mark.parametrize(
    ("message", "call"),
    [
        ("finite", lambda: group_advantages(torch.tensor([1.0, float("nan")]))),
        ("first_rewards_PG", lambda: group_advantages(torch.ones(2), baseline="first_pass")),
        (
            "first_rewards_PG has shape",
            lambda: group_advantages(torch.ones(2), baseline="first_pass", first_rewards_PG=torch.ones(3)),
        ),
        ("clamp_mask_PG has shape", lambda: group_advantages(torch.ones(2), clamp_mask_PG=torch.ones(3))),
        ("scale must be", lambda: group_advantages(torch.ones(2), scale="ema")),  # type: ignore[arg-type]
        ("baseline must be", lambda: group_advantages(torch.ones(2), baseline="x")),  # type: ignore[arg-type]
        ("shape", lambda: group_advantages(torch.ones(2, 0))),
        ("kl_beta", lambda: ffr_loss(*[torch.ones(1, 1)] * 2, torch.ones(1), torch.ones(1, 1))),
        ("max_completion_tokens", lambda: run_loss(norm="dr_grpo")),
        ("norm must be", lambda: run_loss(norm="sum")),
        ("normalizer", lambda: run_loss(normalizer=-1)),
        ("unknown view treatment", lambda: run_loss(view_treatment_B=["patched"])),
        ("view treatments for", lambda: run_loss(view_treatment_B=["own", "own"])),
        ("gamma", lambda: shaped_weight(torch.zeros(1), 0.0)),
        ("clamp", lambda: true_is_ratio(torch.zeros(1), torch.zeros(1), 0.0)),
        ("patch_tax", lambda: robust_improvement_reward(*[torch.ones(1)] * 4, patch_tax=-0.1)),
        ("tax_on", lambda: taxed_mask(*[torch.ones(1)] * 3, tax_on="all")),  # type: ignore[arg-type]
        ("one shape", lambda: robust_improvement_reward(torch.ones(2), *[torch.ones(1)] * 3)),
        ("best_of_group", lambda: best_of_group([], [])),
    ],
)
def test_wrong_use_is_refused_by_name(message: str, call) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def run_loss(**switches) -> None:
    one = torch.zeros(1, 1)
    ffr_loss(one, one, torch.ones(1), torch.ones(1, 1), kl_beta=0.0, **switches)


def test_a_misplaced_repair_is_refused() -> None:
    x = Observation(sample_uid="s/1", frames=(), prompt="Where?", view_id="x")
    other = Observation(sample_uid="s/2", frames=(), prompt="Where?", view_id="y", patch_text="Look.")
    first = Rollout(observation=x, text="")
    for observation, message in ((x, "un-patched"), (other, "s/2")):
        again = Rollout(observation=observation, text="")
        with pytest.raises(ValueError, match=message):
            choose(first, Repair(status=RepairStatus.REPAIRED, rollout=again))
