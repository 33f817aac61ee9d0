"""Whether a model is right as often as it is sure: predictions by their confidence, and how far the two are apart.

Everything here is made of sums over predictions, so that prompts can be added up, or drawn again by the bootstrap.
"""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from minillm.evaluation.uncertainty import interval

BINS = 15
"""Of equal width, as in Guo et al. (arXiv 1706.04599)."""

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
    number, confidence, correct = np.moveaxis(sums, -2, 0)
    return np.abs(correct - confidence).sum(axis=-1) / number.sum(axis=-1)


def reliability(parts: Sums) -> dict[str, Any]:
    """Calibration error with its 95 % interval over prompts, and the sums over all of them, for JSON.

    Args:
        parts: Sums of each prompt (n, 3, BINS).
    """
    sums = parts.sum(axis=0)
    ends = [None if end is None else max(0.0, end) for end in interval(parts, calibration_error)]
    return {"ece": {"value": float(calibration_error(sums)), "interval": ends}, "bins": sums.tolist()}
