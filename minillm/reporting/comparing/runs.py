"""Compare tracked runs: differences in configuration, data and code, and in scores, prompt by prompt.

A row is a method of a run, written RUN:METHOD. Each row of a later run is compared with the first run's row of the same
method or, if there is none, with its main one. Only prompts that both answered, on the same version of a benchmark, are
paired; every score is on 0–100.
"""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import pandas as pd

from minillm.evaluation.differences import Difference, family, paired_differences
from minillm.evaluation.uncertainty import estimate
from minillm.reporting.comparison import MEAN, METRIC_NAMES, measure_of, on_policy_method
from minillm.words import ABSENT

NOT_STUDENTS = ("teacher", "initial")
NOT_GIVEN = "None"
"""How the tracking server has a setting that was left out."""
NOT_OF_SCORE = ("source.", "min_reference_tokens", "length_subsets")
"""Settings of a benchmark that do not change a prompt's score; the digest stands for the source."""


@dataclass(frozen=True, eq=False)
class Run:
    """One run of the main flow, as the tracking server has it."""

    label: str
    """Its name here, unlike that of any other compared run."""
    identity: str
    """Its id in the tracking server."""
    experiment: str
    experiment_id: str
    page: str
    """Address in the tracking server's pages."""
    flow_page: str
    """Address in Prefect's pages."""
    status: str
    started: float
    """Unix time, seconds."""
    params: Mapping[str, str]
    """The whole configuration, by dotted field."""
    data: Mapping[str, str]
    """Digest of each data set and ready-made model, by its part in the run."""
    code: Mapping[str, str]
    """Versions of libraries, and the digest of the code behind each stage."""
    metrics: Mapping[str, float]
    scores: Mapping[str, Mapping[str, pd.Series]]
    """Score of each prompt by its index (see `uncertainty.prompt_scores`), by method and benchmark."""
    curves: Mapping[str, Mapping[str, pd.Series]]
    """Value by optimizer step, by trained model and metric."""

    @property
    def main_methods(self) -> list[str]:
        """The method that the run is about: an on-policy one or else the best student; if none was scored, all."""
        methods = [name for name in self.scores or self.curves if name not in NOT_STUDENTS]
        trained_on = {name: self.params.get(f"methods.{name}.text", "") for name in methods}
        if (on_policy := on_policy_method(methods, trained_on)) is not None:
            return [on_policy]
        if not self.scores:
            return methods
        return [max(methods or self.scores, key=lambda name: fmean(of.mean() for of in self.scores[name].values()))]

    def metric(self, benchmark: str) -> str:
        """Return the name of a benchmark's metric."""
        return self.params[f"evaluation.benchmarks.{benchmark}.metric"]

    def benchmark_version(self, name: str) -> tuple[str | None, dict[str, str]]:
        """Return the digest of a benchmark's data, and the settings that define its prompts and their scores.

        A setting that is not given is left out: earlier runs may not know it.
        """
        settings = {"strip": self.params.get("evaluation.strip", NOT_GIVEN)} | {
            field: value
            for key, value in self.params.items()
            if (field := key.removeprefix(f"evaluation.benchmarks.{name}.")) != key
        }
        return self.data.get(f"benchmark/{name}"), {
            field: of for field, of in settings.items() if of != NOT_GIVEN and not field.startswith(NOT_OF_SCORE)
        }


@dataclass(frozen=True, eq=False)
class MethodOfRun:
    """One method of one run."""

    run: Run
    method: str

    @property
    def name(self) -> str:
        """Name in tables and figures."""
        return f"{self.run.label}:{self.method}"

    @property
    def scores(self) -> Mapping[str, pd.Series]:
        """Scores by benchmark; empty if it was not scored."""
        return self.run.scores.get(self.method, {})


