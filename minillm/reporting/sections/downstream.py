"""Part of the report on lm-evaluation-harness's tasks: what each asks, and the score of every method."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from minillm.files import read_json
from minillm.reporting import plots
from minillm.reporting.sections.base import Section
from minillm.words import ABSENT, span, with_spread

EXPLANATION = (
    "Tasks of lm-evaluation-harness {version}, with its own prompts and metrics: the score and its standard error as "
    "the harness gives them. Accuracies are between 0 and 1, and guessing among four answers gets 0.25. Cut: questions "
    "longer than the models see at once, whose beginning was left out; a range where models see different lengths."
)

TaskScore = Mapping[str, Any]


def downstream_section(inputs: Mapping[str, Path], roles: Sequence[str], look: plots.Look) -> Section | None:
    """A table and a figure of the harness's tasks; None for a run that asked for none.

    Args:
        inputs: Of the report; `downstream/ROLE` for each role.
        roles: Rows of the result table.
        look: Of the methods.
    """
    if f"downstream/{roles[0]}" not in inputs:
        return None
    found = {role: read_json(inputs[f"downstream/{role}"] / "table.json") for role in roles}
    rows = {role: facts["tasks"] for role, facts in found.items()}
    figure = accuracy_figure(rows, look)
    return Section(
        title="Downstream tasks",
        words=EXPLANATION.format(version=found[roles[0]]["harness"]),
        tables={"Scores": score_table(rows)},
        figures={"downstream": ("Downstream tasks", figure)} if figure else {},
    )


def score_table(rows: Mapping[str, Mapping[str, TaskScore]]) -> pd.DataFrame:
    """Task × what was asked and the score of each method.

    Args:
        rows: By method and task, of the methods' table.json.
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
    """Score and standard error of every method on the tasks scored from 0 to 1; None where there is none."""
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
