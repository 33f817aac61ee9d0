"""Write a study as a page, and as a short text for the console and Prefect.

The numbers come from `variants`, the wording from templates/study.md.jinja.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from minillm.evaluation.differences import Difference
from minillm.reporting import plots
from minillm.reporting.comparison import MEAN
from minillm.reporting.markdown import render
from minillm.reporting.pages import write_page
from minillm.reporting.sections.base import doubt_words
from minillm.reporting.study.variants import StudyComparison
from minillm.stages.pages import StudyReport
from minillm.words import ABSENT, number, p_statement, p_value, with_interval

SHOWN_CURVES = (*plots.DIVERGENCE_CURVES, "train/response_tokens", "valid/rouge_l", "valid/rouge_l_characters")


def write(
    comparison: StudyComparison,
    settings: StudyReport,
    measures: pd.DataFrame,
    curves: Mapping[str, plots.Curves],
    output: Path,
) -> tuple[str, list[str]]:
    """Write study.html, study.md and the plots.

    Args:
        comparison: The variants.
        settings: Name of the study, and changes of each variant.
        measures: Figures of each variant beside its scores.
        curves: Training curves by variant.
        output: An empty folder.

    Returns:
        The Markdown without figures, for a quick look, and the sentences of the verdict.
    """
    sentences = [*study_verdict(comparison), *_missing(settings)]
    figures = draw(comparison, settings, curves)
    page = {
        "title": settings.name,
        "base": settings.base,
        "method": settings.method,
        "measure": comparison.measure,
        "baseline": settings.baseline,
        "seeds": settings.seeds,
        "sentences": sentences,
        "changes": change_table(settings),
        "scores": score_table(comparison),
        "differences": difference_table(comparison),
        "doubt_words": doubt_words(
            (found.low for found in comparison.estimates.values()),
            (of.shape[1] for of in comparison.scores[comparison.baseline].values()),
        ),
        "measures": measures,
        "by_seed": seed_table(comparison, settings.seeds),
        "curves": [name for name in figures if name not in ("differences", "parameter")],
    }
    write_page("study", page, figures, output)
    return render("study.md", page | {"glance": True}), sentences


def study_verdict(comparison: StudyComparison) -> list[str]:
    """Give the baseline's mean, and the variants above it, below it, and not distinguishable from it."""
    base = comparison.estimates[comparison.baseline, MEAN]
    means = [comparison.differences[variant, MEAN] for variant in comparison.others]
    groups = {
        f"Above {comparison.baseline}": [d for d in means if d.clear and d.value > 0],
        f"Below {comparison.baseline}": [d for d in means if d.clear and d.value < 0],
        "Not distinguishable from it": [d for d in means if not d.clear],
    }
    first = f"{comparison.baseline}: {comparison.measure} {with_interval(base.value, (base.low, base.high))}."
    return [first, *(f"{words}: {'; '.join(map(_named, of))}." for words, of in groups.items() if of)]


def change_table(settings: StudyReport) -> pd.DataFrame:
    """Return the changes that each variant makes to the base."""
    rows = {name: [", ".join(changes) or ABSENT] for name, changes in settings.changes.items()}
    return pd.DataFrame.from_dict(rows, orient="index", columns=["changes"], dtype=str)


def score_table(comparison: StudyComparison) -> pd.DataFrame:
    """Return variant × benchmark and their mean, 'mean [low, high]' of the score."""
    estimates = comparison.estimates
    cells = {key: with_interval(found.value, (found.low, found.high)) for key, found in estimates.items()}
    return _table(cells, comparison.variants, list(comparison.columns))


def difference_table(comparison: StudyComparison) -> pd.DataFrame:
    """Return variant × benchmark and their mean minus the baseline, * marks clear ones; last, the mean's p-value."""
    cells = {key: d.marked for key, d in comparison.differences.items()}
    table = _table(cells, comparison.others, list(comparison.columns))
    table["p"] = [p_value(comparison.differences[variant, MEAN].p_value) for variant in comparison.others]
    return table


def seed_table(comparison: StudyComparison, seeds: Sequence[int]) -> pd.DataFrame:
    """Return the mean over benchmarks of every variant with each training seed."""
    rows = {variant: [number(value) for value in comparison.by_seed(variant, MEAN)] for variant in comparison.variants}
    return pd.DataFrame.from_dict(rows, orient="index", columns=[f"seed {seed}" for seed in seeds], dtype=str)


def draw(
    comparison: StudyComparison, settings: StudyReport, curves: Mapping[str, plots.Curves]
) -> dict[str, tuple[str, Figure]]:
    """Draw all figures; title and figure by the name of the file."""
    look = plots.looks([comparison.baseline, *comparison.others])
    figures: dict[str, tuple[str, Figure]] = {}
    if comparison.others:
        figures["differences"] = (f"Difference from {comparison.baseline}", difference_figure(comparison, look))
    if settings.points is not None and settings.parameter is not None:
        title = f"{comparison.measure} by {settings.parameter.rpartition('.')[2]}"
        figures["parameter"] = (title, parameter_figure(comparison, settings.points, settings.parameter))
    of_curves = plots.curve_figures(curves, look, marked=True, metrics=SHOWN_CURVES)
    return figures | {name: (f"{title}, mean over training seeds", of) for name, (title, of) in of_curves.items()}


def difference_figure(comparison: StudyComparison, look: plots.Look) -> Figure:
    """Draw the difference of every variant from the baseline on every benchmark, with intervals."""
    cells = {
        variant: {column: _cell(comparison.differences[variant, column]) for column in comparison.columns}
        for variant in comparison.others
    }
    figure = plots.interval_figure(
        cells, f"{comparison.measure} minus that of {comparison.baseline}, 95 % interval", look
    )
    figure.axes[0].axvline(0, color=plots.INK, linewidth=0.8)
    return figure


def parameter_figure(comparison: StudyComparison, points: Mapping[str, float], parameter: str) -> Figure:
    """Draw the score by the number in which variants differ: every benchmark, and their mean with its band."""
    figure, axes = plots.empty_figure(height=3.2)
    order = sorted(points, key=points.__getitem__)
    places = [points[variant] for variant in order]
    look = plots.looks([MEAN, *(column for column in comparison.columns if column != MEAN)])
    for column in comparison.columns:
        found = [comparison.estimates[variant, column] for variant in order]
        colour, marker = look[column]
        width = 2 if column == MEAN else 1
        axes.plot(places, [of.value for of in found], color=colour, marker=marker, ms=4, lw=width, label=column)
        if column == MEAN and all(of.low is not None for of in found):
            low, high = [of.low for of in found], [of.high for of in found]
            axes.fill_between(places, low, high, color=colour, alpha=0.2, linewidth=0)  # type: ignore[arg-type]
    axes.set_xlabel(parameter)
    axes.set_ylabel(f"{comparison.measure} (0–100)")
    plots.legend(axes)
    return figure


def _missing(settings: StudyReport) -> list[str]:
    return [f"Left out, because runs failed: {', '.join(settings.missing)}."] if settings.missing else []


def _table(cells: Mapping[tuple[str, str], str], rows: Sequence[str], columns: list[str]) -> pd.DataFrame:
    found = {row: [cells[row, column] for column in columns] for row in rows}
    return pd.DataFrame.from_dict(found, orient="index", columns=columns, dtype=str)


def _cell(difference: Difference) -> dict[str, Any]:
    return {"mean": difference.value, "interval": [difference.low, difference.high]}


def _named(difference: Difference) -> str:
    return f"{difference.method} ({difference}, {p_statement(difference.p_value)})"
