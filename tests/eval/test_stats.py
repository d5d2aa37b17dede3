"""Intervals and tests against numbers worked by hand, and by simulation."""

import math

import numpy as np
import pytest

from ffr.eval.stats import (
    bootstrap_interval,
    clustered_estimate,
    holm,
    intraclass_correlation,
    mcnemar_exact,
)


def test_a_mean_of_three_videos_worked_by_hand():
    # Mean 1/2. Sums of residuals by video: +1, -1, 0. var = 3/2 * (1 + 1 + 0) / 6**2 = 1/12.
    # Six independent questions: s**2 / 6 = (6 * 1/4 / 5) / 6 = 1/20, so the design effect is 20/12 = 5/3.
    # Wilson at n = (1/4) / (1/12) = 3 with t(2, .975) = 4.302653: half width
    # 4.302653 / (1 + 18.512821 / 3) * sqrt(.25 / 3 + 18.512821 / 36) = 0.463828.
    found = clustered_estimate([1, 1, 0, 0, 1, 0], list("aabbcc"))
    assert found.mean == 0.5
    assert (found.num, found.num_clusters) == (6, 3)
    assert found.std_error == pytest.approx(math.sqrt(1 / 12), abs=1e-12)
    assert found.design_effect == pytest.approx(5 / 3, abs=1e-12)
    assert (found.low, found.high) == pytest.approx((0.036172, 0.963828), abs=1e-6)


def test_a_macro_average_worked_by_hand():
    # Tasks x: 1, 0 (mean 1/2), y: 1, 1, 0, 0 (mean 1/2); overall = (x + y) / 2, slopes 1/2.
    # u: x +-1/2 * 1/2 / 2 = +-1/8; y +-1/2 * 1/2 / 4 = +-1/16. Videos a: x1 y1 -> 3/16; b: x0 y0 -> -3/16;
    # c: y1 y0 -> 0. var = 3/2 * 2 * (3/16)**2 = 27/256.
    found = clustered_estimate(
        [1, 0, 1, 1, 0, 0],
        list("abacbc"),
        tasks=list("xxyyyy"),
        combine=lambda mean: (mean["x"] + mean["y"]) / 2,
        bounded=False,
    )
    assert found.mean == 0.5
    assert found.std_error == pytest.approx(math.sqrt(27 / 256), abs=1e-9)
    assert found.high - found.mean == pytest.approx(4.302653 * math.sqrt(27 / 256), abs=1e-6)


def test_one_video_has_no_interval_and_equal_values_have_a_wide_one():
    one = clustered_estimate([1, 0, 1], ["v"] * 3)
    assert one.mean == pytest.approx(2 / 3)
    assert math.isnan(one.low)
    # Nothing varies: n is the number of videos, 4. t(3, .975) = 3.182446; low = 1 / (1 + t**2 / 4).
    full = clustered_estimate([1.0] * 8, list("aabbccdd"))
    assert (full.low, full.high) == (pytest.approx(1 / (1 + 3.182446**2 / 4), abs=1e-6), 1.0)
    assert math.isnan(clustered_estimate([], []).mean)


def test_it_is_never_narrower_than_for_independent_questions():
    # Both videos have mean 1/2: between them nothing varies, yet four questions say little.
    found = clustered_estimate([1, 0, 1, 0], list("aabb"))
    assert found.design_effect == 1.0
    assert found.std_error == pytest.approx(math.sqrt(1 / 12))


def _draw(random, num_videos):
    """Questions of videos of 1-9 questions each, whose difficulty differs: the truth is 0.6."""
    sizes = random.integers(1, 10, num_videos)
    easy = random.beta(1.2, 0.8, num_videos)
    groups = np.repeat(np.arange(num_videos), sizes)
    return (random.random(len(groups)) < easy[groups]).astype(float), groups.tolist()


@pytest.mark.parametrize("num_videos", [15, 120])
def test_the_interval_covers_the_truth_as_often_as_it_says(num_videos):
    random = np.random.default_rng(7)
    covered, naive, draws = 0, 0, 1500
    for _ in range(draws):
        values, groups = _draw(random, num_videos)
        found = clustered_estimate(values, groups)
        covered += found.low <= 0.6 <= found.high
        alone = clustered_estimate(values, range(len(values)))
        naive += alone.low <= 0.6 <= alone.high
    # Three standard errors of a share of 1500 draws are 0.017.
    assert 0.933 <= covered / draws <= 0.975
    assert naive / draws < 0.88


def test_the_bootstrap_covers_the_truth():
    random = np.random.default_rng(3)
    covered, draws = 0, 400
    for seed in range(draws):
        values, groups = _draw(random, 80)
        low, high = bootstrap_interval(values, groups, num_draws=400, seed=seed)
        covered += low <= 0.6 <= high
    assert 0.91 <= covered / draws <= 0.98


def test_the_bootstrap_is_seeded_and_draws_whole_videos():
    values, groups = [1, 1, 1, 0, 0, 0], list("aaabbb")
    assert bootstrap_interval(values, groups) == bootstrap_interval(values, groups)
    assert bootstrap_interval(values, groups) == (0.0, 1.0)  # aa, ab or bb: nothing in between
    low, high = bootstrap_interval(values, list("uvwxyz"))
    assert 0.0 < low + 0.01 < high - 0.01 < 1.0
    assert math.isnan(bootstrap_interval([1, 0], ["v", "v"])[0])


@pytest.mark.parametrize(
    ("first", "second", "p_value"),
    [
        (0, 0, 1.0),
        (1, 5, 2 * (1 + 6) / 2**6),
        (5, 1, 2 * (1 + 6) / 2**6),
        (4, 4, 1.0),
        (0, 10, 2 / 2**10),
        (3, 12, 2 * (1 + 15 + 105 + 455) / 2**15),
    ],
)
def test_exact_mcnemar(first, second, p_value):
    assert mcnemar_exact(first, second) == pytest.approx(p_value, rel=1e-12)


def test_holm_never_lets_a_larger_p_value_come_out_smaller():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []
    assert holm([0.9, 0.8]) == [1.0, 1.0]


def test_intraclass_correlation():
    # Two videos of two: means 1 and 0, B = 4 * 1/4 / 1 = 1, W = 0 -> 1.
    assert intraclass_correlation([1, 1, 0, 0], list("aabb")) == 1.0
    # Means 1/2 and 1/2: B = 0, W = 4 * 1/4 / 2 = 1/2, negative -> 0.
    assert intraclass_correlation([1, 0, 1, 0], list("aabb")) == 0.0
    # a: 1 1 0, b: 0 0 1. B = 6 * (1/6)**2 / 1 = 1/6, W = (2/3 + 2/3) / 4 = 1/3, m0 = 3: < 0 -> 0.
    assert intraclass_correlation([1, 1, 0, 0, 0, 1], list("aaabbb")) == 0.0
    # a: 1 1 1 0, b: 0 0 0 1: B = 8 / 16 = 1/2, W = (3/4 + 3/4) / 6 = 1/4, m0 = 4: (1/4) / (5/4) = 1/5.
    assert intraclass_correlation([1, 1, 1, 0, 0, 0, 0, 1], list("aaaabbbb")) == pytest.approx(0.2)
    assert math.isnan(intraclass_correlation([1, 0], ["a", "b"]))


def test_lengths_must_agree():
    with pytest.raises(ValueError, match="2 values, 1 groups"):
        clustered_estimate([1, 0], ["a"])
