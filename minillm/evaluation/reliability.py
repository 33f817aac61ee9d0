"""Calibration: predictions binned by confidence, and the gap between confidence and accuracy.

Everything here is computed from sums over predictions, so that the sums of prompts can be added up.
"""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import brentq

from minillm.evaluation.uncertainty import CONFIDENCE, FEWEST
from minillm.streams import Purpose, generator, stream

BINS = 15
"""Number of bins, of equal width, as in Guo et al. (arXiv 1706.04599)."""
DRAWS = 2000
CLEARLY_OFF = 2.0
"""Standard errors by which a bin must be off before its error is more than chance."""

Sums = NDArray[np.float64]
"""Sums by bin (..., 3, BINS): number of predictions, sum of their confidences, number of right ones."""


def binned(confidence: ArrayLike, correct: ArrayLike) -> Sums:
    """Sum predictions by bin (3, BINS); bin b holds b/BINS < confidence ≤ (b+1)/BINS, and the first bin also 0.

    Args:
        confidence: Probability that the model gives to its prediction (n,).
        correct: Whether the prediction is right (n,).
    """
    confidence, correct = np.asarray(confidence, float), np.asarray(correct, float)
    place = np.digitize(confidence, np.arange(1, BINS) / BINS, right=True)
    sums = [np.bincount(place, weights, BINS) for weights in (np.ones_like(confidence), confidence, correct)]
    return np.stack(sums, dtype=np.float64)


def calibration_error(sums: Sums) -> NDArray[np.float64]:
    """Return the expected calibration error (...): Σ_b n_b/N·|share right in b − mean confidence in b|, from 0 to 1."""
    return np.abs(_gaps(sums)).sum(axis=-1)


def calibration_interval(parts: Sums) -> tuple[float | None, float | None]:
    """Return the 95 % interval of the calibration error; (None, None) for too few prompts or if all are alike.

    The error of a sample is too large: chance moves every bin, and absolute values never cancel. The excess depends on
    how the true error is spread over bins. So the interval holds the true errors under which the sample's error is no
    surprise. For the lower end, the true error is all in the bins that are clearly off, where chance adds most; for the
    upper end, it is spread over all bins in proportion to chance, where chance adds least. Chance is taken as normal,
    with the covariance of the bins over prompts.

    A sample whose error is smaller than chance alone would make it rules out every true error, even 0. It then shows
    only how small an error it could have detected: the interval ends at what chance alone would have reached.

    Args:
        parts: Sums of each prompt (n, 3, BINS).
    """
    sums = parts.sum(axis=0)
    gaps, found = _gaps(sums), float(calibration_error(sums))  # (BINS,)
    # A prompt adds to the gaps, and to the number of predictions that they are divided by, as in a ratio.
    numbers = parts[:, 0].sum(axis=-1, keepdims=True)
    shares = ((parts[:, 2] - parts[:, 1]) - gaps * numbers) / sums[0].sum()  # (n, BINS)
    covariance = shares.T @ shares * len(parts) / max(1, len(parts) - 1)
    errors = np.sqrt(np.diag(covariance))  # (BINS,)
    errors[errors < 1e-12] = 0  # prompts that are alike differ by rounding alone
    if len(parts) < FEWEST or not errors.any():
        return None, None
    noise = generator(stream(Purpose.CALIBRATION_NOISE, 0)).multivariate_normal(
        np.zeros(BINS), covariance, DRAWS, method="eigh"
    )
    # If no bin is clearly off, the true error is put into the noisiest bin, which says least.
    off = np.abs(gaps) > CLEARLY_OFF * errors
    where_clear = np.where(off, gaps, 0.0) if off.any() else (np.arange(BINS) == errors.argmax()).astype(float)
    spread = np.where(gaps < 0, -errors, errors)
    low = _error_with_quantile(found, (1 + CONFIDENCE) / 2, where_clear, noise)
    chance = np.quantile(np.abs(noise).sum(axis=-1), [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])  # without any error
    high = _error_with_quantile(found, (1 - CONFIDENCE) / 2, spread, noise) if found > chance[0] else float(chance[1])
    return low, min(1.0, max(found, high))


def reliability(parts: Sums) -> dict[str, Any]:
    """Return the calibration error with its 95 % interval over prompts, and the sums over all prompts, for JSON.

    Args:
        parts: Sums of each prompt (n, 3, BINS).
    """
    sums = parts.sum(axis=0)
    ends = list(calibration_interval(parts))
    return {"ece": {"value": float(calibration_error(sums)), "interval": ends}, "bins": sums.tolist()}


def _gaps(sums: Sums) -> NDArray[np.float64]:
    """Return n_b/N·(share right in b − mean confidence in b) of each bin b (..., BINS)."""
    number, confidence, correct = np.moveaxis(sums, -2, 0)
    return (correct - confidence) / number.sum(axis=-1, keepdims=True)


def _error_with_quantile(
    found: float, quantile: float, direction: NDArray[np.float64], noise: NDArray[np.float64]
) -> float:
    """Find the true error under which samples have `found` as this quantile; 0 if no error is so small.

    Args:
        found: Calibration error of the sample.
        quantile: Share of samples with a smaller error than `found`.
        direction: Spread of the true error over bins (BINS,).
        noise: Draws of what chance adds to the gaps (DRAWS, BINS).
    """
    direction = direction / np.abs(direction).sum()

    def above(error: float) -> float:
        return float(np.quantile(np.abs(error * direction + noise).sum(axis=-1), quantile)) - found

    if above(0.0) >= 0:
        return 0.0
    highest = 1.0
    while above(highest) < 0:
        highest *= 2
    return float(brentq(above, 0.0, highest, xtol=1e-5))  # type: ignore[arg-type]
