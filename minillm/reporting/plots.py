"""Draw the figures of the pages, once for light and dark pages, and save them as PNG too.

A method has the same colour and marker in every figure. The colours are those of Okabe and Ito, which colour-blind
readers can tell apart.
"""

import io
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from minillm.config import DIVERGENCES
from minillm.reporting.comparison import MEAN, METRIC_NAMES, Comparison
from minillm.store.artifacts import METRICS
from minillm.worker.progress import read_metrics

INK = "#010203"
"""Colour of text and axes; a page replaces it by its own text colour."""
TEACHER = "#808080"
COLOURS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C510A", "#7B5EA7")
MARKERS = ("s", "o", "^", "D", "v", "P", "X")
DIVERGENCE_CURVES = {
    f"train/{name}": f"{words[0].upper()}{words[1:]}{'' if name == 'preference' else ' to the teacher'}, nats"
    for name, words in DIVERGENCES.items()
    if name != "cross_entropy"  # which asks no teacher
}
CURVES = {
    "train/loss": "Training loss",
    "valid/loss": "Validation loss, nats per token",
    "valid/rouge_l": "Validation Rouge-L (0–100)",
    "valid/rouge_l_characters": "Validation Rouge-L of characters (0–100)",
    **DIVERGENCE_CURVES,
    "train/response_tokens": "Length of rollouts, tokens",
}
"""Metrics drawn by step, where a model has them."""
MAX_POINTS = 200
"""A longer curve is drawn as means over this many stretches of steps."""
MARKED_POINTS = 20
"""A curve of at most this many points marks each of them."""
MARKS = 8
"""Markers on a longer curve, where several rows may share a colour."""
LEGEND_CHARACTERS = 75
"""Characters that fit on a line of a legend."""
KEY_CHARACTERS = 6
"""Width of a line with its marker and the space around it, in characters."""
LEGEND_LINE = 0.17
"""Height of a line of a legend, in inches; figures have room for two lines."""
STYLE: dict[Any, Any] = {
    "font.size": 9,
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#808080",
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "legend.handletextpad": 0.4,
    "legend.columnspacing": 1.2,
    "svg.fonttype": "none",
    "svg.hashsalt": "report",
    "text.parse_math": False,
}

Look = dict[str, tuple[str, str]]
"""Colour and marker of each method."""
Curves = Mapping[str, pd.Series]
"""Value by optimizer step, by metric."""


def looks(roles: Sequence[str]) -> Look:
    """Choose colour and marker of each method; the first one, the teacher, is grey."""
    later = [(COLOURS[number % len(COLOURS)], MARKERS[(number + 1) % len(MARKERS)]) for number in range(len(roles) - 1)]
    return dict(zip(roles, [(TEACHER, MARKERS[0]), *later], strict=True))


def score_figure(cells: Mapping[str, Mapping[str, Mapping[str, Any]]], measure: str, look: Look) -> Figure:
    """Draw the score of every method on every benchmark."""
    return interval_figure(cells, f"{measure} (0–100), mean and 95 % interval over prompts", look)


def interval_figure(cells: Mapping[str, Mapping[str, Mapping[str, Any]]], label: str, look: Look) -> Figure:
    """Draw a value of every method on every benchmark, with its 95 % interval if there is one.

    Args:
        cells: `mean` and `interval` by method and benchmark; a method may lack some benchmarks.
        label: Label of the axis.
        look: Colour and marker of each method.
    """
    rows = sorted(dict.fromkeys(name for row in cells.values() for name in row), key=lambda name: name == MEAN)
    figure, axes = empty_figure(height=0.9 + 0.13 * len(rows) * (len(cells) + 1.5))
    for place, (role, row) in enumerate(cells.items()):
        offset = 0.8 * ((place + 0.5) / len(cells) - 0.5)
        axes.errorbar(
            [cell["mean"] for cell in row.values()],
            [rows.index(name) + offset for name in row],
            xerr=np.transpose([_reach(cell) for cell in row.values()]),
            linestyle="none",
            **_dots(look[role], role),
        )
    for boundary in range(1, len(rows)):
        axes.axhline(boundary - 0.5, color=INK, linewidth=0.5, alpha=0.4)
    axes.set_yticks(range(len(rows)), rows)
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False, axis="y")
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlabel(label)
    legend(axes)
    return figure


def _reach(cell: Mapping[str, Any]) -> tuple[float, float]:
    """Return the distances from the mean to both ends of the interval."""
    low, high = (cell["mean"] if end is None else end for end in cell["interval"])
    return cell["mean"] - low, high - cell["mean"]


