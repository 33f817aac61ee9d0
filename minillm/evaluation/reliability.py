"""Whether a model is right as often as it is sure: predictions by their confidence, and how far the two are apart.

Everything here is made of sums over predictions, so that prompts can be added up.
"""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import brentq

from minillm.evaluation.uncertainty import CONFIDENCE, FEWEST
from minillm.streams import Purpose, generator, stream

BINS = 15
"""Of equal width, as in Guo et al. (arXiv 1706.04599)."""
DRAWS = 2000
CLEARLY_OFF = 2.0
"""Standard errors that a bin must be off by for its error not to be put down to chance."""

Sums = NDArray[np.float64]
"""(..., 3, BINS): in each bin the number of predictions, the sum of their confidences, and how many are right."""


def binned(confidence: ArrayLike, correct: ArrayLike) -> Sums:
    """Sums (3, BINS) of predictions; bin b holds those with b/BINS < confidence ≤ (b+1)/BINS, and the first 0 too.

    Args:
        confidence: Probability that the model gives what it predicts (n,).
        correct: Whether that is right (n,).
    """
    confidence, correct = np.asarray(confidence, float), np.asarray(correct, float)
    place = np.digitize(confidence, np.arange(1, BINS) / BINS, right=True)
    sums = [np.bincount(place, weights, BINS) for weights in (np.ones_like(confidence), confidence, correct)]
    return np.stack(sums, dtype=np.float64)


def calibration_error(sums: Sums) -> NDArray[np.float64]:
    """Expected calibration error (...): Σ_b n_b/N·|share right in b − mean confidence in b|, from 0 to 1."""
    return np.abs(_gaps(sums)).sum(axis=-1)


def calibration_interval(parts: Sums) -> tuple[float | None, float | None]:
    """95 % interval of the calibration error; without ends for too few prompts, or where all are alike.

    The error of a sample is too large: chance puts every bin off, and absolute values never cancel. By how much
    depends on where the true error is, so an interval holds the errors with which the sample's is no surprise: from
    below, with all of it in the bins that are clearly off, where chance adds most; from above, with it spread over all
    bins as chance is, where chance adds least. Chance is normal, with the covariance of the bins over prompts.

    A sample that is luckier than chance allows even without any error would rule out all of them. What it then says is
    how closely it could have looked: the interval ends where chance alone would have reached.

    Args:
        parts: Sums of each prompt (n, 3, BINS).
    """
    sums = parts.sum(axis=0)
    gaps, found = _gaps(sums), float(calibration_error(sums))  # (BINS,)
    # A prompt adds to the gaps and to the number of predictions that they are divided by.
    numbers = parts[:, 0].sum(axis=-1, keepdims=True)
    shares = ((parts[:, 2] - parts[:, 1]) - gaps * numbers) / sums[0].sum()  # (n, BINS)
    covariance = shares.T @ shares * len(parts) / max(1, len(parts) - 1)
    errors = np.sqrt(np.diag(covariance))  # (BINS,)
    errors[errors < 1e-12] = 0  # prompts that are alike differ by their rounding
    if len(parts) < FEWEST or not errors.any():
        return None, None
    noise = generator(stream(Purpose.CALIBRATION_NOISE, 0)).multivariate_normal(
        np.zeros(BINS), covariance, DRAWS, method="eigh"
    )
    # Where no bin is clearly off, it is put into the one that says least.
    off = np.abs(gaps) > CLEARLY_OFF * errors
    where_clear = np.where(off, gaps, 0.0) if off.any() else (np.arange(BINS) == errors.argmax()).astype(float)
    spread = np.where(gaps < 0, -errors, errors)
    low = _error_with_quantile(found, (1 + CONFIDENCE) / 2, where_clear, noise)
    chance = np.quantile(np.abs(noise).sum(axis=-1), [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])  # without any error
    high = _error_with_quantile(found, (1 - CONFIDENCE) / 2, spread, noise) if found > chance[0] else float(chance[1])
    return low, min(1.0, max(found, high))


def reliability(parts: Sums) -> dict[str, Any]:
    """Calibration error with its 95 % interval over prompts, and the sums over all of them, for JSON.

    Args:
        parts: Sums of each prompt (n, 3, BINS).
    """
    sums = parts.sum(axis=0)
    ends = list(calibration_interval(parts))
    return {"ece": {"value": float(calibration_error(sums)), "interval": ends}, "bins": sums.tolist()}


def _gaps(sums: Sums) -> NDArray[np.float64]:
    """n_b/N·(share right in b − mean confidence in b) of each bin (..., BINS)."""
    number, confidence, correct = np.moveaxis(sums, -2, 0)
    return (correct - confidence) / number.sum(axis=-1, keepdims=True)


def _error_with_quantile(
    found: float, quantile: float, direction: NDArray[np.float64], noise: NDArray[np.float64]
) -> float:
    """The true error of whose samples this share have a smaller one than was found; 0 if none is so small.

    Args:
        found: Calibration error of the sample.
        quantile: That share.
        direction: How the true error is spread over bins (BINS,).
        noise: What chance adds to the gaps (DRAWS, BINS).
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
