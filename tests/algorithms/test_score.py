"""What each method trains, with which reward and advantage."""

import dataclasses
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import ffr.algorithms
from ffr.algorithms import FFR, GRPO, FFRReleased, GroupScore, make_algorithm, nll_loss
from ffr.config import Config, ReasonConfig, TrainConfig
from tests.algorithms.groups import X, make_group, verdict
from tests.reason import goldens

torch.set_num_threads(1)
KINDS = {"right": "r", "repaired_ok": "o", "repaired_fail": "f"}


@pytest.mark.parametrize("row", goldens.load("groups"), ids=lambda r: r["name"])
def test_ffr_scores_the_reference_groups(row: dict) -> None:
    group = make_group("".join(letter * row[kind] for kind, letter in KINDS.items()))
    reason = ReasonConfig(
        patch_tax=goldens.number(row["kappa"]),
        tax_on=row["tax_on"],
        scale=row["scale"],
        baseline=row["baseline"],
    )
    score = FFR(reason).score(group)
    expected = [row["expected"][kind] for kind in KINDS for _ in range(row[kind])]
    # float32 holds an advantage of 2.6 to 1.2e-7.
    goldens.close(score.advantages_G, expected, row["name"])
    assert score.trained_G == group.chosen_G
    assert score.view_treatment_G == ("own",) * len(group.chosen_G)
    assert score.active_G == (True,) * len(group.chosen_G)


def test_rewards_and_tax_by_both_rules() -> None:
    group = make_group("rofl")
    success = FFR().score(group)
    goldens.close(success.rewards_G, [2.0, 1.7, 1.0, 1.0], "assisted_success")
    assert success.taxed_G == (False, True, False, False)
    strict = FFR(ReasonConfig(tax_on="any_patched")).score(group)
    goldens.close(strict.rewards_G, [2.0, 1.7, 0.7, 1.0], "any_patched")
    assert strict.taxed_G == (False, True, True, False)
    assert success.rewards_G.dtype == success.advantages_G.dtype == torch.float32


def test_assisted_success_follows_the_verdict_not_the_score() -> None:
    """Free form: 0.6 passes its threshold and is taxed, 0.4 does not and is not."""
    group = make_group("oo")
    graded = dataclasses.replace(group, chosen_verdicts_G=(verdict(True, 0.6), verdict(False, 0.4)))
    score = FFR().score(graded)
    assert score.taxed_G == (True, False)
    goldens.close(score.rewards_G, [1.3, 1.4], "graded")


@settings(max_examples=40, deadline=None)
@given(st.text("rw", min_size=1, max_size=12), st.floats(0.0, 1.0), st.sampled_from(["std", "none"]))
def test_without_repairs_ffr_is_grpo(pattern: str, tax: float, scale: str) -> None:
    group = make_group(pattern.replace("w", "l"))
    reason = ReasonConfig(patch_tax=tax, scale=scale)
    for baseline in ("group", "first_pass"):
        ours = FFR(reason.model_copy(update={"baseline": baseline})).score(group)
        assert_same(ours, GRPO(reason).score(group))
    assert_same(FFRReleased(reason).score(group), GRPO(reason).score(group))


def assert_same(left: GroupScore, right: GroupScore) -> None:
    assert torch.equal(left.rewards_G, right.rewards_G)
    assert torch.equal(left.advantages_G, right.advantages_G)
    for name in ("taxed_G", "trained_G", "view_treatment_G", "active_G"):
        assert getattr(left, name) == getattr(right, name)


@settings(max_examples=40, deadline=None)
@given(st.text("rofl", min_size=1, max_size=12), st.booleans())
def test_an_assisted_success_never_outranks_an_unaided_one(pattern: str, clamp: bool) -> None:
    score = FFR(ReasonConfig(clamp_repaired=clamp)).score(make_group(pattern))
    by_kind = {
        k: [a for a, p in zip(score.advantages_G.tolist(), pattern, strict=True) if p == k] for k in "ro"
    }
    assert all(helped <= unaided for helped in by_kind["o"] for unaided in by_kind["r"])
    assert all(a >= 0.0 for a in by_kind["o"]) or not clamp


def test_grpo_ignores_repairs() -> None:
    group = make_group("rof")
    score = GRPO().score(group)
    assert score.trained_G == group.first_G
    assert score.rewards_G.tolist() == [2.0, 1.0, 1.0]
    assert score.taxed_G == (False, False, False)
    assert not GRPO().repairs and FFR().repairs and FFRReleased().repairs


