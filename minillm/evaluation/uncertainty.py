"""How far a score depends on the prompts it was measured on: t intervals over prompts, sign-flip tests of differences.

A prompt counts once, with its mean over the generation seeds: answers to the same prompt are no independent evidence.
Several benchmarks weigh the same each. Where models were trained with several seeds, intervals cover other seeds too.

Every estimate here is a sum of means over prompts, one mean for each benchmark, so that its variance is the sum of
theirs and Student's t has Welch and Satterthwaite's degrees of freedom. What is computed from means, as a ratio of two,
enters with its jackknife pseudo-values (Tukey 1958). docs/evaluation.md has the measured coverage.
"""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

from minillm.streams import Purpose, generator, stream

CONFIDENCE = 0.95
FEWEST = 3
"""Prompts of a benchmark below which there is no interval."""
ENUMERATED = 13
"""Up to so many prompts, a test goes through all of the 2^n signs; above, it draws some."""
FLIPS = 9999
FLIPPED_AT_ONCE = 1 << 22
"""Signs drawn at once, so that memory stays small."""
WITHOUT_INTERVAL = (
    f"Where no interval stands, none can be had: fewer than {FEWEST} prompts, or the same value on each of them, say "
    "nothing of other prompts."
)
"""Sentence on pages where an interval is missing."""
FEW = 10
FEW_PROMPTS = (
    f"Intervals over fewer than {FEW} prompts are too short where most scores are 0 or 100: they then hold the mean in "
    "about 80 of a hundred cases, not in 95."
)
"""Sentence on pages with such intervals (measured by benchmarks.coverage)."""

Values = Sequence[NDArray[np.float64]]
"""One value per prompt (n,) for each benchmark; with several training seeds, one per seed and prompt (s, n)."""


@dataclass(frozen=True)
class Estimate:
    """A mean and what it may be on other prompts of the same kind; of several training seeds, with other seeds too."""

    value: float
    low: float | None
    """Lower end of the 95 % interval; None where there is none (see `WITHOUT_INTERVAL`)."""
    high: float | None
    p_value: float | None = None
    """Two-sided, of no difference; None for a single score, and where it cannot be had."""


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
        values: Scores on 0–100, where the interval ends.
    """
    found = _estimate(_over_seeds(values) or _shares(values), _prompts(values))
    if found.low is None or found.high is None:
        return found
    return Estimate(found.value, max(0.0, found.low), min(100.0, found.high))


def paired_estimate(values: Values) -> Estimate:
    """The mean difference of two methods with its interval and p-value: an estimate on pairs.

    Args:
        values: Differences on the same prompts and, with several training seeds, of the same seed.
    """
    prompts = _prompts(values)
    if (parts := _over_seeds(values)) is not None:
        return _estimate(parts, prompts, t_test(parts) if prompts >= FEWEST else None)
    parts = _shares(values)
    return _estimate(parts, prompts, sign_flip_test(parts))


def ratio_of_sums(ratios: Values) -> Estimate:
    """The mean over benchmarks of Σ part / Σ whole over prompts, with its interval.

    Args:
        ratios: Part and whole (2, n) of every prompt, for each benchmark.
    """
    return _estimate(_shares([_ratio(of) for of in ratios]), _prompts(ratios))


def difference_of_ratios(ratios: Values, others: Values) -> Estimate:
    """How far one method's `ratio_of_sums` is above another's on the same prompts, with its p-value."""
    parts = _shares([_ratio(of) - _ratio(other) for of, other in zip(ratios, others, strict=True)])
    return _estimate(parts, _prompts(ratios), sign_flip_test(parts))


def interval(
    parts: NDArray[np.float64], statistic: Callable[[NDArray[np.float64]], NDArray[np.float64]]
) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    """Both ends (*T) of the 95 % intervals of what is computed from means over prompts; None for too few prompts.

    Args:
        parts: What is averaged, of each of n prompts (n, *S).
        statistic: From means (..., *S) to values (..., *T).
    """
    if len(parts) < FEWEST:
        return None
    values = pseudo_values(parts, statistic)
    reach = stats.t.ppf((1 + CONFIDENCE) / 2, len(parts) - 1) * stats.sem(values, axis=0)
    return values.mean(axis=0) - reach, values.mean(axis=0) + reach


def pseudo_values(
    parts: NDArray[np.float64], statistic: Callable[[NDArray[np.float64]], NDArray[np.float64]]
) -> NDArray[np.float64]:
    """Share of each prompt in what is computed from means over prompts (n, *T): their mean is the value.

    Jackknife pseudo-values n·θ − (n−1)·θ₋ᵢ, moved so that their mean is θ itself, not its jackknife estimate.
    """
    n, total = len(parts), parts.sum(axis=0)
    value = statistic(total / n)
    if n == 1:
        return value[None]
    without = statistic((total - parts) / (n - 1))  # (n, *T)
    return value - (n - 1) * (without - without.mean(axis=0))


def sign_flip_test(parts: Values) -> float:
    """Two-sided p-value of Σ of means being zero, where each prompt's value could as well have the other sign.

    That is so where two methods are alike. It holds for any number of prompts; n of them cannot give less than 2/2ⁿ.
    The test is that of `scipy.stats.permutation_test`, whose draws take ten times as long.

    Args:
        parts: What each prompt adds to the mean of its benchmark (n,), for each of them.
    """
    weighted = np.concatenate([part / len(part) for part in parts])
    # Sums of the same numbers in another order differ by their rounding.
    reached = abs(weighted.sum()) - 1e-9 * np.abs(weighted).sum()
    n = len(weighted)
    if n <= ENUMERATED:
        kept = np.arange(2**n)[:, None] >> np.arange(n) & 1  # (2^n, n)
        return float((np.abs(2 * (kept @ weighted) - weighted.sum()) >= reached).mean())
    draw, as_far, at_once = generator(stream(Purpose.SIGN_FLIPS, 0)), 0, max(1, FLIPPED_AT_ONCE // n)
    for first in range(0, FLIPS, at_once):
        kept = draw.integers(2, size=(min(at_once, FLIPS - first), n), dtype=np.int8).astype(float)
        as_far += int((np.abs(2 * (kept @ weighted) - weighted.sum()) >= reached).sum())
    return (1 + as_far) / (1 + FLIPS)


def t_test(parts: Values) -> float | None:
    """Two-sided p-value of Σ of means being zero, by Student's t; None where nothing varies and it is not zero."""
    value, error, freedom = _spread(parts)
    if error == 0:
        return 1.0 if value == 0 else None
    return float(2 * stats.t.sf(abs(value) / error, freedom))


