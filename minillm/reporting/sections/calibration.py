"""Section on calibration: accuracy and calibration error on multiple-choice sets, with reliability diagrams."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from minillm.reporting.plots import INK, Look, empty_figure, legend
from minillm.reporting.sections.base import Section, doubt_words, interval_table, read_measured
from minillm.words import number

EXPLANATION = (
    "Each model chooses among given answers by the probability that it gives them as responses to the prompt, without "
    "examples. Accuracy: the share of right choices, in percent. Expected calibration error (ECE), from 0 to 1: the "
    "gap between the probability of its choice and the share of right choices, over 15 bins of that probability. In "
    "brackets, 95 % intervals over prompts. With few prompts, chance alone makes the ECE of any model too large; its "
    "interval allows for that, so it may lie mostly below the figure and reach 0. In the diagrams, points below the "
    "diagonal are overconfident; a larger point stands for more answers, and bins with less than 1 % of the answers "
    "are left out."
)
SMALLEST_SHARE = 0.01
"""Smallest share of all predictions in a bin that is drawn; below it, the share right is mostly chance."""


def calibration_section(inputs: Mapping[str, Path], roles: Sequence[str], look: Look) -> Section | None:
    """Show accuracy and ECE of each method on each set; None if they were not measured."""
    measured = read_measured(inputs, "calibration", roles, "calibration.json")
    if not measured:
        return None
    tables = {
        "Accuracy, %": interval_table(measured, "accuracy"),
        "Expected calibration error": interval_table(measured, "ece", 3),
    }
    figures = {
        f"calibration-{name}": (
            f"Reliability on {name}",
            reliability_figure({role: of[name] for role, of in measured.items()}, look, "probability of the choice"),
        )
        for name in next(iter(measured.values()))
    }
    sets = [found for of in measured.values() for found in of.values()]
    ends = (end for found in sets for what in ("accuracy", "ece") for end in found[what]["interval"])
    words = EXPLANATION + doubt_words(ends, (found["prompts"] for found in sets))
    return Section("Calibration", words, tables, figures)


def reliability_figure(measured: Mapping[str, Mapping[str, Any]], look: Look, confidence: str) -> Figure:
    """Draw the share of right answers of each method by its confidence, and name its ECE.

    Args:
        measured: Findings of `minillm.evaluation.reliability` by method.
        look: Colour and marker of each method.
        confidence: Label of the axis of probability.
    """
    figure, axes = empty_figure(height=4.2)
    axes.plot([0, 1], [0, 1], color=INK, linewidth=0.8, linestyle=":")
    for role, found in measured.items():
        colour, marker = look[role]
        label = f"{role} {number(found['ece']['value'], 3)}"
        sure, right, share = points(found["bins"])
        axes.plot(sure, right, color=colour, linewidth=0.8, marker=marker, markersize=2, label=label, clip_on=False)
        axes.scatter(sure, right, s=120 * share, color=colour, marker=marker, linewidths=0, clip_on=False)
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    axes.set_aspect("equal")
    axes.set_xlabel(confidence)
    axes.set_ylabel("share that is right")
    legend(axes)
    return figure


def points(sums: ArrayLike) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return mean confidence, share right and share of all predictions of each bin that is drawn."""
    number, confidence, correct = np.asarray(sums)
    share = number / number.sum()
    shown = share >= SMALLEST_SHARE
    return confidence[shown] / number[shown], correct[shown] / number[shown], share[shown]
