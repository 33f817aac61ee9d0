"""Compare the methods of a run: result table, paired differences, ranks, and the verdict in words.

The input is the table.json of each role and its scores per prompt (see `minillm.evaluation.scoring`); every figure is a
benchmark's score on 0–100. Differences are paired: both methods answered the same prompts.
"""

import functools
import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from minillm.evaluation.differences import LEVEL, TEACHER, Difference, family, paired_differences
from minillm.metrics.by_name import METRICS_BY_NAME
from minillm.words import counted, number, percent, score, short_count

METRIC_NAMES: dict[str, str] = {name: metric.title for name, metric in METRICS_BY_NAME.items()}
"""Names of the metrics."""
SEVERAL = "Score"
"""Name of scores by several metrics."""
MEAN = "mean"
"""Name of the column over all benchmarks, each weighing the same."""


@dataclass(frozen=True)
class Comparison:
    """The tables of all methods, in the order of the result table.

    The first is the teacher or, among models without one, a model that the others are measured against.
    """

    tables: Mapping[str, Mapping[str, Any]]
    benchmarks: Sequence[str]
    prompts: Mapping[str, Mapping[str, NDArray[np.float64]]]
    """Scores per prompt (n,) by role and benchmark, the same prompts in the same order for every role."""
    trained_on: Mapping[str, str] = field(default_factory=dict)
    """The `text` of each method's configuration, for methods trained here."""

    @property
    def roles(self) -> list[str]:
        """Names of the methods."""
        return list(self.tables)

    @property
    def columns(self) -> list[str]:
        """Benchmarks and, last, their mean."""
        return [*self.benchmarks, MEAN]

    @property
    def taught(self) -> bool:
        """True if the first row is the teacher of the others."""
        return self.roles[0] == TEACHER and len(self.roles) > 1

    @property
    def yardstick(self) -> str:
        """Name of the first row in a sentence."""
        return "the teacher" if self.taught else self.roles[0]

    @property
    def row_word(self) -> str:
        """Word for a row of the table."""
        return "method" if self.taught else "model"

    @property
    def best_word(self) -> str:
        """Word for the rows that the best is chosen from."""
        return "student" if self.taught else "model"

    @property
    def best(self) -> str:
        """Method with the highest mean, except a teacher."""
        return max(self.roles[1:] if self.taught else self.roles, key=lambda role: self.score(role, MEAN)["mean"])

    @property
    def compared(self) -> str:
        """The method that differences are taken from: the on-policy one or, if there is none, the best."""
        return on_policy_method(self.roles, self.trained_on) or self.best

    def metric(self, benchmark: str) -> str:
        """Return the benchmark's metric."""
        return self.tables[self.roles[0]]["benchmarks"][benchmark]["metric"]

    def label(self, column: str) -> str:
        """Return a column's heading, with its metric if there are several."""
        return (
            f"{column}, {METRIC_NAMES[self.metric(column)]}" if self.measure == SEVERAL and column != MEAN else column
        )

    @property
    def measure(self) -> str:
        """Name of the scores."""
        return measure_of(self.metric(name) for name in self.benchmarks)

    def score(self, role: str, benchmark: str) -> Mapping[str, Any]:
        """Return mean, spread, interval and per-seed values of one cell."""
        table = self.tables[role]
        return (table["mean"] if benchmark == MEAN else table["benchmarks"][benchmark])["score"]

    def frame(self) -> pd.DataFrame:
        """Return the table in long format: method, benchmark, mean, spread, and seed_N for each seed."""
        return pd.DataFrame(
            [
                {"method": role, "benchmark": name, "mean": cell["mean"], "spread": cell["spread"]}
                | {f"seed_{seed}": value for seed, value in cell["per_seed"].items()}
                for role in self.roles
                for name in self.columns
                for cell in [self.score(role, name)]
            ]
        )

    @functools.cached_property
    def differences(self) -> list[Difference]:
        """Differences of every two methods, the compared one first, on each benchmark and on the mean.

        P-values are adjusted among those between methods, and among those with the teacher.
        """
        names = {name: [name] for name in self.benchmarks} | {MEAN: list(self.benchmarks)}
        order = [self.compared, *(role for role in self.roles if role != self.compared)]
        return paired_differences(
            {
                (method, other, benchmark): [
                    self.prompts[method][name] - self.prompts[other][name] for name in names[benchmark]
                ]
                for method, other in itertools.combinations(order, 2)
                for benchmark in self.columns
            },
            family,
        )

    @functools.cached_property
    def ranks(self) -> dict[str, tuple[int, int]]:
        """Best and worst rank of each method by the mean; one that cannot be told apart may be above or below."""
        above = dict.fromkeys(self.roles, 0)
        below = dict.fromkeys(self.roles, 0)
        for difference in self.differences:
            if difference.clear and difference.benchmark == MEAN:
                upper, lower = (difference.method, difference.other)[:: 1 if difference.value > 0 else -1]
                above[lower] += 1
                below[upper] += 1
        return {role: (1 + above[role], len(self.roles) - below[role]) for role in self.roles}


