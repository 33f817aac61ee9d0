"""Write the comparison of runs as a page, and as a short text for the console and Prefect.

The comparison comes from `runs`, the wording from templates/compare.md.jinja.
"""

from collections.abc import Mapping, Set
from datetime import datetime
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from minillm.reporting import plots
from minillm.reporting.comparing.runs import (
    MethodOfRun,
    Run,
    RunComparison,
    differences_by_prompt,
    differing,
    why_not_paired,
)
from minillm.reporting.comparison import MEAN, reading
from minillm.reporting.markdown import render
from minillm.reporting.pages import write_page
from minillm.reporting.sections.base import doubt_words
from minillm.words import ABSENT, number, p_statement, p_value, with_interval

DIGEST_CHARACTERS = 12


def write(comparison: RunComparison, other_page: str, output: Path) -> str:
    """Write compare.html, compare.md and the plots.

    Args:
        comparison: The runs.
        other_page: Address of the tracking server's own comparison of them.
        output: An empty folder.

    Returns:
        The Markdown without links and figures, for a quick look.
    """
    figures, runs = draw(comparison, looks(comparison)), comparison.runs
    page = {
        "title": ", ".join(run.label for run in runs),
        "comparison": comparison,
        "started": [datetime.fromtimestamp(run.started).strftime("%Y-%m-%d %H:%M") for run in runs],
        "other_page": other_page,
        "sentences": [*run_verdict(comparison), *silent_runs(comparison)],
        "scores": score_table(comparison),
        "differences": difference_tables(comparison),
        "doubt_words": doubt_words(
            (end for row in comparison.cells.values() for cell in row.values() for end in cell["interval"]),
            (len(of) for row in comparison.scored for of in row.scores.values()),
        ),
        "configuration": differing({run.label: run.params for run in runs}),
        "data": differing({run.label: run.data for run in runs}).map(lambda digest: digest[:DIGEST_CHARACTERS]),
        "code": differing({run.label: run.code for run in runs}),
        "others": other_figures(comparison),
        "curves": [name for name in figures if name != "benchmarks"],
    }
    write_page("compare", page, figures, output)
    return render("compare.md", page | {"glance": True})


def run_verdict(comparison: RunComparison) -> list[str]:
    """Compare the mean of each row of a later run with the first run's, a sentence each; main methods first."""
    sentences = []
    for row, other in sorted(comparison.pairs, key=lambda pair: pair[0].method not in pair[0].run.main_methods):
        found = comparison.differences.get((row.name, other.name, MEAN))
        if found is None:
            sentences.append(f"{row.name} and {other.name}: no mean, because no benchmark is the same in all runs.")
        else:
            words = f"is {reading(found)}" if found.clear else "cannot be told apart from"
            sentences.append(f"{row.name} {words} {other.name}: {found}, {p_statement(found.p_value)}.")
    return sentences


def silent_runs(comparison: RunComparison) -> list[str]:
    """Name each run without scores, a sentence each."""
    only = "only its configuration, data, code and curves are compared"
    lost = "no scores per prompt, because its files in MLflow are older or out of reach from here"
    return [
        f"{run.label} ({run.status.lower()}) has {lost if _measured(run) else 'no scores'}: {only}."
        for run in comparison.runs
        if not run.scores
    ]


def score_table(comparison: RunComparison) -> pd.DataFrame:
    """MethodOfRun × benchmark and their mean, 'mean [low, high]' of the score; no columns where nothing was scored."""
    columns = [name for name in dict.fromkeys(n for row in comparison.cells.values() for n in row) if name != MEAN]
    columns += [MEAN] if comparison.shared else []
    rows = {
        name: [
            with_interval(cells[column]["mean"], cells[column]["interval"]) if column in cells else ABSENT
            for column in columns
        ]
        for name, cells in comparison.cells.items()
    }
    headings = [comparison.label(column) for column in columns]
    return pd.DataFrame.from_dict(rows, orient="index", columns=headings, dtype=str)