def adjusted(p_values: Sequence[float | None], families: Sequence[Hashable]) -> list[float | None]:
    """p-values of several comparisons at once, after Holm (1979) within each family.

    Whatever the family's other differences are, the chance that any of its equal methods look different stays below
    the level. Controlling the rate of false discoveries does not promise that: obvious differences raise what passes.

    Args:
        p_values: None where there is none; it stays so.
        families: Of each, which comparisons it is read together with.
    """
    found: list[float | None] = [None] * len(p_values)
    for family in set(families):
        pairs = enumerate(zip(p_values, families, strict=True))
        ordered = sorted((p_value, place) for place, (p_value, of) in pairs if p_value is not None and of == family)
        lowest = 0.0
        for rank, (p_value, place) in enumerate(ordered):
            lowest = max(lowest, min(1.0, (len(ordered) - rank) * p_value))
            found[place] = lowest
    return found


def _prompts(values: Values) -> int:
    """Of the smallest benchmark."""
    return min(of_benchmark.shape[-1] for of_benchmark in values)


def _shares(values: Values) -> list[NDArray[np.float64]]:
    """What each prompt adds to the mean over benchmarks."""
    return [of_benchmark.reshape(-1) / len(values) for of_benchmark in values]


def _over_seeds(values: Values) -> list[NDArray[np.float64]] | None:
    """What each seed and each prompt adds, of several training seeds; None of one.

    Every seed answers every prompt, so the variances of the two means add up; what is of both at once counts twice,
    which errs on the safe side. A bootstrap over a handful of seeds would be far too sure.
    """
    if values[0].ndim == 1 or len(values[0]) == 1:
        return None
    by_seed = np.mean([of_benchmark.mean(axis=1) for of_benchmark in values], axis=0)
    # The mean over prompts is the same once more: it counts with its variance alone.
    return [by_seed, *((of.mean(axis=0) - of.mean()) / len(values) for of in values)]


def _ratio(pairs: NDArray[np.float64]) -> NDArray[np.float64]:
    """Share of each prompt (n,) in Σ part / Σ whole of (2, n)."""
    return pseudo_values(pairs.T, lambda means: means[..., 0] / means[..., 1])


def _estimate(parts: Values, prompts: int, p_value: float | None = None) -> Estimate:
    if prompts < FEWEST:
        return Estimate(float(sum(part.mean() for part in parts)), None, None, p_value)
    value, error, freedom = _spread(parts)
    if error == 0:
        return Estimate(value, None, None, p_value)
    reach = float(stats.t.ppf((1 + CONFIDENCE) / 2, freedom)) * error
    return Estimate(value, value - reach, value + reach, p_value)


def _spread(parts: Values) -> tuple[float, float, float]:
    """Σ of means, its standard error, and Welch and Satterthwaite's degrees of freedom.

    Values that differ by their rounding alone have no spread.
    """
    means = np.array([part.mean() for part in parts])
    spreads = np.array([part.std(ddof=1) for part in parts])
    spreads[spreads <= 1e-9 * np.array([np.abs(part).max() for part in parts])] = 0
    variances = spreads**2 / [len(part) for part in parts]
    total = variances.sum()
    freedom = total**2 / (variances**2 / [len(part) - 1 for part in parts]).sum() if total else np.inf
    return float(means.sum()), float(total**0.5), float(freedom)
