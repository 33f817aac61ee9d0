"""Section on human preference: wins, ties and losses, and the agreement of annotators."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from minillm.evaluation.differences import LEVEL, Difference
from minillm.files import read_json
from minillm.reporting.plots import Look, empty_figure, legend
from minillm.reporting.sections.base import Section, doubt_words
from minillm.words import ABSENT, number, with_interval

TIE = "#C8C8C8"
LABELLED_SHARE = 8.0
"""Percent; a narrower part of a bar has no room for its figure."""
EXPLANATION = (
    "They saw two answers to each prompt, in random order and without the methods' names, and chose the better one. "
    "Percent with 95 % intervals over prompts; a prompt counts as the mean over its annotators. * marks wins minus "
    f"losses with p < {LEVEL}, by a sign-flip test over prompts, adjusted (Holm) for the comparisons between "
    "methods, and for those with the teacher. Cohen's κ is agreement beyond chance: 1 if two annotators always "
    "agree, 0 if they agree as often as chance would."
)


def preference_section(inputs: Mapping[str, Path], roles: Sequence[str], look: Look) -> Section | None:
    """Show the findings of stage `preference`, if people compared answers; not all methods need be among them."""
    del roles
    if "preference" not in inputs:
        return None
    found = read_json(inputs["preference"] / "preference.json")
    tables = {"Wins, ties and losses": share_table(found["comparisons"])}
    if found["agreement"]:
        tables["Agreement of annotators"] = agreement_table(found["agreement"])
    ends = (row[what]["low"] for row in found["comparisons"] for what in ("win", "tie", "loss", "net"))
    doubts = doubt_words(ends, (row["prompts"] for row in found["comparisons"]))
    words = f"Annotators: {', '.join(found['annotators'])}. {EXPLANATION}{doubts}"
    figure = preference_figure(found["comparisons"], look)
    return Section("Human preference", words, tables, {"preference": ("Human preference", figure)})


def share_table(comparisons: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Return the shares of each comparison, wins minus losses, and the numbers of prompts and judgements."""
    rows = {}
    for row in comparisons:
        net = Difference(row["method"], row["other"], "", **row["net"])
        rows[f"{row['method']} against {row['other']}"] = {
            **{f"{choice}, %": _with_interval(row[choice]) for choice in ("win", "tie", "loss")},
            "win − loss": net.marked,
            **{counted: str(row[counted]) for counted in ("prompts", "judgements")},
        }
    return pd.DataFrame.from_dict(rows, orient="index")


def agreement_table(agreement: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Return the agreement of every two annotators."""
    rows = {
        f"{row['first']} and {row['second']}": {
            "pairs of both": str(row["pairs"]),
            "same choice, %": number(row["same"]),
            "Cohen's κ": ABSENT if row["kappa"] is None else number(row["kappa"], 2),
        }
        for row in agreement
    }
    return pd.DataFrame.from_dict(rows, orient="index")


def preference_figure(comparisons: Sequence[Mapping[str, Any]], look: Look) -> Figure:
    """Draw a bar of wins, ties and losses for each comparison, each part in the winner's colour."""
    figure, axes = empty_figure(height=1.1 + 0.4 * len(comparisons))
    for place, row in enumerate(comparisons):
        parts = [("win", look[row["method"]][0], row["method"]), ("tie", TIE, "tie")]
        parts.append(("loss", look[row["other"]][0], row["other"]))
        left = 0.0
        for choice, colour, winner in parts:
            share = row[choice]["value"]
            named = winner in axes.get_legend_handles_labels()[1]
            bars = axes.barh(place, share, left=left, height=0.7, color=colour, label="_" if named else winner)
            if share >= LABELLED_SHARE:
                axes.bar_label(bars, [number(share, 0)], label_type="center", color="black")
            left += share
    axes.set_yticks(range(len(comparisons)), [f"{row['method']}\nagainst {row['other']}" for row in comparisons])
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False, axis="y")
    axes.set_axisbelow(True)
    axes.set_ylim(len(comparisons) - 0.5, -0.5)
    axes.set_xlim(0, 100)
    axes.set_xlabel("better answer, % of prompts")
    legend(axes)
    return figure


def _with_interval(share: Mapping[str, Any]) -> str:
    return with_interval(share["value"], (share["low"], share["high"]))
