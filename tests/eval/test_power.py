"""Numbers of questions: against closed forms, against simulation, and from runs."""

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import special

from ffr.eval.power import (
    SIZES,
    Design,
    connor,
    mcnemar_power,
    measure,
    needed,
    resolvable,
    within_clusters,
)
from ffr.eval.power_text import power_json, power_markdown, power_report
from ffr.eval.results import load_run
from ffr.eval.stats import mcnemar_exact
from tests.eval.small_runs import item, mvbench_record, scored, write_run


def test_the_closed_forms_by_hand():
    # z(.975) = 1.959964, z(.8) = 0.841621. Connor: (1.959964 sqrt(.2) + .841621 sqrt(.2 - .0025))**2 / .0025.
    assert connor(Design(effect=0.05)) == pytest.approx(
        (1.959964 * math.sqrt(0.2) + 0.841621 * math.sqrt(0.1975)) ** 2 / 0.0025, rel=1e-5
    )
    # Fleiss at 60 and 65 %: (1.959964 sqrt(2 * .625 * .375) + .841621 sqrt(.24 + .2275))**2 / .0025 = 1470.6.
    assert needed(Design(effect=0.05)).unpaired == 1471


@pytest.mark.parametrize(("num", "only_second", "only_first"), [(300, 0.15, 0.08), (658, 0.125, 0.075)])
def test_the_power_of_the_exact_test_is_what_simulation_gives(num, only_second, only_first):
    random = np.random.default_rng(1)
    draws = random.multinomial(num, [only_second, only_first, 1 - only_second - only_first], 6000)
    seen = sum(mcnemar_exact(int(b), int(a)) <= 0.05 and a > b for a, b, _ in draws) / len(draws)
    power = mcnemar_power(num, only_second + only_first, only_second - only_first)
    assert abs(seen - power) < 3 * math.sqrt(0.25 / 6000)


def test_the_power_is_the_sum_over_all_outcomes():
    # Twelve pairs, summed one by one.
    better, worse, num = 0.4, 0.1, 12
    total = 0.0
    for a in range(num + 1):
        for b in range(num - a + 1):
            ways = special.comb(num, a) * special.comb(num - a, b)
            if a > b and mcnemar_exact(a, b) <= 0.05:
                total += ways * better**a * worse**b * (1 - better - worse) ** (num - a - b)
    assert mcnemar_power(num, 0.5, 0.3) == pytest.approx(total, abs=1e-9)


def test_the_number_needed_is_the_least_with_the_power():
    design = Design(effect=0.05)
    found = needed(design).paired
    assert mcnemar_power(found, 0.2, 0.05) >= 0.8
    assert mcnemar_power(found - 40, 0.2, 0.05) < 0.8
    assert connor(design) < found < 1.08 * connor(design)


def test_questions_on_shared_videos_are_worth_less():
    alone = needed(Design(effect=0.05))
    shared = needed(Design(effect=0.05, per_video=5, icc=0.1))
    assert shared.paired == math.ceil(alone.paired * 1.4)
    # n = 1000 (1 + (n / 200 - 1) / 10): n (1 - 1/2) = 900.
    assert within_clusters(1000, 200, 0.1) == pytest.approx(1800)
    assert within_clusters(1000, 100, 0.1) == math.inf


def test_what_benchmarks_can_show_is_the_inverse_of_what_is_needed():
    design = Design(effect=0.03, icc=0.0)
    for size in SIZES.values():
        paired, unpaired = (resolvable(size.num_questions, design, paired=p) for p in (True, False))
        assert unpaired > paired
        assert needed(replace(design, effect=unpaired)).unpaired == pytest.approx(
            size.num_questions, rel=0.005
        )
        assert mcnemar_power(size.num_questions, 0.2, paired) >= 0.8 - 1e-6
        assert mcnemar_power(size.num_questions, 0.2, 0.97 * paired) < 0.8
    assert math.isnan(resolvable(5, design))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"effect": 0.0}, "effect"),
        ({"effect": 0.3, "discordance": 0.2}, "discordance"),
        ({"effect": 0.1, "base": 0.95}, "base"),
        ({"effect": 0.1, "icc": 2.0}, "icc"),
        ({"effect": 0.1, "power": 0.04}, "power"),
    ],
)
def test_impossible_assumptions_are_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        Design(**changes)


def _runs(tmp_path):
    items = [
        item("mvbench", f"action_count/{i}", mvbench_record(), group=f"v{i // 4}", index=i) for i in range(40)
    ]
    first = [scored(one.uid, float(i % 2), seed=s) for i, one in enumerate(items) for s in (1, 2)]
    # The second run gets every fifth question the other way round.
    second = [scored(one.uid, float((i % 2) ^ (i % 5 == 0)), seed=1) for i, one in enumerate(items)]
    return (
        load_run(write_run(tmp_path / "a", items, first, seeds=(1, 2))),
        load_run(write_run(tmp_path / "b", items, second, seeds=(1,))),
    )


def test_runs_tell_discordance_and_clustering(tmp_path):
    a, b = _runs(tmp_path)
    (both,) = measure(a, b)
    assert (both.source, both.discordance, both.accuracy) == ("two runs", 0.2, 0.5)
    assert (both.num_questions, both.num_videos) == (40, 10)
    (alone,) = measure(a)
    assert (alone.source, alone.discordance, alone.icc) == ("two seeds", 0.0, 0.0)
    (one,) = measure(b)
    assert one.source == "one run"
    assert math.isnan(one.discordance)


def test_the_report_says_what_was_measured(tmp_path):
    a, b = _runs(tmp_path)
    text = power_markdown(power_report(Design(effect=0.015), num_videos=100, measured=measure(a, b)))
    assert "To show a difference of 1.5 points" in text
    assert "| MVBench, 16 frames, measured on two runs | 40 | 10 |" in text
    assert "discordance 20.0 %" in text
    assert "no number of questions" in text
    assert '"within": null' in power_json(power_report(Design(effect=0.015), num_videos=100))
    assert all(size.title in text for size in SIZES.values())