@dataclass(frozen=True)
class RunComparison:
    """Two runs or more; the others are compared with the first."""

    runs: Sequence[Run]
    every_method: bool = False
    """Show each method of a run, not only its main one."""

    @functools.cached_property
    def rows(self) -> list[MethodOfRun]:
        """Rows of all runs, with or without scores."""
        return [
            MethodOfRun(run, method)
            for run in self.runs
            for method in (dict.fromkeys([*run.scores, *run.curves]) if self.every_method else run.main_methods)
            if method != "initial"
        ]

    @property
    def scored(self) -> list[MethodOfRun]:
        """Rows of the score table."""
        return [row for row in self.rows if row.scores]

    @functools.cached_property
    def pairs(self) -> list[tuple[MethodOfRun, MethodOfRun]]:
        """Each row of a later run, with the row of the first run that it is compared with."""
        first = [row for row in self.scored if row.run is self.scored[0].run]
        main = next((row for row in first if row.method in row.run.main_methods), None)
        same = {row.method: row for row in first}
        return [(row, same.get(row.method, main)) for row in self.scored if main and row.run is not main.run]

    @functools.cached_property
    def shared(self) -> list[str]:
        """Benchmarks on which every pair is paired; the mean is over these."""
        names = dict.fromkeys(name for row in self.scored for name in row.scores)
        return [n for n in names if not any(why_not_paired(*pair, n) for pair in self.pairs)]

    @property
    def metrics(self) -> set[str]:
        """Metrics of the benchmarks."""
        return {row.run.metric(name) for row in self.scored for name in row.scores}

    @property
    def measure(self) -> str:
        """Name of the scores."""
        return measure_of(self.metrics)

    def label(self, column: str) -> str:
        """Return a column's heading, with its metric if there are several."""
        words = sorted({METRIC_NAMES[row.run.metric(column)] for row in self.scored if column in row.scores})
        return f"{column}, {' or '.join(words)}" if words and len(self.metrics) > 1 else column

    @functools.cached_property
    def cells(self) -> dict[str, dict[str, dict[str, Any]]]:
        """Mean and 95 % interval over prompts, by row and benchmark; last the mean over the shared benchmarks."""
        return {row.name: self._cells(row) for row in self.scored}

    @functools.cached_property
    def differences(self) -> dict[tuple[str, str, str], Difference]:
        """Differences by (row, the first run's row, benchmark), if they are paired.

        P-values are adjusted among methods, and among teachers.
        """
        values = {}
        names = {row.name: row.method for row in self.scored}
        for row, other in self.pairs:
            by_prompt = {
                name: differences_by_prompt(row, other, name).to_numpy(dtype=float)
                for name in row.scores
                if why_not_paired(row, other, name) is None
            }
            values |= {(row.name, other.name, name): [of_prompts] for name, of_prompts in by_prompt.items()}
            if self.shared:
                values[row.name, other.name, MEAN] = [by_prompt[name] for name in self.shared]
        found = paired_differences(values, lambda row, other: family(names[row], names[other]))
        return {(of.method, of.other, of.benchmark): of for of in found}

    def _cells(self, row: MethodOfRun) -> dict[str, dict[str, Any]]:
        groups = {name: [name] for name in row.scores} | ({MEAN: self.shared} if self.shared else {})
        found = {
            column: estimate([row.scores[name].to_numpy(dtype=float) for name in names])
            for column, names in groups.items()
        }
        return {column: {"mean": of.value, "interval": [of.low, of.high]} for column, of in found.items()}


def why_not_paired(row: MethodOfRun, other: MethodOfRun, benchmark: str) -> str | None:
    """Say why two rows are not compared on a benchmark; None if they are."""
    for one in (row, other):
        if benchmark not in one.scores:
            return f"not measured in {one.run.label}"
    ours, theirs = row.run.benchmark_version(benchmark), other.run.benchmark_version(benchmark)
    if ours[0] is None or ours[0] != theirs[0]:
        return "not paired: its data are not the same"
    if ours != theirs:
        return "not paired: it is read or scored in another way"
    if differences_by_prompt(row, other, benchmark).empty:
        return "not paired: no prompt counts in both"
    return None


def differences_by_prompt(row: MethodOfRun, other: MethodOfRun, benchmark: str) -> pd.Series:
    """Return the score of one row minus that of the other, by the index of each prompt that counts in both."""
    return (row.scores[benchmark] - other.scores[benchmark]).dropna()


def differing(values: Mapping[str, Mapping[str, str]]) -> pd.DataFrame:
    """Tabulate the names whose value is not the same in all runs, sorted: a row per name, a column per run."""
    names = sorted({name for of_run in values.values() for name in of_run})
    rows = {name: [of_run.get(name, ABSENT) for of_run in values.values()] for name in names}
    changed = {name: row for name, row in rows.items() if len(set(row)) > 1}
    return pd.DataFrame.from_dict(changed, orient="index", columns=list(values), dtype=str)
