"""Calibration error by hand, on the edges of bins, and of predictions drawn to be calibrated."""

import numpy as np
import pytest

from minillm.evaluation.reliability import BINS, binned, calibration_error, reliability


def one_by_one(confidence, correct):
    """Sums of prompts with one prediction each."""
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


def test_intervals_hold_the_truth_although_few_prompts_make_the_error_larger():
    """Of 60 samples of 400 predictions that are 0.03 too sure: a sample's error is larger, its interval is not."""
    draw = np.random.default_rng(2)
    values, held = [], 0
    for _ in range(60):
        confidence = draw.uniform(0.3, 1, 400)
        found = reliability(one_by_one(confidence, draw.random(400) < confidence - 0.03))["ece"]
        values.append(found["value"])
        held += found["interval"][0] <= 0.03 <= found["interval"][1]
    assert np.mean(values) > 0.05
    assert held >= 45


def test_an_interval_ends_at_zero_and_needs_two_prompts():
    draw = np.random.default_rng(3)
    samples = [draw.uniform(0.3, 1, 60) for _ in range(10)]
    low = [reliability(one_by_one(sure, draw.random(60) < sure))["ece"]["interval"][0] for sure in samples]
    assert min(low) == 0.0
    assert reliability(one_by_one([0.4], [1]))["ece"] == {"value": pytest.approx(0.6), "interval": [None, None]}