def measure_of(metrics: Iterable[str]) -> str:
    """Name the scores of some benchmarks by their metric if they have the same one."""
    names = {METRIC_NAMES[metric] for metric in metrics}
    return names.pop() if len(names) == 1 else SEVERAL


def reading(difference: Difference) -> str:
    """Say in a word or two how the first method of a difference stands to the other."""
    if not difference.clear:
        return "not distinguishable"
    return "above" if difference.value > 0 else "below"


def on_policy_method(methods: Iterable[str], trained_on: Mapping[str, str]) -> str | None:
    """Return the first method trained on its own rollouts, which a run is about; None if there is none.

    Args:
        methods: In the order of the table.
        trained_on: The `text` of each method's configuration, where known.
    """
    return next((method for method in methods if trained_on.get(method) == "rollouts"), None)


def verdict(comparison: Comparison, parameters: Mapping[str, int]) -> list[str]:
    """Say which is the best, how close to the first row, at what size, and how sure that is, in sentences.

    Args:
        comparison: All methods.
        parameters: Number of weights by role, where known.
    """
    over = f"mean over {len(comparison.benchmarks)} benchmarks"
    if len(comparison.benchmarks) == 1:
        over = f"on {comparison.benchmarks[0]}"
    best = comparison.best
    who = best if len(comparison.roles) == 1 else f"The best {comparison.best_word} is {best}"
    reached = f"{comparison.measure} {score(comparison.score(best, MEAN))} ({over})"
    return [f"{who}: {reached}{_beside_yardstick(comparison, parameters)}.", *_against_others(comparison)]


def _beside_yardstick(comparison: Comparison, parameters: Mapping[str, int]) -> str:
    """Say how close the best comes to the first row, and at what size; nothing if it is the first."""
    first, best = comparison.roles[0], comparison.best
    if best == first:
        return ""
    words, whose = "", f"{comparison.yardstick}'s"
    reached, full = (comparison.score(role, MEAN)["mean"] for role in (best, first))
    if full > 0:
        words, whose = f", {percent(reached / full)} of {whose} {number(full)}", "its"
    if first in parameters and best in parameters:
        share = percent(parameters[best] / parameters[first])
        counts = f"{short_count(parameters[best])} of {short_count(parameters[first])}"
        words += f", with {share} of {whose} parameters ({counts})"
    return words


def _against_others(comparison: Comparison) -> list[str]:
    teachers = comparison.roles[:1] if comparison.taught else []
    rivals = [
        d
        for d in comparison.differences
        if (d.method, d.benchmark) == (comparison.compared, MEAN) and d.other not in teachers
    ]
    words = {"above": "is above", "not distinguishable": "cannot be told apart from", "below": "is below"}
    groups = {outcome: [f"{d.other} ({d})" for d in rivals if reading(d) == outcome] for outcome in words}
    return [f"{comparison.compared} {words[outcome]} {', '.join(of)}." for outcome, of in groups.items() if of]


def how_tested(comparison: Comparison) -> str:
    """Explain how differences are tested and adjusted."""
    words = (
        f"Difference on the same prompts with its 95 % interval; * marks p < {LEVEL}, by a sign-flip test over "
        f"prompts, adjusted (Holm) for all differences between {comparison.row_word}s, on every benchmark and the mean."
    )
    if comparison.taught:
        words += " Differences from the teacher are adjusted among themselves."
    fewest = min(len(of) for of in comparison.prompts[comparison.roles[0]].values())
    if 2 * 0.5**fewest >= LEVEL:
        words += (
            f" A benchmark of {counted(fewest, 'prompt')} cannot tell {comparison.row_word}s apart by itself: "
            f"its p-value is never below {2 * 0.5**fewest:.2g}."
        )
    return words
