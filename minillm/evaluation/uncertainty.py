"""How far a score depends on the prompts it happened to be measured on: the bootstrap over prompts (scipy's).

A value per prompt is its mean over the generation seeds: answers to the same prompt are no independent evidence.
Several benchmarks count the same each, and the prompts of each are drawn again by themselves.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
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


def prompt_scores(scores: pd.DataFrame) -> dict[str, pd.Series]:
    """The score (0–100) of each headline prompt by its index, the mean over seeds, for each benchmark."""
    headline = scores.query("headline")
    return {
        str(name): pd.Series(part.pivot_table(values="score", index="index")["score"], dtype=float) * 100
        for name, part in headline.groupby("benchmark", sort=False)
    }


def prompt_values(scores: pd.DataFrame) -> dict[str, NDArray[np.float64]]:
    """The values of `prompt_scores` (n,), by benchmark."""
    return {name: values.to_numpy(dtype=float) for name, values in prompt_scores(scores).items()}


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


def adjusted(p_values: Sequence[float]) -> list[float]:
    """p-values of several comparisons at once, after Benjamini and Hochberg."""
    return stats.false_discovery_control(p_values).tolist() if len(p_values) else []


def _mean_of_means(*groups: NDArray[np.float64], axis: int = -1) -> NDArray[np.float64]:
    return np.mean([group.mean(axis=axis) for group in groups], axis=0)