def difference_tables(comparison: RunComparison) -> dict[str, pd.DataFrame]:
    """Return a table for each pair, by its title: benchmark × difference, prompts, p-value and reading."""
    tables = {}
    for row, other in comparison.pairs:
        names = [*dict.fromkeys([*row.scores, *other.scores]), *([MEAN] if comparison.shared else [])]
        lines = {name: _difference(comparison, row, other, name) for name in names}
        tables[f"{row.name} minus {other.name}"] = pd.DataFrame.from_dict(lines, orient="index")
    return tables


def other_figures(comparison: RunComparison) -> pd.DataFrame:
    """Return the other measurements of the rows: the mean of each metric, or all values of one without a mean."""
    known = comparison.metrics if len(comparison.metrics) == 1 else set()
    columns = {row.name: _metrics(row, known) for row in comparison.scored}
    names = sorted({name for of_row in columns.values() for name in of_row})
    means = {name.split("/")[0] for name in names if name.endswith(f"/{MEAN}")}
    shown = [name for name in names if name.split("/")[0] not in means or name.endswith(f"/{MEAN}")]
    rows = {name: [number(of[name], 2) if name in of else ABSENT for of in columns.values()] for name in shown}
    return pd.DataFrame.from_dict(rows, orient="index", columns=list(columns), dtype=str)


def looks(comparison: RunComparison) -> plots.Look:
    """Give each run a colour and each method a marker, or each run a marker if it has one row."""
    runs, methods = list(comparison.runs), list(dict.fromkeys(row.method for row in comparison.rows))
    places = {
        row.name: (runs.index(row.run), methods.index(row.method) if comparison.every_method else runs.index(row.run))
        for row in comparison.rows
    }
    return {
        name: (plots.COLOURS[run % len(plots.COLOURS)], plots.MARKERS[mark % len(plots.MARKERS)])
        for name, (run, mark) in places.items()
    }


def draw(comparison: RunComparison, look: plots.Look) -> dict[str, tuple[str, Figure]]:
    """Draw the scores with their intervals and the curves of each metric; by file name, with their titles."""
    figures: dict[str, tuple[str, Figure]] = {}
    if comparison.cells:
        figures["benchmarks"] = (
            f"{comparison.measure} by benchmark",
            plots.score_figure(comparison.cells, comparison.measure, look),
        )
    curves = {row.name: row.run.curves.get(row.method, {}) for row in comparison.rows}
    return figures | plots.curve_figures(curves, look, marked=True)


def _difference(comparison: RunComparison, row: MethodOfRun, other: MethodOfRun, benchmark: str) -> Mapping[str, str]:
    found = comparison.differences.get((row.name, other.name, benchmark))
    if found is None:
        reason = why_not_paired(row, other, benchmark) or ""
        return {"difference": ABSENT, "prompts": ABSENT, "p, adjusted": ABSENT, "": reason}
    names = comparison.shared if benchmark == MEAN else [benchmark]
    paired = sum(len(differences_by_prompt(row, other, name)) for name in names)
    most = sum(max(len(row.scores[name]), len(other.scores[name])) for name in names)
    return {
        "difference": str(found),
        "prompts": str(paired) if paired == most else f"{paired} of {most}",
        "p, adjusted": p_value(found.p_value),
        "": reading(found),
    }


def _measured(run: Run) -> bool:
    return any(name.startswith("rouge_l/") for name in run.metrics)


def _metrics(row: MethodOfRun, known: Set[str]) -> dict[str, float]:
    """Return the metrics of the row's method but the known ones, METRIC/METHOD/BENCHMARK as METRIC/BENCHMARK."""
    parts = {tuple(name.split("/")): value for name, value in row.run.metrics.items()}
    return {
        "/".join([metric, *named[1:]]): value
        for (metric, *named), value in parts.items()
        if metric not in known and named and named[0] == row.method
    }
