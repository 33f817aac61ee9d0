"""Section on the tasks of lm-evaluation-harness: facts of each task, and the score of every method."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from minillm.reporting import plots
from minillm.reporting.sections.base import Section, read_measured
from minillm.words import ABSENT, span, with_spread

EXPLANATION = (
    "Tasks of lm-evaluation-harness {version}, with its own prompts and metrics: the score and its standard error as "
    "reported by the harness. Accuracies are between 0 and 1; guessing among four answers gets 0.25. Cut: questions "
    "longer than the models' context, whose beginning was left out; a range if the models' contexts differ."
)

TaskScore = Mapping[str, Any]


def downstream_section(inputs: Mapping[str, Path], roles: Sequence[str], look: plots.Look) -> Section | None:
    """Show a table and a figure of the harness's tasks; None for a run without any.

    Args:
        inputs: Inputs of the report; `downstream/ROLE` are read.
        roles: Rows of the result table.
        look: Colour and marker of each method.
    """
    found = read_measured(inputs, "downstream", roles, "table.json")
    if not found:
        return None
    rows = {role: facts["tasks"] for role, facts in found.items()}
    figure = accuracy_figure(rows, look)
    return Section(
        title="Downstream tasks",
        words=EXPLANATION.format(version=next(iter(found.values()))["harness"]),
        tables={"Scores": score_table(rows)},
        figures={"downstream": ("Downstream tasks", figure)} if figure else {},
    )


def score_table(rows: Mapping[str, Mapping[str, TaskScore]]) -> pd.DataFrame:
    """Return task × facts of the task and score of each method.

    Args:
        rows: Entries of the methods' table.json, by method and task.
    """
    first = next(iter(rows.values()))
    table = {}
    for task, facts in first.items():
        cut = [of_role[task]["cut"] for of_role in rows.values()]
        lower = "" if facts["higher_is_better"] is not False else ", lower is better"
        table[task] = {
            "metric": facts["metric"] + lower,
            "version": facts["version"],
            "examples": ABSENT if facts["shots"] is None else str(facts["shots"]),
            "questions": str(facts["questions"]),
            "cut": span(min(cut), max(cut)),
            **{role: _words(of_role[task]) for role, of_role in rows.items()},
        }
    return pd.DataFrame.from_dict(table, orient="index")


def accuracy_figure(rows: Mapping[str, Mapping[str, TaskScore]], look: plots.Look) -> Figure | None:
    """Draw score and standard error of every method on the tasks scored from 0 to 1; None if there are none."""
    first = next(iter(rows.values()))
    tasks = [task for task in first if all(0 <= of_role[task]["value"] <= 1 for of_role in rows.values())]
    if not tasks:
        return None
    cells = {role: {task: _cell(of_role[task]) for task in tasks} for role, of_role in rows.items()}
    return plots.interval_figure(cells, "score (0–1) and its standard error", look)


def _cell(row: TaskScore) -> dict[str, Any]:
    value, error = row["value"], row["stderr"]
    return {"mean": value, "interval": [None, None] if error is None else [value - error, value + error]}


def _words(row: TaskScore) -> str:
    return with_spread(row["value"], row["stderr"], 3)
