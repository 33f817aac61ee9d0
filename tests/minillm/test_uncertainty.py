"""Bootstrap intervals and p-values against what can be enumerated or computed by hand."""

import itertools

import numpy as np
import pytest
from scipy import stats

from minillm.evaluation.uncertainty import adjusted, estimate, interval, paired_interval


def bounds(values):
    """Lower and upper end and p-value, which are there."""
    found = estimate(values)
    assert found.low is not None
    assert found.high is not None
    assert found.p_value is not None
    return found.low, found.high, found.p_value


def test_a_small_sample_agrees_with_all_its_resamples():
    values = np.array([1.0, 2.0, 4.0, 9.0])
    means = np.array([np.mean(drawn) for drawn in itertools.product(values, repeat=4)])  # all 256
    assert estimate([values - 3]).value == pytest.approx(1.0)
    low, high, p_value = bounds([values - 3])
    assert low == pytest.approx(np.quantile(means, 0.025) - 3, abs=0.26)  # means are a quarter apart
    assert high == pytest.approx(np.quantile(means, 0.975) - 3, abs=0.26)
    assert p_value == pytest.approx(np.mean(np.abs(means - 4) >= 1), abs=0.03)


def test_a_large_sample_agrees_with_the_normal_interval():
    values = np.random.default_rng(1).normal(50, 10, 900)
    low, high, p_value = bounds([values])
    reach = 1.96 * values.std(ddof=1) / 30
    assert low == pytest.approx(values.mean() - reach, abs=0.1 * reach)
    assert high == pytest.approx(values.mean() + reach, abs=0.1 * reach)
    assert p_value == pytest.approx(1 / 2001)


def test_benchmarks_count_the_same_whatever_their_size():
    draw = np.random.default_rng(2)
    large, small = draw.normal(0, 1, 4000), draw.normal(10, 1, 50)
    low, high, _ = bounds([large, small])
    assert estimate([large, small]).value == pytest.approx((large.mean() + small.mean()) / 2)
    # The standard error is that of half of each: the small one's decides.
    reach = 1.96 * np.hypot(large.std(ddof=1) / 4000**0.5, small.std(ddof=1) / 50**0.5) / 2
    assert high - low == pytest.approx(2 * reach, rel=0.1)


def test_pairs_find_what_separate_intervals_hide():
    draw = np.random.default_rng(3)
    difficulty = draw.normal(40, 20, 200)
    first, second = difficulty + draw.normal(1, 1, 200), difficulty + draw.normal(0, 1, 200)
    assert bounds([first])[0] < bounds([second])[1]  # each alone: they overlap
    low, _, p_value = bounds([first - second])
    assert low > 0
    assert p_value < 0.01
    assert bounds([first - first]) == (0.0, 0.0, 1.0)


def test_a_ratio_of_means_agrees_with_all_resamples_of_its_pairs():
    pairs = np.array([[3.0, 1.0], [4.0, 2.0], [9.0, 3.0], [2.0, 5.0]])

    def ratio(first, second, axis):
        return first.mean(axis=axis) / second.mean(axis=axis)

    ratios = [ratio(*np.transpose(drawn), axis=-1) for drawn in itertools.product(pairs, repeat=4)]  # all 256
    found = paired_interval(ratio, pairs[:, 0], pairs[:, 1])
    assert found is not None
    assert np.allclose(found, np.quantile(ratios, [0.025, 0.975]), rtol=0.02)
    # Several statistics at once are each what it is alone.
    several = paired_interval(ratio, np.stack([pairs[:, 0], 2 * pairs[:, 0]]), np.stack([pairs[:, 1]] * 2))
    assert several is not None
    assert np.allclose(several, [[end, 2 * end] for end in found])
    assert paired_interval(ratio, pairs[:1, 0], pairs[:1, 1]) is None


def test_one_prompt_has_no_interval():
    found = estimate([np.array([3.0]), np.array([1.0, 2.0])])
    assert (found.value, found.low, found.high, found.p_value) == (2.25, None, None, None)


def test_adjustment_by_hand():
    # sorted .01 .03 .04: .01·3/1, .03·3/2, .04·3/3, then never above a later one
    assert adjusted([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.04, 0.04])
    assert adjusted([]) == []


def test_the_interval_of_a_mean_is_the_percentile_one_reflected():
    values = np.array([1.0, 2.0, 4.0, 9.0])
    low, high, _ = bounds([values])
    reflected = interval(values[:, None], lambda sums: sums[..., 0] / 4)
    assert reflected == (pytest.approx(2 * 4 - high), pytest.approx(2 * 4 - low))


def test_a_ratio_of_sums_is_drawn_with_both_its_parts():
    """Loss per token: prompts of few tokens that are dear, and of many that are cheap."""
    draw = np.random.default_rng(4)
    tokens = draw.integers(1, 30, 200)
    parts = np.stack([20 + draw.normal(0, 2, 200) + 0.5 * tokens, tokens], axis=1, dtype=float)
    draws = draw.integers(200, size=(4000, 200))
    value = parts[:, 0].sum() / parts[:, 1].sum()
    ratios = parts[draws].sum(axis=1)[:, 0] / parts[draws].sum(axis=1)[:, 1]
    low, high = interval(parts, lambda sums: sums[..., 0] / sums[..., 1])
    assert low is not None
    assert high is not None
    assert low == pytest.approx(2 * value - np.quantile(ratios, 0.975), abs=0.03)
    assert high == pytest.approx(2 * value - np.quantile(ratios, 0.025), abs=0.03)
    assert high - low > 0.2
    assert interval(parts[:1], lambda sums: sums[..., 0]) == (None, None)


def test_where_training_seeds_decide_three_of_them_are_little_evidence():
    by_seed = np.array([[1.0], [2.0], [3.0]])
    values = [np.tile(by_seed, (1, 50)), np.tile(by_seed, (1, 4))]
    assert estimate(values).value == pytest.approx(2.0)
    low, high, p_value = bounds(values)
    # Student's t with 2 degrees of freedom: 97.5 % lie below 4.303, and the standard error is √(1/3).
    assert (low, high) == (pytest.approx(2 - 4.303 * 3**-0.5, abs=1e-3), pytest.approx(2 + 4.303 * 3**-0.5, abs=1e-3))
    assert p_value == pytest.approx(0.0742, abs=1e-4)


def test_where_training_seeds_agree_prompts_decide():
    by_prompt = np.random.default_rng(5).normal(1, 10, 40)
    low, high, p_value = bounds([np.tile(by_prompt, (3, 1))])
    error = by_prompt.std(ddof=1) / 40**0.5
    reach = stats.t.ppf(0.975, 39) * error
    assert (low, high) == pytest.approx((by_prompt.mean() - reach, by_prompt.mean() + reach))
    assert p_value == pytest.approx(2 * stats.t.sf(abs(by_prompt.mean()) / error, 39))


def test_one_training_seed_is_the_bootstrap_over_prompts():
    by_prompt = np.random.default_rng(6).normal(0, 1, 30)
    assert estimate([by_prompt[None]]) == estimate([by_prompt])


def test_training_seeds_that_all_agree_exactly_leave_no_doubt():
    assert estimate([np.zeros((3, 5))]).p_value == 1.0
    assert estimate([np.full((3, 5), 2.0)]).p_value == 0.0
    assert estimate([np.ones((3, 1))]).low is None, "a single prompt tells nothing of others"
