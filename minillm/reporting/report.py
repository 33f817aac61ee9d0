"""Stage report: write the result table, the plots and one page on what was measured and how.

The tables come from `comparison`, the figures from `plots`, the wording from templates/report.md.jinja.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from minillm.durable import write_atomically
from minillm.evaluation.uncertainty import prompt_values
from minillm.files import read_json
from minillm.reporting import plots
from minillm.reporting.comparison import MEAN, METRIC_NAMES, Comparison, how_tested, reading, verdict
from minillm.reporting.data_words import cut_words, data_tables, kept_rows, prompt_words
from minillm.reporting.markdown import code
from minillm.reporting.model_words import collapses, cost_words, model_table, sizes, trained_on
from minillm.reporting.pages import write_page
from minillm.reporting.provenance import provenance, versions
from minillm.reporting.sections.base import Section, cell_table, doubt_words, read_measured
from minillm.reporting.sections.calibration import calibration_section
from minillm.reporting.sections.downstream import downstream_section
from minillm.reporting.sections.exposure import exposure_section
from minillm.reporting.sections.held_out import held_out_section
from minillm.reporting.sections.judge import judge_section
from minillm.reporting.sections.preference import preference_section
from minillm.reporting.sections.rollouts import rollouts_section
from minillm.reporting.sections.time import time_section
from minillm.reporting.shown_answers import answers, choice_words
from minillm.stages.base import Job, Summary
from minillm.stages.pages import Report
from minillm.words import ABSENT, interval, number, p_value, percent, score, span

MakeSection = Callable[[Mapping[str, Path], Sequence[str], plots.Look], Section | None]
"""Makes a section from the stage's inputs, the rows of the table and their look; None if nothing was measured."""
SECTIONS: tuple[MakeSection, ...] = (
    preference_section, exposure_section, calibration_section, held_out_section, downstream_section, rollouts_section
)  # fmt: skip
"""Sections in the order of the page, after the judge's."""


def run(job: Job[Report]) -> Summary:
    """Write results.csv, results.json, plots, report.md and report.html, and return the table's numbers."""
    settings = job.settings
    tables = read_measured(job.inputs, "score", settings.roles, "table.json")
    scores = {role: pd.read_parquet(job.inputs[f"score/{role}"] / "scores.parquet") for role in settings.roles}
    trained = {name.removeprefix("train/"): path for name, path in job.inputs.items() if name.startswith("train/")}
    prompts = {role: prompt_values(of) for role, of in scores.items()}
    comparison = Comparison(tables, settings.benchmarks, prompts, trained_on(trained))
    parameters = sizes(job.inputs, settings.roles, trained)
    cost = read_json(job.inputs["cost"] / "cost.json")
    first, *rest = verdict(comparison, parameters)
    collapsed = collapses(trained)
    sentences = [first, *cost_words(comparison, cost), *rest, *collapsed]

    comparison.frame().to_csv(job.output / "results.csv", index=False)
    results = {
        "name": settings.name,
        "verdict": sentences,
        "collapsed": collapsed,
        "rows": comparison.row_word,
        "best": comparison.best,
        "compared": comparison.compared,
        "measure": comparison.measure,
        "benchmarks": list(settings.benchmarks),
        "tables": tables,
        "differences": [asdict(difference) for difference in comparison.differences],
        "ranks": comparison.ranks,
        "parameters": parameters,
        "cost": cost,
    }
    write_atomically(job.output / "results.json", json.dumps(results, indent=2))
    look = plots.looks([*comparison.roles, *(role for role in trained if role not in comparison.roles)])
    made = [
        judge_section(job.inputs, settings.roles, look, comparison.compared),
        *(make(job.inputs, settings.roles, look) for make in SECTIONS),
        time_section(job.inputs, settings.planned),
    ]
    sections = [section for section in made if section is not None]
    figures = draw(comparison, trained, look)
    page = {
        "title": settings.name,
        "comparison": comparison,
        "measures": {name: METRIC_NAMES[comparison.metric(name)] for name in comparison.benchmarks},
        "strip": "" if (pattern := tables[settings.roles[0]]["strip"]) is None else code(pattern),
        "sentences": sentences,
        "best": comparison.best if len(comparison.roles) > 1 else "",
        "seeds": ", ".join(str(seed) for seed in tables[settings.roles[0]]["seeds"]),
        "result": result_table(comparison),
        "intervals": interval_table(comparison),
        "differences": difference_table(comparison),
        "how_tested": how_tested(comparison),
        "doubt_words": doubt_words(
            (
                end
                for role in comparison.roles
                for name in comparison.columns
                for end in comparison.score(role, name)["interval"]
            ),
            (len(of) for of in comparison.prompts[comparison.roles[0]].values()),
        ),
        "pairs": pair_table(comparison),
        "behaviour": behaviour_table(
            comparison, read_measured(job.inputs, "diversity", settings.roles, "diversity.json")
        ),
        "models": model_table(job.inputs, settings.models, trained, parameters, comparison, cost),
        "trained": bool(trained),
        "figures": [name for name in figures if name != "benchmarks"],
        "sections": sections,
        **_inputs_of_page(job.inputs, comparison),
    }
    all_figures = figures | {name: of for section in sections for name, of in section.figures.items()}
    write_page("report", page, all_figures, job.output, _tiles(comparison, parameters))
    return _summary(comparison, sentences)