def test_released_rule_puts_the_repaired_reward_on_the_failed_tokens() -> None:
    group = make_group("rof")
    released = FFRReleased().score(group)
    assert released.trained_G == group.first_G
    assert all(r.observation == X for r in released.trained_G)
    goldens.close(released.rewards_G, [2.0, 1.7, 0.7], "released")
    assert released.taxed_G == (False, True, True)
    # A wrong answer is pushed up: 1.7 is above the mean of 2, 1.7, 0.7.
    assert released.advantages_G[1] > 0
    by_switch = FFR(ReasonConfig(credit="released", tax_on="any_patched")).score(group)
    assert_same(by_switch, released)
    stubborn = ReasonConfig(chosen="best_of_group", tax_on="assisted_success", train_view="shaped")
    assert_same(FFRReleased(stubborn).score(group), released)


def test_best_of_group_trains_one_rollout() -> None:
    score = FFR(ReasonConfig(chosen="best_of_group")).score(make_group("forl"))
    assert score.active_G == (False, False, True, False)
    full = FFR().score(make_group("forl"))
    assert score.advantages_G[2] == full.advantages_G[2] > 0
    assert score.advantages_G[[0, 1, 3]].abs().max() == 0
    # Without an unaided success the repaired one is the best, its tax notwithstanding.
    assert FFR(ReasonConfig(chosen="best_of_group")).score(make_group("fo")).active_G == (False, True)


@pytest.mark.parametrize("view", ["reattach", "shaped", "true_is"])
def test_train_view_moves_repaired_tokens_to_x(view: str) -> None:
    group = make_group("rofl")
    score = FFR(ReasonConfig(train_view=view)).score(group)
    assert score.view_treatment_G == ("own", view, view, "own")
    assert all(rollout.observation == X for rollout in score.trained_G)
    for trained, chosen in zip(score.trained_G, group.chosen_G, strict=True):
        assert (trained.token_ids, trained.logprobs) == (chosen.token_ids, chosen.logprobs)
    own = FFR().score(group)
    assert torch.equal(score.advantages_G, own.advantages_G)
    assert own.trained_G[1].observation.patched


def test_clamp_repaired_spares_successes_only() -> None:
    group = make_group("rrrrrrof")
    free, clamped = (
        FFR(ReasonConfig(clamp_repaired=flag)).score(group).advantages_G for flag in (False, True)
    )
    assert free[6] < 0 and clamped[6] == 0
    assert torch.equal(free[:6], clamped[:6]) and clamped[7] == free[7] < 0


def test_make_algorithm() -> None:
    for name, kind in (("ffr", FFR), ("grpo", GRPO), ("ffr_released", FFRReleased)):
        cfg = Config(train=TrainConfig(algorithm=name), reason=ReasonConfig(patch_tax=0.1))
        algorithm = make_algorithm(cfg)
        assert isinstance(algorithm, kind) and algorithm.name == name
        assert algorithm.reason.patch_tax == 0.1
    with pytest.raises(ValueError, match="sft"):
        make_algorithm(Config(train=TrainConfig(algorithm="sft")))


@pytest.mark.parametrize("method", [FFR(), GRPO(), FFRReleased()], ids=lambda m: m.name)
def test_a_ragged_group_is_refused_by_name(method) -> None:
    group = make_group("ro")
    with pytest.raises(ValueError, match=r"toy/1.*chosen_G"):
        method.score(dataclasses.replace(group, chosen_verdicts_G=group.chosen_verdicts_G[:1]))


def test_nll_loss() -> None:
    lp = torch.tensor([[-1.0, -2.0, float("-inf")], [-3.0, float("nan"), 0.0]], requires_grad=True)
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]])
    loss = nll_loss(lp, mask)
    loss.backward()
    goldens.close(loss.detach(), 2.0, "(1 + 2 + 3) / 3")
    goldens.close(lp.grad, [[-1 / 3, -1 / 3, 0.0], [-1 / 3, 0.0, 0.0]], "-1/3 on each completion token")
    goldens.close(nll_loss(lp.detach(), mask, normalizer=6), 1.0, "6 / 6")
    assert nll_loss(lp.detach(), torch.zeros(2, 3)).item() == 0.0
    with pytest.raises(ValueError, match="mask"):
        nll_loss(lp, mask[:1])


def test_each_method_opens_with_its_differences_and_stays_short() -> None:
    room = Path(ffr.algorithms.__file__).parent
    for name in ("grpo", "ffr", "ffr_released", "sft"):
        lines = (room / f"{name}.py").read_text(encoding="utf-8").splitlines()
        assert len(lines) <= 110, name
        head = lines[: lines.index('"""')]
        assert any(line.startswith("Differences from GRPO:") for line in head), name
        assert any(line.startswith("1. ") for line in head), name
