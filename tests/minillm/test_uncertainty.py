"""Intervals and p-values against values enumerated or computed by hand, and how often they are right."""

import itertools
from typing import Any

import numpy as np
import pytest
from scipy import stats

from minillm.evaluation.uncertainty import (
    adjusted,
    difference_of_ratios,
    estimate,
    interval,
    paired_estimate,
    pseudo_values,
    ratio_of_sums,
    sign_flip_test,
)


def bounds(found):
    """Return the lower and upper end, which must exist."""
    assert found.low is not None
    assert found.high is not None
    return found.low, found.high


def test_an_interval_of_one_benchmark_is_students():
    values = np.array([11.0, 12.0, 14.0, 19.0, 24.0])
    found = estimate([values])
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert found.value == 16.0
    assert bounds(found) == pytest.approx((expected.low, expected.high))
    assert found.p_value is None, "a score is no difference"


def test_the_interval_of_a_score_stays_on_its_scale():
    assert bounds(estimate([np.array([0.0, 0, 0, 0, 100])]))[0] == 0.0
    assert bounds(estimate([np.array([100.0, 100, 100, 100, 0])]))[1] == 100.0
    assert bounds(paired_estimate([np.array([0.0, 0, 0, 0, 100])]))[0] < 0.0


def test_benchmarks_count_the_same_whatever_their_size():
    draw = np.random.default_rng(2)
    large, small = draw.normal(40, 1, 4000), draw.normal(50, 1, 50)
    found = estimate([large, small])
    assert found.value == pytest.approx((large.mean() + small.mean()) / 2)
    # The difference of two means has the same spread as half their sum twice: scipy's Welch interval.
    low, high = bounds(found)
    welch = stats.ttest_ind(large, -small, equal_var=False).confidence_interval(0.95)
    assert high - low == pytest.approx((welch.high - welch.low) / 2)


def test_pairs_find_what_separate_intervals_hide():
    draw = np.random.default_rng(3)
    difficulty = draw.normal(40, 10, 200)
    first, second = difficulty + draw.normal(1, 1, 200), difficulty + draw.normal(0, 1, 200)
    assert bounds(estimate([first]))[0] < bounds(estimate([second]))[1]  # each alone: they overlap
    found = paired_estimate([first - second])
    assert bounds(found)[0] > 0
    assert found.p_value == pytest.approx(1 / 10_000), "none of 9,999 draws of signs is as far"


def test_a_p_value_is_the_share_of_signs_that_reach_as_far():
    by_hand = [3.0, 1.0, -0.5, 2.0]
    sums = [abs(np.dot(signs, by_hand)) for signs in itertools.product([-1, 1], repeat=4)]  # all 16
    assert sign_flip_test([np.array(by_hand)]) == np.mean(np.array(sums) >= 5.5) == 4 / 16
    draw = np.random.default_rng(4)
    values = draw.normal(0.3, 1, 60)
    exact = stats.permutation_test(
        (values,), np.mean, permutation_type="samples", n_resamples=20_000, rng=np.random.default_rng(5)
    )
    assert sign_flip_test([values]) == pytest.approx(exact.pvalue, abs=0.01)


def test_signs_of_several_benchmarks_weigh_as_their_means_do():
    first, second = np.array([1.0, 2.0]), np.array([3.0, -1.0, 4.0, 2.0])
    means = [np.mean(first * signs[:2]) + np.mean(second * signs[2:]) for signs in itertools.product([-1, 1], repeat=6)]
    assert sign_flip_test([first, second]) == np.mean(np.abs(means) >= 3.5 - 1e-12)


def test_few_prompts_cannot_tell_and_equal_answers_do_not_differ():
    assert paired_estimate([np.full(5, 7.0)]).p_value == 2 / 2**5
    assert paired_estimate([np.array([7.0])]).p_value == 1.0
    assert paired_estimate([np.zeros(400)]).p_value == 1.0


@pytest.mark.parametrize("values", [np.array([1.0, 4.0]), np.full(50, 0.1), np.zeros(50)])
def test_two_prompts_or_equal_values_have_no_interval(values):
    for found in (estimate([values]), paired_estimate([values])):
        assert (found.value, found.low, found.high) == (pytest.approx(values.mean()), None, None)


def test_a_mean_has_an_interval_if_each_benchmark_has_prompts_enough():
    assert estimate([np.arange(20.0), np.arange(2.0)]).low is None
    assert estimate([np.arange(20.0), np.arange(3.0)]).low is not None
    assert estimate([np.arange(20.0), np.full(5, 50.0)]).low is not None, "one of them varies"


def test_a_ratio_of_sums_is_the_sum_of_its_linear_shares():
    """A loss per token, where texts of few tokens cost more per token, against the delta method by hand."""
    draw = np.random.default_rng(6)
    tokens = draw.integers(1, 30, 200).astype(float)
    nats = 20 + draw.normal(0, 2, 200) + 0.5 * tokens
    found = ratio_of_sums([np.stack([nats, tokens])])
    assert found.value == pytest.approx(nats.sum() / tokens.sum())
    residual = (nats - found.value * tokens) / tokens.mean()
    reach = 1.972 * residual.std(ddof=1) / 200**0.5  # t of 199 degrees
    assert bounds(found) == pytest.approx((found.value - reach, found.value + reach), rel=0.01)


