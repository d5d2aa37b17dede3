"""Every equation against numbers that were worked out without our code."""

import math
from fractions import Fraction

import pytest
import torch

from ffr.reason import advantage, best_of_group, choose, kl, loss, outcome, ratio, reward
from ffr.types import Observation, Repair, RepairStatus, Rollout
from tests.reason import goldens


def test_eq_8_reward() -> None:
    goldens.check_reward(reward)
    assert len(goldens.load("reward")) == 10


def test_eq_1_advantage() -> None:
    goldens.check_advantage(advantage)
    assert len(goldens.load("advantage")) == 8


def test_eq_8_and_9_on_the_reference_groups() -> None:
    goldens.check_groups(reward, advantage)
    assert len(goldens.load("groups")) == 46


def test_eq_10_ratio() -> None:
    goldens.check_ratio(ratio)
    assert len(goldens.load("ratio")) == 5


def test_shaping() -> None:
    goldens.check_shaping(ratio)
    assert len(goldens.load("shaping")) == 4


def test_sampler_correction() -> None:
    goldens.check_sampler_correction(ratio)
    assert len(goldens.load("sampler_correction")) == 5
    with pytest.raises(ValueError, match="cap must be >= 1"):
        ratio.sampler_correction(torch.zeros(1, 1), torch.zeros(1, 1), torch.ones(1, 1), 0.5)


def test_token_weights_of_the_loss() -> None:
    goldens.check_weighted_loss(loss)
    with pytest.raises(ValueError, match="token weights"):
        ones = torch.ones(2, 3)
        loss.ffr_loss(ones, ones, torch.ones(2), ones, kl_beta=0.0, token_weights_BT=torch.ones(2, 1))


def test_kl() -> None:
    goldens.check_kl(kl)
    assert len(goldens.load("kl")) == 5


def test_eq_11_loss() -> None:
    goldens.check_loss(loss)
    assert len(goldens.load("loss")) == 18


@pytest.mark.parametrize("row", goldens.load("outcome"), ids=lambda r: r["name"])
def test_eq_4_outcome(row: dict) -> None:
    z = outcome(torch.tensor([row["score"]], dtype=torch.float64), row["threshold"])
    assert z.dtype == torch.bool
    assert z.tolist() == [row["expected"]]


def test_eq_4_takes_a_threshold_per_problem_type() -> None:
    z = outcome(torch.tensor([1.0, 0.6, 0.6]), torch.tensor([1.0, 0.5, 0.9]))
    assert z.tolist() == [True, True, False]
    assert outcome(torch.tensor([float("nan")]), 0.5).tolist() == [False]


@pytest.mark.parametrize("row", goldens.load("choose"), ids=lambda r: r["name"])
def test_eq_7_choose(row: dict) -> None:
    x = Observation(sample_uid="s/1", frames=(), prompt="Where?", view_id="x")
    xc = Observation(sample_uid="s/1", frames=(), prompt="Where?", view_id="xc", patch_text="Look at 3-5.")
    first = Rollout(observation=x, text="<answer>A</answer>")
    again = Rollout(observation=xc, text="<answer>B</answer>", source="repaired")
    repair = None
    if row["status"] is not None:
        repair = Repair(status=RepairStatus(row["status"]), rollout=again if row["answered"] else None)
    assert choose(first, repair) is (again if row["expected"] == "repaired" else first)


@pytest.mark.parametrize("row", goldens.load("best"), ids=lambda r: r["name"])
def test_best_of_group(row: dict) -> None:
    assert best_of_group(row["rewards"], row["patched"]) == row["expected"]


def test_stored_groups_agree_with_their_own_fractions() -> None:
    """The derivations give baseline and sum of squares as fractions: redo the last step from those."""
    for row in goldens.load("groups"):
        rates = {
            "right": Fraction(2),
            "repaired_ok": 2 - Fraction(row["kappa"]),
            "repaired_fail": Fraction(1),
        }
        if row["tax_on"] == "any_patched":
            rates["repaired_fail"] -= Fraction(row["kappa"])
        baseline = Fraction(row["baseline_value"])
        squares = sum(row[kind] * (rate - baseline) ** 2 for kind, rate in rates.items())
        assert squares == Fraction(row["sum_sq"]), row["name"]
        size = row["right"] + row["repaired_ok"] + row["repaired_fail"]
        scale = math.sqrt(squares / (size - 1)) + 1e-4 if row["scale"] == "std" else 1.0
        for kind, expected in row["expected"].items():
            assert float(rates[kind] - baseline) / scale == pytest.approx(expected, abs=1e-9), row["name"]


def test_stored_numbers_round_to_the_references() -> None:
    cells = 0
    for row in goldens.load("groups"):
        for kind, digits in row.get("reference_2_digits", {}).items():
            assert round(row["expected"][kind], 2) == digits, row["name"]
            cells += 1
    for row in goldens.load("shaping"):
        assert round(row["expected"], 4) == row["reference_4_digits"]["f"]
        assert round(row["slope"], 4) == row["reference_4_digits"]["slope"]
    assert cells == 77
    fix = next(row for row in goldens.load("groups") if row["name"] == "fix: no scale")
    assert {k: round(v, 3) for k, v in fix["expected"].items()} == {"right": 0.075, "repaired_ok": -0.225}


def test_the_tax_is_inert_in_two_valued_groups() -> None:
    """methods.md 4.2, consequence 1: only the tax's sign is seen, up to the eps of the scale."""
    rows = {row["name"]: row["expected"] for row in goldens.load("groups")}
    mild, harsh = rows["(6, 2, 0) any_patched kappa 3/10"], rows["(6, 2, 0) any_patched kappa 1"]
    assert mild["repaired_ok"] == pytest.approx(harsh["repaired_ok"], abs=1e-3)
    assert harsh["repaired_ok"] < -1.6
    cured = rows["first-pass baseline, scaled (0, 8, 0)"]
    assert cured["repaired_ok"] > 0.9 and rows["(0, 8, 0) any_patched kappa 3/10"]["repaired_ok"] == 0.0
