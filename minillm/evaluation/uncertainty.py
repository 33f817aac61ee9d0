"""How far a score depends on the prompts it happened to be measured on: the bootstrap over prompts (scipy's).

A value per prompt is its mean over the generation seeds: answers to the same prompt are no independent evidence.
Several benchmarks count the same each, and the prompts of each are drawn again by themselves. Where models were trained
with several seeds, the intervals cover other seeds too.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

from minillm.streams import Purpose, generator, stream

RESAMPLES = 2000
CONFIDENCE = 0.95
DRAWN_AT_ONCE = 1 << 22
"""Values drawn at once, over all of their resamples, so that memory stays small."""

Values = Sequence[NDArray[np.float64]]
"""One value per prompt (n,) for each benchmark; with several training seeds, one per seed and prompt (s, n)."""


@dataclass(frozen=True)
class Estimate:
    """A mean and what it may be on other prompts of the same kind; of several training seeds, with other seeds too."""

    value: float
    low: float | None
    """Lower end of the 95 % interval; None where a benchmark has a single prompt."""
    high: float | None
    p_value: float | None
    """Two-sided, of the mean being zero."""


def prompt_scores(scores: pd.DataFrame, metric: str = "score") -> dict[str, pd.Series]:
    """The score (0–100) of each headline prompt by its index, the mean over seeds, for each benchmark.

    Args:
        scores: One row per prompt and seed (see `minillm.evaluation.scoring`).
        metric: rouge_l or exact_match; without it, each benchmark's own.
    """
    headline = scores.query("headline")
    return {
        str(name): pd.Series(part.pivot_table(values=metric, index="index")[metric], dtype=float) * 100
        for name, part in headline.groupby("benchmark", sort=False)
    }


def prompt_values(scores: pd.DataFrame) -> dict[str, NDArray[np.float64]]:
    """The values of `prompt_scores` (n,), by benchmark."""
    return {name: values.to_numpy(dtype=float) for name, values in prompt_scores(scores).items()}


def estimate(values: Values) -> Estimate:
    """The mean over benchmarks of the mean over prompts, with its interval.

    Args:
        values: Scores of a method, or differences of two on the same prompts, which makes it a paired bootstrap. With
            several training seeds, the difference is of the same seed and prompt, and the interval is that of
            `_over_seeds`.
    """
    if values[0].ndim == 2 and len(values[0]) > 1:
        return _over_seeds(values)
    return _estimate(_mean_of_means, [of_benchmark.reshape(-1) for of_benchmark in values])


def ratio_of_sums(ratios: Values, others: Values | None = None) -> Estimate:
    """The mean over benchmarks of Σ part / Σ whole over prompts, in percent, with its interval.

    Args:
        ratios: Part and whole (2, n) of every prompt, for each benchmark.
        others: Of another method on the same prompts; then it is the difference of the two ratios.
    """

    def statistic(*drawn: NDArray[np.float64], axis: int = -1) -> NDArray[np.float64]:
        found = _mean_ratio(ratios, drawn, axis)
        return found if others is None else found - _mean_ratio(others, drawn, axis)

    return _estimate(statistic, [np.arange(of.shape[1], dtype=float) for of in ratios])


def paired_interval(
    statistic: Callable[..., NDArray[np.float64]], *samples: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    """Both ends of the 95 % percentile interval of a statistic of several values per prompt.

    The prompts are drawn again for all values together, as a ratio of two means needs.

    Args:
        statistic: From samples (…, n) and the `axis` that it reduces, the last, to any (…).
        samples: (…, n) each, of the same n prompts in the same order.

    Returns:
        Lower and upper end (…); None with a single prompt.
    """
    if samples[0].shape[-1] < 2:
        return None
    interval = _bootstrap(samples, statistic, paired=True).confidence_interval
    return interval.low, interval.high


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
        rng=generator(stream(Purpose.BOOTSTRAP, 0)),
    )
    return float(result.confidence_interval.low), float(result.confidence_interval.high)


def adjusted(p_values: Sequence[float]) -> list[float]:
    """p-values of several comparisons at once, after Benjamini and Hochberg."""
    return stats.false_discovery_control(p_values).tolist() if len(p_values) else []


def _over_seeds(values: Values) -> Estimate:
    """A t interval over seeds and prompts (Welch–Satterthwaite): a bootstrap over a handful of seeds is far too sure.

    Every seed answers every prompt, so the variances of the two means add up; what is of both at once counts twice,
    which errs on the safe side.
    """
    by_seed = np.mean([of_benchmark.mean(axis=1) for of_benchmark in values], axis=0)
    value = float(by_seed.mean())
    if min(of_benchmark.shape[1] for of_benchmark in values) < 2:
        return Estimate(value, None, None, None)
    means = [by_seed, *(of_benchmark.mean(axis=0) / len(values) for of_benchmark in values)]
    variances = np.array([mean.var(ddof=1) / len(mean) for mean in means])
    variance = variances.sum()
    if variance == 0:
        return Estimate(value, value, value, float(value == 0))
    freedom = variance**2 / sum(variances**2 / [len(mean) - 1 for mean in means])
    reach = stats.t.ppf((1 + CONFIDENCE) / 2, freedom) * variance**0.5
    return Estimate(value, value - reach, value + reach, float(2 * stats.t.sf(abs(value) / variance**0.5, freedom)))


def _estimate(statistic: Callable[..., NDArray[np.float64]], samples: Values) -> Estimate:
    value = float(statistic(*samples))
    if min(len(sample) for sample in samples) < 2:
        return Estimate(value, None, None, None)
    result = _bootstrap(samples, statistic, paired=False)
    low, high = (float(end) for end in result.confidence_interval)
    as_far = np.abs(result.bootstrap_distribution - value) >= abs(value)
    return Estimate(value, low, high, float((1 + as_far.sum()) / (1 + RESAMPLES)))


def _bootstrap(samples: Values, statistic: Callable[..., NDArray[np.float64]], paired: bool) -> Any:
    return stats.bootstrap(
        tuple(samples),
        statistic,
        n_resamples=RESAMPLES,
        batch=max(1, DRAWN_AT_ONCE // max(sample.size for sample in samples)),
        vectorized=True,
        paired=paired,
        axis=-1,
        confidence_level=CONFIDENCE,
        method="percentile",
        rng=generator(stream(Purpose.BOOTSTRAP, 0)),
    )


def _mean_ratio(ratios: Values, drawn: Values, axis: int) -> NDArray[np.float64]:
    """Over benchmarks, in percent; `drawn` has the places (…, n) of each one's prompts in their arrays (2, n)."""
    found = []
    for (part, whole), places in zip(ratios, (of.astype(int) for of in drawn), strict=True):
        found.append(part[places].sum(axis=axis) / whole[places].sum(axis=axis))
    return 100 * np.mean(found, axis=0)


def _mean_of_means(*groups: NDArray[np.float64], axis: int = -1) -> NDArray[np.float64]:
    return np.mean([group.mean(axis=axis) for group in groups], axis=0)
