"""Uncertainty of scores due to the choice of prompts: t intervals over prompts, sign-flip tests of differences.

A prompt counts once, with its mean over the generation seeds: answers to the same prompt are not independent evidence.
Every benchmark weighs the same. If models were trained with several seeds, intervals cover other seeds too.

Every estimate here is a sum of means over prompts, one mean for each benchmark, so that its variance is the sum of
theirs and Student's t has Welch and Satterthwaite's degrees of freedom. Functions of means, such as a ratio of two,
enter with their jackknife pseudo-values (Tukey 1958). docs/evaluation.md has the measured coverage.
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
"""A benchmark with fewer prompts has no interval."""
ENUMERATED = 13
"""With up to this many prompts a test goes through all 2^n signs; with more it draws some."""
FLIPS = 9999
FLIPPED_AT_ONCE = 1 << 22
"""Signs drawn at once, to keep memory small."""
WITHOUT_INTERVAL = (
    f"Where no interval is given, none can be computed: fewer than {FEWEST} prompts, or the same value on all of them, "
    "say nothing about other prompts."
)
"""Sentence for pages where an interval is missing."""
FEW = 10
FEW_PROMPTS = (
    f"Intervals over fewer than {FEW} prompts are too short if most scores are 0 or 100: they then contain the mean in "
    "about 80 of 100 cases, not in 95."
)
"""Sentence for pages with intervals over so few prompts (measured by benchmarks.coverage)."""

Values = Sequence[NDArray[np.float64]]
"""One value per prompt (n,) for each benchmark; with several training seeds, one per seed and prompt (s, n)."""


@dataclass(frozen=True)
class Estimate:
    """A mean, and its range on other prompts of the same kind and, with several training seeds, other seeds."""

    value: float
    low: float | None
    """Lower end of the 95 % interval; None if there is none (see `WITHOUT_INTERVAL`)."""
    high: float | None
    p_value: float | None = None
    """Two-sided, of no difference; None for a single score, or if it cannot be computed."""


def prompt_scores(scores: pd.DataFrame, metric: str = "score") -> dict[str, pd.Series]:
    """Return the score (0–100) of each headline prompt, its mean over seeds, by benchmark and index.

    A conversation is one prompt: its value is the mean over its turns and seeds.

    Args:
        scores: One row per prompt and seed (see `minillm.evaluation.scoring`); earlier versions name no conversation.
        metric: rouge_l or exact_match; by default each benchmark's own.
    """
    headline = scores.query("headline")
    prompt = "conversation" if "conversation" in scores else "index"
    return {
        str(name): pd.Series(part.pivot_table(values=metric, index=prompt)[metric], dtype=float) * 100
        for name, part in headline.groupby("benchmark", sort=False)
    }


def prompt_values(scores: pd.DataFrame) -> dict[str, NDArray[np.float64]]:
    """Return the values of `prompt_scores` (n,), by benchmark."""
    return {name: values.to_numpy(dtype=float) for name, values in prompt_scores(scores).items()}


def estimate(values: Values) -> Estimate:
    """Estimate the mean over benchmarks of the mean over prompts.

    Args:
        values: Scores on 0–100; the interval does not go beyond.
    """
    found = _estimate(_over_seeds(values) or _shares(values), _prompts(values))
    if found.low is None or found.high is None:
        return found
    return Estimate(found.value, max(0.0, found.low), min(100.0, found.high))


def paired_estimate(values: Values) -> Estimate:
    """Estimate the mean difference of two methods, and its p-value, on pairs.

    Args:
        values: Differences on the same prompt and, with several training seeds, for the same seed.
    """
    prompts = _prompts(values)
    if (parts := _over_seeds(values)) is not None:
        return _estimate(parts, prompts, t_test(parts) if prompts >= FEWEST else None)
    parts = _shares(values)
    return _estimate(parts, prompts, sign_flip_test(parts))


def ratio_of_sums(ratios: Values) -> Estimate:
    """Estimate the mean over benchmarks of Σ part / Σ whole over prompts.

    Args:
        ratios: Part and whole of every prompt (2, n), for each benchmark.
    """
    return _estimate(_shares([_ratio(of) for of in ratios]), _prompts(ratios))


def difference_of_ratios(ratios: Values, others: Values) -> Estimate:
    """Estimate how far one method's `ratio_of_sums` is above another's on the same prompts, and its p-value."""
    parts = _shares([_ratio(of) - _ratio(other) for of, other in zip(ratios, others, strict=True)])
    return _estimate(parts, _prompts(ratios), sign_flip_test(parts))


def interval(
    parts: NDArray[np.float64], statistic: Callable[[NDArray[np.float64]], NDArray[np.float64]]
) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    """Return both ends (*T) of the 95 % intervals of a function of means over prompts; None for too few prompts.

    Args:
        parts: The averaged quantities of each of n prompts (n, *S).
        statistic: Maps means (..., *S) to values (..., *T).
    """
    if len(parts) < FEWEST:
        return None
    values = pseudo_values(parts, statistic)
    reach = stats.t.ppf((1 + CONFIDENCE) / 2, len(parts) - 1) * stats.sem(values, axis=0)
    return values.mean(axis=0) - reach, values.mean(axis=0) + reach


def pseudo_values(
    parts: NDArray[np.float64], statistic: Callable[[NDArray[np.float64]], NDArray[np.float64]]
) -> NDArray[np.float64]:
    """Return the share of each prompt in a function of means over prompts (n, *T); their mean is its value.

    Jackknife pseudo-values n·θ − (n−1)·θ₋ᵢ, shifted so that their mean is θ itself and not its jackknife estimate.
    """
    n, total = len(parts), parts.sum(axis=0)
    value = statistic(total / n)
    if n == 1:
        return value[None]
    without = statistic((total - parts) / (n - 1))  # (n, *T)
    return value - (n - 1) * (without - without.mean(axis=0))


def sign_flip_test(parts: Values) -> float:
    """Return the two-sided p-value of Σ of means being zero, if each value could equally have the other sign.

    That is the case if two methods are alike. It is exact for any number of prompts; n of them cannot give less than
    2/2ⁿ. The test is that of `scipy.stats.permutation_test`, whose draws take ten times as long.

    Args:
        parts: Contribution of each prompt to the mean of its benchmark (n,), for each benchmark.
    """
    weighted = np.concatenate([part / len(part) for part in parts])
    # sums of the same numbers in another order differ by rounding
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
    """Return the two-sided p-value of Σ of means being 0, by Student's t; None if nothing varies and it is not 0."""
    value, error, freedom = _spread(parts)
    if error == 0:
        return 1.0 if value == 0 else None
    return float(2 * stats.t.sf(abs(value) / error, freedom))