def test_two_ratios_on_the_same_prompts_are_paired():
    draw = np.random.default_rng(7)
    whole = draw.uniform(5, 10, 100)
    better, worse = (np.stack([whole * share + draw.normal(0, 0.2, 100), whole]) for share in (0.8, 0.75))
    found = difference_of_ratios([better], [worse])
    assert found.value == pytest.approx(better[0].sum() / whole.sum() - worse[0].sum() / whole.sum())
    assert 0 < bounds(found)[0] < 0.05 < bounds(found)[1]
    assert found.p_value == pytest.approx(1 / 10_000)
    assert difference_of_ratios([better], [better]).p_value == 1.0


def test_several_statistics_at_once_are_each_what_it_is_alone():
    draw = np.random.default_rng(8)
    parts = draw.uniform(1, 2, (30, 2))
    both = interval(parts, lambda means: np.stack([means[..., 0], means[..., 0] / means[..., 1]], axis=-1))
    assert both is not None
    mean = stats.ttest_1samp(parts[:, 0], 0).confidence_interval(0.95)
    ratio = ratio_of_sums([parts.T])
    np.testing.assert_allclose(np.transpose(both), [[mean.low, mean.high], bounds(ratio)])
    assert interval(parts[:2], lambda means: means) is None


def test_pseudo_values_of_a_mean_are_the_values():
    values = np.array([[1.0], [5.0], [9.0]])
    np.testing.assert_allclose(pseudo_values(values, lambda means: means), values)


def test_adjustment_by_hand():
    # Holm: .01·3, then .03·2, then .04·1, never below an earlier one.
    assert adjusted([0.01, 0.04, 0.03], [0, 0, 0]) == pytest.approx([0.03, 0.06, 0.06])
    # Each in a family of its own; entries without a p-value are not counted as comparisons.
    assert adjusted([0.01, None, 0.04, 0.03], "abba") == pytest.approx([0.02, None, 0.04, 0.03])
    assert adjusted([0.9, 0.8], [0, 0]) == [1.0, 1.0]
    assert adjusted([], []) == []


def test_where_training_seeds_decide_three_of_them_are_little_evidence():
    by_seed = np.array([[1.0], [2.0], [3.0]])
    found = paired_estimate([np.tile(by_seed, (1, 50)), np.tile(by_seed, (1, 5))])
    assert found.value == pytest.approx(2.0)
    # Student's t with 2 degrees of freedom: 97.5 % lie below 4.303, and the standard error is √(1/3).
    reach = 4.303 * 3**-0.5
    assert bounds(found) == (pytest.approx(2 - reach, abs=1e-3), pytest.approx(2 + reach, abs=1e-3))
    assert found.p_value == pytest.approx(0.0742, abs=1e-4)


def test_where_training_seeds_agree_prompts_decide():
    by_prompt = np.random.default_rng(5).normal(1, 10, 40)
    found = paired_estimate([np.tile(by_prompt, (3, 1))])
    expected: Any = stats.ttest_1samp(by_prompt, 0)
    assert bounds(found) == pytest.approx(tuple(expected.confidence_interval(0.95)))
    assert found.p_value == pytest.approx(expected.pvalue)


def test_one_training_seed_is_the_estimate_over_prompts():
    by_prompt = np.random.default_rng(6).normal(0, 1, 30)
    assert paired_estimate([by_prompt[None]]) == paired_estimate([by_prompt])


def test_training_seeds_that_all_agree_exactly_say_nothing_of_others():
    same, apart = paired_estimate([np.zeros((3, 5))]), paired_estimate([np.full((3, 5), 2.0)])
    assert (same.low, same.p_value) == (None, 1.0)
    assert (apart.value, apart.low, apart.p_value) == (2.0, None, None)
    assert paired_estimate([np.ones((3, 1))]).low is None, "a single prompt tells nothing of others"


SKEWED = {
    "few good answers": (lambda draw, size: 100 * draw.beta(1.2, 4, size), 100 * 1.2 / 5.2),
    "many zeros": (lambda draw, size: np.where(draw.random(size) < 0.4, 0, 100 * draw.beta(2, 3, size)), 24.0),
}
"""Laws of scores like Rouge-L's on short and on long references, with their means."""


@pytest.mark.parametrize(("prompts", "least"), [(3, 0.90), (5, 0.90), (10, 0.92), (20, 0.93), (100, 0.94)])
@pytest.mark.parametrize("name", SKEWED)
def test_intervals_hold_the_mean_of_skewed_scores(name, prompts, least):
    scores, mean = SKEWED[name]
    samples = scores(np.random.default_rng(9), (2000, prompts))
    found = [estimate([sample]) for sample in samples]
    there = [of for of in found if of.low is not None]
    assert len(there) > (1950 if prompts > 3 else 1800), "the others are zero throughout"
    held = np.mean([bounds(of)[0] <= mean <= bounds(of)[1] for of in there])
    assert least <= held <= 0.975


@pytest.mark.parametrize("prompts", [5, 10, 20, 100])
def test_equal_methods_rarely_differ(prompts):
    """Two methods answer equally well, 800 times: with a rate of 5 %, 7 % is reached once in two hundred draws."""
    draw = np.random.default_rng(10)
    scores = SKEWED["many zeros"][0]
    p_values = [sign_flip_test([scores(draw, prompts) - scores(draw, prompts)]) for _ in range(800)]
    assert np.mean(np.array(p_values) < 0.05) <= 0.07


def test_a_ratio_of_few_prompts_holds_the_true_one():
    draw, held = np.random.default_rng(11), 0
    for _ in range(1000):
        whole = draw.uniform(4, 10, 10)
        part = whole * draw.beta(4, 2, 10)
        low, high = bounds(ratio_of_sums([np.stack([part, whole])]))
        held += low <= 4 / 6 <= high
    assert 925 <= held <= 975
