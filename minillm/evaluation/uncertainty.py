"""How far a score depends on the prompts it happened to be measured on: the bootstrap over prompts (scipy's).

A value per prompt is its mean over the generation seeds: answers to the same prompt are no independent evidence.
Several benchmarks count the same each, and the prompts of each are drawn again by themselves.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

RESAMPLES = 2000
CONFIDENCE = 0.95
DRAWN_AT_ONCE = 1 << 22
"""Prompts drawn at once, over all of their resamples, so that memory stays small."""

Values = Sequence[NDArray[np.float64]]
"""One value per prompt (n,) for each benchmark."""


@dataclass(frozen=True)
class Estimate:
    """A mean and what it may be on other prompts of the same kind."""

    value: float
    low: float | None
    """Lower end of the 95 % percentile interval; None where a benchmark has a single prompt."""
    high: float | None
    p_value: float | None
    """Two-sided, of the mean being zero."""


def estimate(values: Values) -> Estimate:
    """The mean over benchmarks of the mean over prompts, with its interval.

    Args:
        values: Scores of a method, or differences of two on the same prompts, which makes it a paired bootstrap.
    """
    value = float(_mean_of_means(*values))
    if min(len(group) for group in values) < 2:
        return Estimate(value, None, None, None)
    result = stats.bootstrap(
        tuple(values),
        _mean_of_means,
        n_resamples=RESAMPLES,
        batch=max(1, DRAWN_AT_ONCE // max(len(group) for group in values)),
        vectorized=True,
        confidence_level=CONFIDENCE,
        method="percentile",
        rng=np.random.default_rng(0),
    )
    low, high = (float(end) for end in result.confidence_interval)
    as_far = np.abs(result.bootstrap_distribution - value) >= abs(value)
    return Estimate(value, low, high, float((1 + as_far.sum()) / (1 + RESAMPLES)))


def interval(
    parts: NDArray[np.float64], statistic: Callable[[NDArray[np.float64]], NDArray[np.float64]]
) -> tuple[float | None, float | None]:
    """95 % interval of what is computed from sums over prompts; without ends with a single prompt.

    It is the basic one, which reflects the bootstrap's distribution at the value: a statistic that comes out too high
    on a sample, as an expected calibration error does, comes out as much too high again on draws from that sample, and
    percentiles would lie above the truth.

    Args:
        parts: What each of n prompts adds to the sums (n, *S).
        statistic: From sums (..., *S) to values (...).
    """
    if len(parts) < 2:
        return None, None

    def of_drawn(prompts: NDArray[np.int64], axis: int) -> NDArray[np.float64]:
        times = np.apply_along_axis(np.bincount, axis, prompts, minlength=len(parts))
        return statistic(np.tensordot(times, parts, axes=(axis, 0)))

    result = stats.bootstrap(
        (np.arange(len(parts)),),
        of_drawn,
        n_resamples=RESAMPLES,
        batch=max(1, DRAWN_AT_ONCE // len(parts)),
        vectorized=True,
        confidence_level=CONFIDENCE,
        method="basic",
        rng=np.random.default_rng(0),
    )
    return float(result.confidence_interval.low), float(result.confidence_interval.high)


def adjusted(p_values: Sequence[float]) -> list[float]:
    """p-values of several comparisons at once, after Benjamini and Hochberg."""
    return stats.false_discovery_control(p_values).tolist() if len(p_values) else []


def _mean_of_means(*groups: NDArray[np.float64], axis: int = -1) -> NDArray[np.float64]:
    return np.mean([group.mean(axis=axis) for group in groups], axis=0)
