"""Methods against each other: the result table, differences with their standard errors, and the verdict in words.

Works on the table.json of each role (see `minillm.evaluation.scoring`); every figure is Rouge-L on 0–100.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

MEAN = "mean"
"""Name of the column over all benchmarks, each weighing the same."""
CLEAR = 2.0
"""A difference counts as clear beyond this many standard errors."""


@dataclass(frozen=True)
class Difference:
    """How far one method is above another on one benchmark."""

    method: str
    """The other method."""
    benchmark: str
    value: float
    """Rouge-L of the compared method minus that of `method`."""
    standard_error: float | None
    """√(s₁²/n + s₂²/n) over n seeds; None with a single seed."""

    @property
    def clear(self) -> bool:
        """Whether the difference is more than twice its standard error."""
        return self.standard_error is not None and abs(self.value) > CLEAR * self.standard_error

    def __str__(self) -> str:
        error = "" if self.standard_error is None else f" ± {self.standard_error:.1f}"
        return f"{self.value:+.1f}{error}".replace("-", "−")


@dataclass(frozen=True)
class Comparison:
    """The tables of all methods, in the order of the result table; the first is the teacher."""

    tables: Mapping[str, Mapping[str, Any]]
    benchmarks: Sequence[str]

    @property
    def roles(self) -> list[str]:
        """Names of the methods."""
        return list(self.tables)

    @property
    def columns(self) -> list[str]:
        """Benchmarks and, last, their mean."""
        return [*self.benchmarks, MEAN]

    @property
    def best_student(self) -> str:
        """The method with the highest mean, the teacher left out."""
        return max(self.roles[1:] or self.roles, key=lambda role: self.rouge_l(role, MEAN)["mean"])

    @property
    def compared(self) -> str:
        """The method that differences are taken from: minillm or, where there is none, the best student."""
        return "minillm" if "minillm" in self.tables else self.best_student

    def rouge_l(self, role: str, benchmark: str) -> Mapping[str, Any]:
        """Mean, spread and per-seed values of one cell."""
        table = self.tables[role]
        return (table["mean"] if benchmark == MEAN else table["benchmarks"][benchmark])["rouge_l"]

    def frame(self) -> pd.DataFrame:
        """Long format: method, benchmark, mean, spread, and seed_N for each seed."""
        return pd.DataFrame(
            [
                {"method": role, "benchmark": name, "mean": cell["mean"], "spread": cell["spread"]}
                | {f"seed_{seed}": value for seed, value in cell["per_seed"].items()}
                for role in self.roles
                for name in self.columns
                for cell in [self.rouge_l(role, name)]
            ]
        )

    def differences(self) -> list[Difference]:
        """The compared method minus each other one, on each benchmark and on the mean."""
        return [self._difference(role, name) for role in self.roles if role != self.compared for name in self.columns]

    def _difference(self, role: str, benchmark: str) -> Difference:
        ours, theirs = self.rouge_l(self.compared, benchmark), self.rouge_l(role, benchmark)
        counts = [len(cell["per_seed"]) for cell in (ours, theirs)]
        error = None
        if min(counts) > 1:
            error = math.sqrt(ours["spread"] ** 2 / counts[0] + theirs["spread"] ** 2 / counts[1])
        return Difference(role, benchmark, ours["mean"] - theirs["mean"], error)


def verdict(comparison: Comparison, parameters: Mapping[str, int]) -> list[str]:
    """Sentences that say who won, how close to the teacher, at what size, and how sure that is.

    Args:
        comparison: All methods.
        parameters: Number of weights by role, where known.
    """
    teacher, best = comparison.roles[0], comparison.best_student
    score, full = comparison.rouge_l(best, MEAN), comparison.rouge_l(teacher, MEAN)
    over = f"mean over {len(comparison.benchmarks)} benchmarks"
    if len(comparison.benchmarks) == 1:
        over = f"on {comparison.benchmarks[0]}"
    first = f"The best student is {best}: Rouge-L {score['mean']:.1f} ± {score['spread']:.1f} ({over})"
    if full["mean"] > 0:
        first += f", {percent(score['mean'] / full['mean'])} of the teacher's {full['mean']:.1f}"
    if best in parameters and teacher in parameters:
        share = percent(parameters[best] / parameters[teacher])
        first += f", with {share} of its parameters ({human(parameters[best])} of {human(parameters[teacher])})"
    return [f"{first}.", *_against_students(comparison)]


def _against_students(comparison: Comparison) -> list[str]:
    rivals = [d for d in comparison.differences() if d.benchmark == MEAN and d.method != comparison.roles[0]]
    groups = {
        "is above {} by more than twice the standard error over seeds": [d for d in rivals if d.clear and d.value > 0],
        "cannot be told apart from {} within twice the standard error": [d for d in rivals if not d.clear],
        "is below {} by more than twice the standard error over seeds": [d for d in rivals if d.clear and d.value < 0],
    }
    if any(d.standard_error is None for d in rivals):
        groups = {"minus others, from a single seed and so without a standard error: {}": rivals}
    return [
        f"{comparison.compared} {words.format(', '.join(f'{d.method} ({d})' for d in members))}."
        for words, members in groups.items()
        if members
    ]


def formatted(statistic: Mapping[str, Any]) -> str:
    """'mean ± spread' of an entry of a table."""
    return f"{statistic['mean']:.1f} ± {statistic['spread']:.1f}"


def human(count: int) -> str:
    """A count with three digits, a no-break space and a unit: 34.2 K, 124 M, 1.56 B."""
    for unit, size in (("B", 10**9), ("M", 10**6), ("K", 10**3)):
        if count >= 0.9995 * size:  # 999,900 is 1 M, not 1e+03 K
            return f"{count / size:.3g}\u00a0{unit}"
    return str(count)


def percent(share: float) -> str:
    """A share with at least two digits and a no-break space: 86 %, 4.1 %, 0.35 %."""
    return f"{100 * share:.0f}\u00a0%" if share >= 0.0995 else f"{100 * share:.2g}\u00a0%"