def adjusted(p_values: Sequence[float | None], families: Sequence[Hashable]) -> list[float | None]:
    """Adjust the p-values of several comparisons after Holm (1979), within each family.

    Whatever the other differences of the family, the chance that any of its equal methods look different stays below
    the level. Controlling the false discovery rate does not promise that: obvious differences let others pass.

    Args:
        p_values: None, where there is none, stays None.
        families: The family of each.
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
    """Return the number of prompts of the smallest benchmark."""
    return min(of_benchmark.shape[-1] for of_benchmark in values)


def _shares(values: Values) -> list[NDArray[np.float64]]:
    """Return the contribution of each prompt to the mean over benchmarks."""
    return [of_benchmark.reshape(-1) / len(values) for of_benchmark in values]


def _over_seeds(values: Values) -> list[NDArray[np.float64]] | None:
    """Return the contributions of each seed and each prompt; None for a single training seed.

    Every seed answers every prompt, so the variances of the two means add up. Their interaction counts twice, which
    errs on the safe side. A bootstrap over a handful of seeds would be far too sure.
    """
    if values[0].ndim == 1 or len(values[0]) == 1:
        return None
    by_seed = np.mean([of_benchmark.mean(axis=1) for of_benchmark in values], axis=0)
    # the mean over prompts is the same mean again: only its variance counts
    return [by_seed, *((of.mean(axis=0) - of.mean()) / len(values) for of in values)]


def _ratio(pairs: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the share of each prompt (n,) in Σ part / Σ whole of (2, n)."""
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
    """Return Σ of means, its standard error, and Welch and Satterthwaite's degrees of freedom.

    Values that differ only by rounding have no spread.
    """
    means = np.array([part.mean() for part in parts])
    spreads = np.array([part.std(ddof=1) for part in parts])
    spreads[spreads <= 1e-9 * np.array([np.abs(part).max() for part in parts])] = 0
    variances = spreads**2 / [len(part) for part in parts]
    total = variances.sum()
    freedom = total**2 / (variances**2 / [len(part) - 1 for part in parts]).sum() if total else np.inf
    return float(means.sum()), float(total**0.5), float(freedom)
