"""Calibration error by hand, at the edges of bins, and for predictions drawn to be calibrated."""

import numpy as np
import pytest

from minillm.evaluation.reliability import BINS, binned, calibration_error, calibration_interval, reliability


def one_by_one(confidence, correct):
    """Return the sums of prompts with one prediction each."""
    return np.stack([binned([sure], [right]) for sure, right in zip(confidence, correct, strict=True)])


def test_calibration_error_by_hand():
    # Width 1/15. 0.90 and 0.92 share (13/15, 14/15]: means 0.91 and 1/2, off by 0.41; 0.50 is alone in (7/15, 8/15] and
    # right, off by 0.50; 0.30 in (4/15, 5/15] and wrong, off by 0.30. (2·0.41 + 0.50 + 0.30) / 4
    sums = binned([0.90, 0.92, 0.50, 0.30], [1, 0, 1, 0])
    assert float(calibration_error(sums)) == pytest.approx((2 * 0.41 + 0.50 + 0.30) / 4)
    assert sums[0].tolist() == [0, 0, 0, 0, 1, 0, 0, 1, 0, 0, 0, 0, 0, 2, 0]
    assert sums[:, 13] == pytest.approx([2, 1.82, 1])


def test_errors_of_opposite_sign_cancel_within_a_bin_only():
    assert float(calibration_error(binned([0.9, 0.9], [1, 0]))) == pytest.approx(0.4)
    assert float(calibration_error(binned([0.6, 0.4], [1, 0]))) == pytest.approx(0.4), "two bins: nothing cancels"


def test_a_bin_holds_its_upper_edge_and_the_first_zero_too():
    edges = np.arange(BINS + 1) / BINS
    place = [int(binned([edge], [1])[0].argmax()) for edge in edges]
    assert place == [0, *range(BINS)]
    assert int(binned([np.nextafter(edges[3], 1)], [1])[0].argmax()) == 3
    assert int(binned([1 + 1e-7], [1])[0].argmax()) == BINS - 1, "rounding may lift a probability above 1"


def test_calibrated_predictions_have_hardly_any_error_and_overconfident_ones_theirs():
    draw = np.random.default_rng(0)
    confidence = draw.uniform(0.25, 1, 200_000)
    correct = draw.random(200_000) < confidence
    assert float(calibration_error(binned(confidence, correct))) < 0.005
    assert float(calibration_error(binned(confidence, draw.random(200_000) < confidence - 0.2))) == pytest.approx(
        0.2, abs=0.005
    )


def test_sums_add_up_over_prompts():
    draw = np.random.default_rng(1)
    confidence, correct = draw.random(500), draw.random(500) < 0.5
    found = reliability(one_by_one(confidence, correct))
    np.testing.assert_allclose(found["bins"], binned(confidence, correct))
    assert found["ece"]["value"] == pytest.approx(float(calibration_error(binned(confidence, correct))))


def samples(number, prompts, right):
    """Yield sums of prompts with uniform confidence, each right with the probability that `right` gives for it."""
    draw = np.random.default_rng(2)
    for _ in range(number):
        confidence = draw.uniform(0.3, 1, prompts)
        yield one_by_one(confidence, draw.random(prompts) < right(confidence))


def error_of(right):
    confidence = np.linspace(0.3, 1, 100_001)[1:]
    return float(calibration_error(binned(confidence, right(confidence))))


@pytest.mark.parametrize("prompts", [100, 300, 1000])
@pytest.mark.parametrize(
    "right",
    [
        pytest.param(lambda sure: sure, id="calibrated"),
        pytest.param(lambda sure: sure - 0.03, id="a little too sure"),
        pytest.param(lambda sure: 0.25 + 0.7 * (sure - 0.25), id="too sure the surer it is"),
        pytest.param(lambda sure: np.where(sure > 0.9, sure - 0.15, sure), id="too sure at the top"),
    ],
)
def test_intervals_hold_the_truth_although_a_sample_has_a_larger_error(prompts, right):
    """95 % of 60 samples are 57; fewer than 53 occur in two of a hundred thousand sets of samples."""
    truth = error_of(right)
    found = [reliability(parts)["ece"] for parts in samples(60, prompts, right)]
    assert np.mean([of["value"] for of in found]) > truth
    assert all(of["interval"][0] <= of["value"] <= of["interval"][1] for of in found)
    assert sum(of["interval"][0] <= truth + 1e-4 and truth <= of["interval"][1] for of in found) >= 53


def test_answers_of_one_prompt_are_no_independent_evidence():
    """Ten tokens per prompt that are all right or all wrong are as uncertain as one token per prompt."""
    draw = np.random.default_rng(4)
    confidence = draw.uniform(0.3, 1, 200)
    parts = one_by_one(confidence, draw.random(200) < confidence)
    assert calibration_interval(10 * parts) == pytest.approx(calibration_interval(parts))


def test_an_interval_of_a_calibrated_model_ends_at_zero():
    assert sum(reliability(parts)["ece"]["interval"][0] == 0.0 for parts in samples(20, 60, lambda sure: sure)) >= 17


def test_a_lucky_sample_does_not_prove_that_there_is_no_error():
    """Half of forty predictions are right at a confidence of 1/2, with a standard error of √(1/4 / 40) = 0.079."""
    low, high = calibration_interval(one_by_one([0.5] * 40, [1, 0] * 20))
    assert low == 0.0
    # 97.5 % of normal numbers are within 2.24 standard errors; 2,000 draws find that to 2.4 %.
    assert high == pytest.approx(2.24 * 0.079, rel=4 * 0.024)


def test_two_prompts_or_prompts_all_alike_have_no_interval():
    assert reliability(one_by_one([0.4], [1]))["ece"] == {"value": pytest.approx(0.6), "interval": [None, None]}
    assert calibration_interval(one_by_one([0.4, 0.7], [1, 0])) == (None, None)
    assert calibration_interval(one_by_one([0.4] * 50, [1] * 50)) == (None, None)
