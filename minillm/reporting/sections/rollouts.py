"""Section on rollouts: figures of each round of a training on the student's own responses, as small multiples."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

from minillm.reporting.model_words import collapses
from minillm.reporting.plots import STYLE, Curves, Look, read_curves, stretches
from minillm.reporting.sections.base import Section
from minillm.training.collapse import COLLAPSED

PANELS = {
    "student_entropy": "entropy, nats (dashed: the teacher's)",
    "top_5_overlap": "top-5 overlap",
    "finished": "share of responses that finished",
    "repeated_4_grams": "share of repeated 4-grams",
    "length_ratio": "length against the reference's",
    "clipped_share": "share of clipped tokens",
    "policy_ratio_error": "mean |ρ − 1| before the first update",
    "sampling_log_ratio": "largest |log ρ| against sampling",
}
"""Figures under `train/` in metrics.jsonl (method.md §3), with the headings of their panels."""
COLUMNS = 2
EXPLANATION = (
    "The responses that the student trained on, round by round: the mean entropy of both models' next token; the share "
    "of the student's 5 likeliest tokens that are among the teacher's; the share of responses that ended before the "
    "length limit; the share of 4-grams that had occurred before in the same response; the length of the responses "
    "against that of the data's; the share of tokens whose policy ratio ρ was outside the clip range, in all steps; "
    "how far ρ was from 1 before the first update, against the scoring pass and against sampling. Signs of a collapse "
    "are an entropy near zero, responses that hardly begin or never end, and repetition. A dotted line marks the step "
    "at which training was found to have collapsed."
)


def rollouts_section(inputs: Mapping[str, Path], roles: Sequence[str], look: Look) -> Section | None:
    """Show small multiples of the methods trained on rollouts; None if there are none.

    Args:
        inputs: Inputs of the report; `train/ROLE` are read.
        roles: Rows of the result table.
        look: Colour and marker of each method.
    """
    trained = {role: inputs[f"train/{role}"] for role in roles if f"train/{role}" in inputs}
    curves = {role: read_curves(path) for role, path in trained.items()}
    curves = {role: of for role, of in curves.items() if f"train/{next(iter(PANELS))}" in of}
    if not curves:
        return None
    words = " ".join([EXPLANATION, *collapses(trained)])
    return Section("Rollouts in training", words, figures={"rollouts": ("Rollouts by round", panels(curves, look))})


def panels(curves: Mapping[str, Curves], look: Look) -> Figure:
    """Draw each figure by optimizer step in a panel of its own, a line for each method."""
    rows = math.ceil(len(PANELS) / COLUMNS)
    with mpl.rc_context({**STYLE, "font.size": 8}):
        figure = Figure(figsize=(5.2, 0.3 + 1.25 * rows), layout="constrained")
        grid = figure.subplots(rows, COLUMNS, sharex=True).flat
        for axes, (name, heading) in zip(grid, PANELS.items(), strict=True):
            axes.set_title(heading, fontsize=8, loc="left")
            for role, of in curves.items():
                if f"train/{name}" in of:  # a teacher that runs elsewhere is not compared at every entry
                    axes.plot(*stretches(of[f"train/{name}"]), color=look[role][0], lw=1.4, label=role)
                if name == "student_entropy" and "train/teacher_entropy" in of:
                    axes.plot(*stretches(of["train/teacher_entropy"]), color=look[role][0], lw=1, ls="--")
                if COLLAPSED in of:
                    axes.axvline(of[COLLAPSED].index[0], color=look[role][0], lw=1, ls=":")
        figure.supxlabel("optimizer step", fontsize=8)
        if len(curves) > 1:
            handles, labels = grid[0].get_legend_handles_labels()
            figure.legend(handles, labels, loc="outside upper left", ncols=5)
    return figure
