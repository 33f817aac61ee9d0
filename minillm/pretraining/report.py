"""Stage `pretrain`: a page on the perplexity of held-out text by method and amount of the teacher's corpus."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from minillm.durable import write_atomically
from minillm.evaluation.uncertainty import Estimate, interval
from minillm.files import read_json
from minillm.reporting import plots
from minillm.reporting.pages import write_page
from minillm.reporting.provenance import provenance, versions
from minillm.reporting.sections.base import doubt_words
from minillm.stages.base import Job, Summary
from minillm.stages.pretraining import PretrainReport
from minillm.store.manifest import read_manifest
from minillm.words import number, short_count, with_interval

TEACHER = "teacher"
DIGITS = 2
"""Decimals of a perplexity, to which the verdict compares too."""


@dataclass(frozen=True)
class Perplexities:
    """Perplexities of one held-out text."""

    teacher: Estimate
    students: Mapping[str, Sequence[Estimate]]
    """Of each method, by share; the first method is the baseline."""


def run(job: Job[PretrainReport]) -> Summary:
    """Write results.json, plots, pretrain.md and pretrain.html, and return the figures."""
    settings = job.settings
    corpus = pd.read_parquet(job.inputs["corpus"] / "responses.parquet", columns=["response_ids", "turns"])
    shares = dict.fromkeys(student.share for student in settings.students)
    rows = dict.fromkeys(student.rows for student in settings.students)
    sizes = np.cumsum(corpus["response_ids"].map(len))[[count - 1 for count in rows]].tolist()
    columns = [f"{short_count(size)} ({100 * share:g} %)" for size, share in zip(sizes, shares, strict=True)]
    seeds = len({student.seed for student in settings.students})
    names = read_json(job.inputs[f"held_out/{TEACHER}"] / "held_out.json")["texts"]
    curves = {name: read_perplexities(job, settings, name) for name in names}
    sentences = [sentence for name, curve in curves.items() for sentence in verdict(name, curve, columns)]
    results = {
        "name": settings.name,
        "verdict": sentences,
        "columns": columns,
        "teacher": {name: _cell(curve.teacher) for name, curve in curves.items()},
        "perplexity": {
            name: {method: list(map(_cell, of)) for method, of in curve.students.items()}
            for name, curve in curves.items()
        },
    }
    write_atomically(job.output / "results.json", json.dumps(results, indent=2))
    ends = (of.low for curve in curves.values() for each in curve.students.values() for of in each)
    page = {
        "title": settings.name,
        "sentences": sentences,
        "perplexity": {name: perplexity_table(curve, columns) for name, curve in curves.items()},
        "seeds": seeds,
        "doubt_words": doubt_words(ends) if seeds == 1 else "",
        "budget": budget_table(settings, list(rows), sizes, columns),
        "trainings": training_table(job, settings, columns),
        "batch_size": settings.batch_size,
        "example": corpus["turns"][0][0]["text"],
        "provenance": provenance({name: path for name, path in job.inputs.items() if not name.startswith("held_out/")}),
        "versions": ", ".join(f"{library} {version}" for library, version in versions(job.inputs).items()),
    }
    write_page("pretrain", page, draw(curves, sizes), job.output)
    return _summary(curves, list(shares)) | {"verdict": " ".join(sentences)}


def read_perplexities(job: Job[PretrainReport], settings: PretrainReport, text: str) -> Perplexities:
    """Read the losses of a text, and turn them into perplexities."""

    def losses(name: str) -> Mapping[str, Any]:
        return read_json(job.inputs[f"held_out/{name}"] / "held_out.json")["texts"][text]["loss"]

    found: dict[str, dict[float, list[Mapping[str, Any]]]] = {}
    for student in settings.students:
        found.setdefault(student.method, {}).setdefault(student.share, []).append(losses(student.name))
    return Perplexities(
        perplexity([losses(TEACHER)]),
        {method: [perplexity(of) for of in by_share.values()] for method, by_share in found.items()},
    )


def perplexity(losses: Sequence[Mapping[str, Any]]) -> Estimate:
    """Return exp of the mean loss, with its interval.

    Args:
        losses: `value` and `interval`, nats per token, for each training seed. The interval of one seed covers other
            text, that of several covers other seeds.
    """
    values = np.array([loss["value"] for loss in losses])
    ends = losses[0]["interval"] if len(losses) == 1 else interval(values, lambda means: means) or (None, None)
    low, high = (None if end is None else math.exp(end) for end in ends)
    return Estimate(math.exp(values.mean()), low, high)


def verdict(text: str, curve: Perplexities, columns: Sequence[str]) -> list[str]:
    """Say how much of the corpus each method needs for what the baseline reaches with the largest share."""
    (baseline, of), *others = curve.students.items()
    goal = round(of[-1].value, DIGITS)
    sentences = [
        f"On {text}, {baseline} has perplexity {number(goal, DIGITS)} after {columns[-1]} tokens of the corpus; the "
        f"teacher has {number(curve.teacher.value, DIGITS)}."
    ]
    for method, found in others:
        values = [round(each.value, DIGITS) for each in found]
        enough = next((place for place, value in enumerate(values) if value <= goal), None)
        if enough is None:
            sentences.append(f"{method} does not reach that: it has {number(values[-1], DIGITS)} after as many.")
        else:
            words = f"{method} is as good after {columns[enough]}, with {number(values[enough], DIGITS)}"
            sentences.append(f"{words}, the smallest such share.")
    return sentences


def perplexity_table(curve: Perplexities, columns: Sequence[str]) -> pd.DataFrame:
    """Return method × share, perplexity with its interval."""
    rows = {method: [_words(of) for of in found] for method, found in curve.students.items()}
    return pd.DataFrame.from_dict(rows, orient="index", columns=list(columns), dtype=str)


def budget_table(
    settings: PretrainReport, rows: Sequence[int], sizes: Sequence[int], columns: Sequence[str]
) -> pd.DataFrame:
    """Return what a training on each share takes, the same for all methods."""
    table = [
        {
            "sequences": f"{count:,}",
            "optimizer steps": f"{steps:,}",
            "tokens learnt, with repetitions": short_count(round(steps * settings.batch_size * size / count)),
            "passes": number(steps * settings.batch_size / count),
        }
        for count, size, steps in zip(rows, sizes, settings.steps, strict=True)
    ]
    return pd.DataFrame(table, index=list(columns))


def training_table(job: Job[PretrainReport], settings: PretrainReport, columns: Sequence[str]) -> pd.DataFrame:
    """Return method × share, seconds of a training and the step whose weights were kept; means over seeds."""
    cells: dict[str, dict[float, list[tuple[float, float]]]] = {}
    for student in settings.students:
        manifest = read_manifest(job.inputs[f"train/{student.name}"])
        assert manifest.timings is not None  # recorded of whatever a worker computed
        taken = (manifest.timings.seconds, float(manifest.summary["best_step"]))
        cells.setdefault(student.method, {}).setdefault(student.share, []).append(taken)
    rows = {
        method: [" s, step ".join(number(fmean(of), 0) for of in zip(*each, strict=True)) for each in by_share.values()]
        for method, by_share in cells.items()
    }
    return pd.DataFrame.from_dict(rows, orient="index", columns=list(columns), dtype=str)


def draw(curves: Mapping[str, Perplexities], sizes: Sequence[int]) -> dict[str, tuple[str, Figure]]:
    """Draw perplexity by tokens of the corpus; title and figure by the name of the file."""
    return {f"perplexity-{name}": (f"Perplexity of {name}", _figure(curve, sizes)) for name, curve in curves.items()}


def _figure(curve: Perplexities, sizes: Sequence[int]) -> Figure:
    figure, axes = plots.empty_figure(height=3.2)
    look = plots.looks([TEACHER, *curve.students])
    for method, found in curve.students.items():
        colour, marker = look[method]
        values = [of.value for of in found]
        reach = [
            [0.0 if of.low is None else of.value - of.low for of in found],
            [0.0 if of.high is None else of.high - of.value for of in found],
        ]
        axes.errorbar(sizes, values, yerr=reach, color=colour, marker=marker, ms=4, lw=1.4, capsize=2, label=method)
    axes.axhline(curve.teacher.value, color=look[TEACHER][0], linestyle="--", lw=1.4, label=TEACHER)
    axes.set_xscale("log", base=2)
    axes.set_xticks(sizes, [short_count(size) for size in sizes])
    axes.minorticks_off()
    axes.set_xlabel("tokens of the corpus")
    axes.set_ylabel("perplexity, 95 % interval")
    plots.legend(axes)
    return figure


def _summary(curves: Mapping[str, Perplexities], shares: Sequence[float]) -> Summary:
    found: Summary = {f"perplexity/{TEACHER}/{name}": curve.teacher.value for name, curve in curves.items()}
    for name, curve in curves.items():
        for method, of in curve.students.items():
            found |= {f"perplexity/{method}/{share}/{name}": each.value for share, each in zip(shares, of, strict=True)}
    return found


def _cell(found: Estimate) -> dict[str, Any]:
    return {"mean": found.value, "interval": [found.low, found.high]}


def _words(found: Estimate) -> str:
    return with_interval(found.value, (found.low, found.high), DIGITS)