def result_table(comparison: Comparison) -> pd.DataFrame:
    """Return method × benchmark and their mean, 'mean ± spread' of the score, and the ranks that a method may have."""
    table = _by_cell(comparison, score)
    if len(comparison.roles) > 1:
        table["rank"] = [span(*ranks) for ranks in comparison.ranks.values()]
    return table


def interval_table(comparison: Comparison) -> pd.DataFrame:
    """Return method × benchmark and their mean, the 95 % interval of the score over prompts."""
    return _by_cell(comparison, lambda cell: interval(cell["interval"]) or ABSENT)


def _by_cell(comparison: Comparison, words: Callable[[Mapping[str, Any]], str]) -> pd.DataFrame:
    cells = {
        role: {comparison.label(name): comparison.score(role, name) for name in comparison.columns}
        for role in comparison.roles
    }
    return cell_table(cells, words)


def difference_table(comparison: Comparison) -> pd.DataFrame:
    """Return the compared method minus each other one; * marks clear differences."""
    of_compared = [d for d in comparison.differences if d.method == comparison.compared]
    cells = {(d.other, d.benchmark): d.marked for d in of_compared}
    others = [role for role in comparison.roles if role != comparison.compared]
    return pd.DataFrame(
        {comparison.label(name): [cells[role, name] for role in others] for name in comparison.columns},
        index=others,
        dtype=str,
    )


def pair_table(comparison: Comparison) -> pd.DataFrame:
    """Return the difference of every two methods on the mean, its 95 % interval and adjusted p-value."""
    rows = {
        f"{d.method} − {d.other}": {
            "difference": str(d),
            "p": p_value(d.p_value),
            "": "" if d.clear else reading(d),
        }
        for d in comparison.differences
        if d.benchmark == MEAN
    }
    return pd.DataFrame.from_dict(rows, orient="index")


def behaviour_table(comparison: Comparison, diversities: Mapping[str, Mapping[str, Any]]) -> pd.DataFrame:
    """Return exact match, response length, share of finished responses and diversity, as means over benchmarks."""
    rows = {}
    for role, table in comparison.tables.items():
        benchmarks, diversity = list(table["benchmarks"].values()), diversities[role][MEAN]
        rows[role] = {
            "exact match": score(table["mean"]["exact_match"]),
            "response tokens": number(fmean(row["response_tokens"] for row in benchmarks)),
            "finished, %": number(fmean(row["finished"] for row in benchmarks)),
            "distinct 4-grams, %": number(diversity["distinct_4"]),
            "self-overlap": number(diversity["self_overlap"]) if "self_overlap" in diversity else ABSENT,
        }
    return pd.DataFrame.from_dict(rows, orient="index")


def draw(comparison: Comparison, trained: Mapping[str, Path], look: plots.Look) -> dict[str, tuple[str, Figure]]:
    """Draw the plots that every run has; title and figure by the name of the file."""
    cells = {role: {name: comparison.score(role, name) for name in comparison.columns} for role in comparison.roles}
    figures: dict[str, tuple[str, Figure]] = {
        "benchmarks": (f"{comparison.measure} by benchmark", plots.score_figure(cells, comparison.measure, look))
    }
    for name in comparison.benchmarks:
        figure = plots.length_figure(name, comparison, look)
        if figure is not None:
            figures[f"length-{name}"] = (f"{METRIC_NAMES[comparison.metric(name)]} by reference length: {name}", figure)
    return figures | plots.curve_figures({role: plots.read_curves(path) for role, path in trained.items()}, look)


def _inputs_of_page(inputs: Mapping[str, Path], comparison: Comparison) -> dict[str, Any]:
    """Return the parts of the page on data, prompts, answers and provenance."""
    return {
        "kept_words": kept_rows(inputs["examples"]) if "examples" in inputs else "",
        "data": data_tables(inputs["examples"]) if "examples" in inputs else {},
        "prompt_words": prompt_words(comparison),
        "cut_words": cut_words(inputs, comparison),
        "answers": {name: answers(inputs, name, comparison) for name in comparison.benchmarks},
        "answers_words": choice_words(comparison),
        "provenance": provenance(inputs),
        "versions": ", ".join(f"{library} {version}" for library, version in versions(inputs).items()),
    }


def _summary(comparison: Comparison, sentences: list[str]) -> Summary:
    summary: Summary = {"best": comparison.best, "verdict": " ".join(sentences)}
    for role in comparison.roles:
        for name in comparison.columns:
            cell = comparison.score(role, name)
            summary |= {f"{role}/score/{name}": cell["mean"], f"{role}/score/{name}_spread": cell["spread"]}
    return summary


def _tiles(comparison: Comparison, parameters: Mapping[str, int]) -> list[tuple[str, str]]:
    first, best = comparison.roles[0], comparison.best
    reached, full = comparison.score(best, MEAN), comparison.score(first, MEAN)["mean"]
    praise = f", the best {comparison.best_word}" if len(comparison.roles) > 1 else ""
    tiles = [(score(reached), f"{comparison.measure} of {best}{praise}")]
    if best != first and full > 0:
        words = f"of {comparison.yardstick}'s {comparison.measure} ({number(full)})"
        tiles.append((percent(reached["mean"] / full), words))
    if best != first and first in parameters and best in parameters:
        tiles.append((percent(parameters[best] / parameters[first]), f"of {comparison.yardstick}'s parameters"))
    return tiles
