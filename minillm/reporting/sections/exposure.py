"""Section on exposure bias: excess accumulated error by length (see `minillm.evaluation.exposure`)."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from minillm.reporting.plots import Look, empty_figure, legend
from minillm.reporting.sections.base import Section, doubt_words, read_measured
from minillm.words import with_interval

COLUMNS = 4
"""Lengths in the table, evenly spaced up to the longest."""
MARKS = 10
"""Approximate number of markers on a curve."""
EXPLANATION = """\
What a student's own mistakes cost it, over {responses} responses to {prompts} prompts of {benchmark}. At \
every token, teacher and student are compared by the forward KL of the next token; these are summed by \
length, along the student's own responses and along the teacher's. The excess of the first sum over the \
second is the cost of continuing its own text: 0\u00a0% is none, 100\u00a0% means that its own text doubles the \
divergence. Below 0\u00a0%, the student is closer to its teacher on its own text than on the teacher's, or its \
answers are shorter: a response that has ended adds nothing. The excess is relative, so read it together \
with the sums: they are large for a student that omits much of what its teacher would say. Bands and \
brackets are 95\u00a0% intervals over prompts.\
"""


def exposure_section(inputs: Mapping[str, Path], roles: Sequence[str], look: Look) -> Section | None:
    """Show a figure and tables of the measured methods; None if there are none.

    Args:
        inputs: Inputs of the report; `exposure/ROLE` are read.
        roles: Rows of the result table.
        look: Colour and marker of each method.
    """
    measured = read_measured(inputs, "exposure", roles, "exposure.json")
    if not measured:
        return None
    ends = (None for of in measured.values() if "low" not in of["exaccerr"])
    longest = len(next(iter(measured.values()))["exaccerr"]["value"])
    return Section(
        title="Exposure bias",
        words=EXPLANATION.format(**next(iter(measured.values()))) + doubt_words(ends),
        tables={
            "Excess accumulated error by length in tokens, %": excess_table(measured, longest),
            f"Summed divergence from the teacher up to {longest} tokens, nats": sum_table(measured),
            "Mean divergence from the teacher, nats per token": token_table(measured),
        },
        figures={"exposure-bias": ("Excess accumulated error by length", excess_figure(measured, look))},
    )


def excess_table(measured: Mapping[str, Mapping[str, Any]], longest: int) -> pd.DataFrame:
    """Return method × length, ExAccErr with its interval."""
    lengths = sorted({-(-longest * number // COLUMNS) for number in range(1, COLUMNS + 1)})
    return pd.DataFrame(
        {str(length): [_cell(of["exaccerr"], length, 1) for of in measured.values()] for length in lengths},
        index=list(measured),
    )


def sum_table(measured: Mapping[str, Mapping[str, Any]]) -> pd.DataFrame:
    """Return R and l·ε with their intervals at the longest l, by method."""
    names = {"along its own responses": "student_text", "along the teacher's": "teacher_text"}
    return pd.DataFrame(
        {title: [_cell(of[name], 0, 2) for of in measured.values()] for title, name in names.items()},
        index=list(measured),
    )


def token_table(measured: Mapping[str, Mapping[str, Any]]) -> pd.DataFrame:
    """Return the mean reverse and forward KL of a token with their intervals, by method."""
    names = {"reverse KL, its own responses": "reverse_kl", "forward KL, the teacher's": "forward_kl"}
    rows = {
        role: {title: _estimate(of["per_token"][name]) for title, name in names.items()}
        for role, of in measured.items()
    }
    return pd.DataFrame.from_dict(rows, orient="index")


def excess_figure(measured: Mapping[str, Mapping[str, Any]], look: Look) -> Figure:
    """Draw ExAccErr by length, a line for each method within its 95 % interval."""
    figure, axes = empty_figure(height=3.2)
    for role, of in measured.items():
        curve, (colour, marker) = of["exaccerr"], look[role]
        lengths = range(1, len(curve["value"]) + 1)
        every = max(1, len(lengths) // MARKS)
        line = {"color": colour, "linewidth": 1.4, "marker": marker, "markersize": 4, "markevery": every}
        axes.plot(lengths, curve["value"], label=role, **line)
        if "low" in curve:
            axes.fill_between(lengths, curve["low"], curve["high"], color=colour, alpha=0.15, linewidth=0)
    axes.set_xlabel("length, tokens")
    axes.set_ylabel("excess accumulated error, %")
    legend(axes)
    return figure


def _estimate(found: Mapping[str, Any]) -> str:
    return with_interval(found["value"], (found["low"], found["high"]), 3)


def _cell(curve: Mapping[str, Sequence[float]], length: int, digits: int) -> str:
    """Return 'value [low, high]' at a length; length 0 is the longest."""
    value, *ends = (curve[end][length - 1] for end in ("value", "low", "high") if end in curve)
    return with_interval(value, ends, digits)
