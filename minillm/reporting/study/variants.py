"""Compare the variants of a configuration over training seeds.

Every figure is the score of the compared row on 0–100. A variant is paired with the baseline by prompt and training
seed; the intervals cover other prompts of the same kind and, if there are several seeds, other seeds (see
`minillm.evaluation.uncertainty.estimate`).
"""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from minillm.evaluation.differences import Difference, paired_differences
from minillm.evaluation.uncertainty import Estimate, estimate
from minillm.reporting.comparison import MEAN


@dataclass(frozen=True)
class StudyComparison:
    """The variants of a study, in the order of the table."""

    scores: Mapping[str, Mapping[str, NDArray[np.float64]]]
    """Scores per training seed and prompt (s, n), by variant and benchmark; every variant has the same ones."""
    baseline: str
    measure: str
    """Name of the scores."""

    @property
    def variants(self) -> list[str]:
        """Names of the variants."""
        return list(self.scores)

    @property
    def others(self) -> list[str]:
        """Names of all variants but the baseline."""
        return [name for name in self.scores if name != self.baseline]

    @property
    def columns(self) -> dict[str, list[str]]:
        """Benchmarks of each column of the table; the last is the mean over all."""
        names = list(self.scores[self.baseline])
        return {name: [name] for name in names} | {MEAN: names}

    @functools.cached_property
    def estimates(self) -> dict[tuple[str, str], Estimate]:
        """Mean over seeds and prompts with its interval, by variant and column."""
        return {
            (variant, column): estimate([of[name] for name in names])
            for variant, of in self.scores.items()
            for column, names in self.columns.items()
        }

    @functools.cached_property
    def differences(self) -> dict[tuple[str, str], Difference]:
        """Differences of every variant from the baseline, by variant and column; p-values are adjusted for all."""
        base = self.scores[self.baseline]
        values = {
            (variant, self.baseline, column): [self.scores[variant][name] - base[name] for name in names]
            for variant in self.others
            for column, names in self.columns.items()
        }
        differences = paired_differences(values, lambda *_: "variants")
        return {(found.method, found.benchmark): found for found in differences}

    def by_seed(self, variant: str, column: str) -> list[float]:
        """Return the mean over prompts for each training seed."""
        means = [self.scores[variant][name].mean(axis=1) for name in self.columns[column]]
        return np.mean(means, axis=0).tolist()

    def frame(self, seeds: Sequence[int]) -> pd.DataFrame:
        """Return the table in long format: variant, benchmark, mean and difference with intervals, p-value, seeds."""
        rows = []
        for (variant, column), found in self.estimates.items():
            row: dict[str, Any] = {"variant": variant, "benchmark": column}
            row |= {"mean": found.value, "low": found.low, "high": found.high}
            if (difference := self.differences.get((variant, column))) is not None:
                row |= {"difference": difference.value, "difference_low": difference.low}
                row |= {"difference_high": difference.high, "p_value": difference.p_value}
            by_seed = zip(seeds, self.by_seed(variant, column), strict=True)
            rows.append(row | {f"seed_{seed}": value for seed, value in by_seed})
        return pd.DataFrame(rows)
