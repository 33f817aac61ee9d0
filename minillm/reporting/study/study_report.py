"""Stage study: turn the scores of a study's runs into a table, differences from the baseline, plots and a page."""

import json
from collections.abc import Sequence
from dataclasses import asdict

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from minillm.durable import write_atomically
from minillm.errors import StageError
from minillm.evaluation.uncertainty import prompt_scores
from minillm.files import read_json
from minillm.reporting.comparison import measure_of
from minillm.reporting.plots import Curves, read_curves
from minillm.reporting.study.measures import measure_table
from minillm.reporting.study.page import write
from minillm.reporting.study.variants import StudyComparison
from minillm.stages.base import Job, Summary
from minillm.stages.pages import StudyReport


def run(job: Job[StudyReport]) -> Summary:
    """Write results.csv, results.json, plots, study.md and study.html, and return the table's numbers."""
    settings = job.settings
    comparison = StudyComparison(read_scores(job, settings), settings.baseline, read_measure(job))
    comparison.frame(settings.seeds).to_csv(job.output / "results.csv", index=False)
    measures = measure_table(job.inputs, comparison.variants, settings.seeds)
    glance, sentences = write(comparison, settings, measures, training_curves(job, settings), job.output)
    results = {
        "name": settings.name,
        "verdict": sentences,
        "baseline": settings.baseline,
        "changes": settings.changes,
        "seeds": settings.seeds,
        "missing": settings.missing,
        "scores": [
            {"variant": variant, "benchmark": column, "by_seed": comparison.by_seed(variant, column)} | asdict(found)
            for (variant, column), found in comparison.estimates.items()
        ],
        "differences": [asdict(difference) for difference in comparison.differences.values()],
        "glance": glance,
    }
    write_atomically(job.output / "results.json", json.dumps(results, indent=2))
    return _summary(comparison) | {"verdict": " ".join(sentences)}


def read_scores(job: Job[StudyReport], settings: StudyReport) -> dict[str, dict[str, NDArray[np.float64]]]:
    """Read the scores of the prompts that count in every run, (s, n) by variant and benchmark.

    Raises:
        StageError: No prompt of a benchmark counts in every run.
    """
    read = {
        (variant, seed): prompt_scores(pd.read_parquet(job.inputs[f"score/{variant}/{seed}"] / "scores.parquet"))
        for variant in settings.changes
        for seed in settings.seeds
    }
    scores: dict[str, dict[str, NDArray[np.float64]]] = {variant: {} for variant in settings.changes}
    for name in next(iter(read.values())):
        table = pd.DataFrame({run: of[name] for run, of in read.items()}).dropna()
        if table.empty:
            raise StageError(f"benchmark {name}: no prompt counts in every run; lower its min_reference_tokens")
        for variant in settings.changes:
            scores[variant][name] = table[[(variant, seed) for seed in settings.seeds]].to_numpy(dtype=float).T
    return scores


def read_measure(job: Job[StudyReport]) -> str:
    """Return the name of the scores."""
    path = next(path for name, path in job.inputs.items() if name.startswith("score/"))
    benchmarks = read_json(path / "table.json")["benchmarks"].values()
    return measure_of(row["metric"] for row in benchmarks)


def training_curves(job: Job[StudyReport], settings: StudyReport) -> dict[str, Curves]:
    """Return curves as means over seeds, by variant, if all seeds have them over some of the same steps."""
    found: dict[str, Curves] = {}
    for variant in settings.changes:
        of_seeds = [read_curves(job.inputs[f"train/{variant}/{seed}"]) for seed in settings.seeds]
        shared = set(of_seeds[0]).intersection(*of_seeds)
        means = {name: mean_curve([of_seed[name] for of_seed in of_seeds]) for name in shared}
        found[variant] = {name: curve for name, curve in means.items() if not curve.empty}
    return found


def mean_curve(curves: Sequence[pd.Series]) -> pd.Series:
    """Average curves at every step that any of them has, over the steps that all of them cover.

    Each seed logs at its own steps (see `minillm.worker.progress`); a curve is linear between them.
    """
    return pd.concat(curves, axis=1).sort_index().interpolate("index", limit_area="inside").dropna().mean(axis=1)


def _summary(comparison: StudyComparison) -> Summary:
    summary: Summary = {}
    for (variant, column), found in comparison.estimates.items():
        summary[f"score/{variant}/{column}"] = found.value
    for (variant, column), difference in comparison.differences.items():
        summary[f"difference/{variant}/{column}"] = difference.value
        if difference.p_value is not None:
            summary[f"p_value/{variant}/{column}"] = difference.p_value
    return summary