def length_figure(benchmark: str, comparison: Comparison, look: Look) -> Figure | None:
    """Draw the score by reference length; None for a benchmark without length subsets."""
    subsets = {role: comparison.tables[role]["benchmarks"][benchmark] for role in comparison.roles}
    labels = list(subsets[comparison.roles[0]].get("score_by_length", {}))
    if not labels:
        return None
    figure, axes = empty_figure(height=3.2)
    for place, (role, row) in enumerate(subsets.items()):
        cells = [row["score_by_length"][label] for label in labels]
        offset = 0.3 * ((place + 0.5) / len(subsets) - 0.5)
        axes.errorbar(
            [number + offset for number in range(len(labels))],
            [cell["mean"] for cell in cells],
            yerr=[cell["spread"] for cell in cells],
            linewidth=1,
            **_dots(look[role], role),
        )
    counts = [subsets[comparison.roles[0]]["score_by_length"][label]["prompts"] for label in labels]
    names = [
        f"{label.replace('-up', ' or more').replace('-', '–')}\n({n} prompts)"
        for label, n in zip(labels, counts, strict=True)
    ]
    axes.set_xticks(range(len(labels)), names)
    axes.set_xlim(-0.5, len(labels) - 0.5)
    axes.grid(visible=False, axis="x")
    axes.set_xlabel("tokens of the first reference")
    axes.set_ylabel(f"{METRIC_NAMES[comparison.metric(benchmark)]} (0–100)")
    legend(axes)
    return figure


def read_curves(train_artifact: Path) -> Curves:
    """Read the curves that a training logged."""
    points = pd.DataFrame(read_metrics(train_artifact / METRICS), columns=["step", "metric", "value"])
    return {str(metric): pd.Series(of.set_index("step")["value"]) for metric, of in points.groupby("metric")}


def curve_figures(
    curves: Mapping[str, Curves], look: Look, marked: bool = False, metrics: Iterable[str] = CURVES
) -> dict[str, tuple[str, Figure]]:
    """Draw each metric by optimizer step, a line for each model that has it; title and figure by the name of the file.

    Args:
        curves: Curves of each model.
        look: Colour and marker of each model.
        marked: Whether a curve that is too long to mark each point has some markers.
        metrics: Names in CURVES, in the order of the figures.
    """
    figures = {}
    for metric in metrics:
        if having := {model: of[metric] for model, of in curves.items() if metric in of}:
            figures[metric.replace("/", "-")] = (CURVES[metric], _curve_figure(CURVES[metric], having, look, marked))
    return figures


def _curve_figure(label: str, curves: Mapping[str, pd.Series], look: Look, marked: bool) -> Figure:
    figure, axes = empty_figure(height=2.9)
    few = max(map(len, curves.values())) <= MARKED_POINTS
    for model, curve in curves.items():
        steps, values = stretches(curve)
        colour, marker = look[model]
        every = 1 if few or not marked else max(1, len(steps) // MARKS)
        shown = marker if few or marked else ""
        axes.plot(steps, values, color=colour, label=model, lw=1.4, marker=shown, markersize=4, markevery=every)
    axes.set_xlabel("optimizer step")
    axes.set_ylabel(label)
    legend(axes)
    return figure


def stretches(curve: pd.Series) -> NDArray[np.float64]:
    """Return steps and values of a curve, a long one as means over stretches of steps; (2, at most MAX_POINTS)."""
    parts = np.array_split(curve.reset_index().to_numpy(dtype=float), min(len(curve), MAX_POINTS))
    return np.transpose([part.mean(axis=0) for part in parts])


def save(figure: Figure, png: Path) -> str:
    """Write a PNG with a white background, and return the figure as SVG for use inside a page."""
    stream = io.StringIO()
    with mpl.rc_context(STYLE):
        figure.savefig(png, dpi=160, facecolor="white")
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None})
    svg = stream.getvalue()
    svg = svg[svg.index("<svg") :].replace(INK, "currentColor")
    svg = re.sub(r'(<svg [^>]*?)width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg [^>]*?)height="[^"]*"', r"\1", svg, count=1)
    # a page holds several figures, and their ids must differ
    return re.sub(r'(id="|url\(#|href="#)', rf"\g<1>{png.stem}-", svg)


def empty_figure(height: float) -> tuple[Figure, Axes]:
    """Make an empty figure as wide as a phone, so that its text stays readable there."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(5.2, height), layout="constrained")
        return figure, figure.add_subplot()


def _dots(look: tuple[str, str], role: str) -> dict[str, Any]:
    colour, marker = look
    return {
        "color": colour, "marker": marker, "markersize": 5, "label": role, "capsize": 2, "elinewidth": 1.2
    }  # fmt: skip


def legend(axes: Axes) -> None:
    """Add a legend above the axes, where it hides nothing."""
    handles, labels = axes.get_legend_handles_labels()
    beside = min(5, max(1, LEGEND_CHARACTERS // (max(map(len, labels)) + KEY_CHARACTERS)))
    rows = math.ceil(len(labels) / beside)
    axes.figure.set_figheight(axes.figure.get_figheight() + LEGEND_LINE * max(0, rows - 2))  # type: ignore[union-attr]
    with mpl.rc_context(STYLE):
        axes.figure.legend(handles, labels, loc="outside upper left", ncols=math.ceil(len(labels) / rows))
