"""Section on the judge: ratings relative to those of the references, and how far to trust them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import pandas as pd

from minillm.evaluation.differences import Difference, family
from minillm.evaluation.uncertainty import adjusted
from minillm.files import read_json
from minillm.judging.results import difference, prompt_ratings
from minillm.reporting.comparison import MEAN
from minillm.reporting.plots import Look, interval_figure
from minillm.reporting.sections.base import Section, doubt_words
from minillm.words import ABSENT, number, with_interval

EXPLANATION = (
    "{judge} rated each answer of the model beside the reference answer, from 1 to 10, in both orders. The tables show "
    "the sum of the model's ratings as a share of the sum of the reference's: at 100 % the judge likes both equally. "
    "In brackets, the 95 % interval over prompts; * marks p < 0.05, by a sign-flip test over prompts, adjusted (Holm) "
    "for the differences of the table, those from the teacher among themselves. Order agreement: pairs for which it "
    "prefers the same answer in both orders. First place: points that an answer gains by being shown first. Left out: "
    "prompts without a rating in both orders. Tokens include all answers behind the figures, whenever they were paid "
    "for."
)


def judge_section(inputs: Mapping[str, Path], roles: Sequence[str], look: Look, compared: str) -> Section | None:
    """Show the ratings of each method; None if nothing was judged.

    Args:
        inputs: Inputs of the report; `judge/ROLE` are read.
        roles: Rows of the result table.
        look: Colour and marker of each.
        compared: The method that differences are taken from; the best rated one if it was not judged.
    """
    folders = {role: inputs[f"judge/{role}"] for role in roles if f"judge/{role}" in inputs}
    if not folders:
        return None
    results = {role: read_json(path / "judge.json") for role, path in folders.items()}
    prompts = {role: prompt_ratings(pd.read_parquet(path / "ratings.parquet")) for role, path in folders.items()}
    cells = {role: _cells(result) for role, result in results.items()}
    judges = {name for result in results.values() for name in result["answered_by"]}
    ends = (end for of in cells.values() for cell in of.values() for end in cell["interval"])
    rated = [row["prompts"] for result in results.values() for row in result["benchmarks"].values()]
    drawn = {
        role: {name: {"mean": cell["ratio"], "interval": cell["interval"]} for name, cell in of.items()}
        for role, of in cells.items()
    }
    figure = interval_figure(drawn, "Σ model / Σ reference, %, with 95 % interval over prompts", look)
    if compared not in folders:
        compared = max(folders, key=lambda role: results[role][MEAN]["ratio"])
    return Section(
        title="Judge",
        words=EXPLANATION.format(judge=", ".join(sorted(judges))) + doubt_words(ends, rated),
        tables={
            "Σ model / Σ reference, %": ratio_table(cells),
            f"{compared} minus each other method, points": difference_table(compared, prompts),
            "How far to trust it, and what it took": trust_table(results),
        },
        figures={"judge": ("Ratings by the judge", figure)},
    )


def ratio_table(cells: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> pd.DataFrame:
    """Return method × benchmark and, if there are several, their mean."""
    rows = {role: {name: _with_interval(cell) for name, cell in of.items()} for role, of in cells.items()}
    return pd.DataFrame.from_dict(rows, orient="index")


def difference_table(compared: str, prompts: Mapping[str, Mapping[str, pd.DataFrame]]) -> pd.DataFrame:
    """Return one method minus each other one, on the same prompts; * marks clear differences."""
    found = {
        (other, name): difference(*({part: prompts[role][part] for part in parts} for role in (compared, other)))
        for other in prompts
        if other != compared
        for name, parts in _columns(prompts[compared]).items()
    }
    p_values = adjusted(
        [of.p_value if of else None for of in found.values()], [family(compared, other) for other, _ in found]
    )
    rows: dict[str, dict[str, str]] = {}
    for ((other, name), of), p_value in zip(found.items(), p_values, strict=True):
        words = ABSENT
        if of is not None:
            shown = Difference(compared, other, name, of.value, of.low, of.high, p_value)
            words = shown.marked
        rows.setdefault(other, {})[name] = words
    return pd.DataFrame.from_dict(rows, orient="index")


def trust_table(results: Mapping[str, Mapping[str, Any]]) -> pd.DataFrame:
    """Return the agreement of the two orders, the prompts not rated and the cost, over all benchmarks."""
    rows: dict[str, dict[str, str]] = {}
    for role, result in results.items():
        benchmarks = list(result["benchmarks"].values())
        rated, asked = (sum(row[what] for row in benchmarks) for what in ("prompts", "all_prompts"))
        spent = result["spent"]
        rows[role] = {
            "order agreement, %": number(fmean(row["order_agreement"] for row in benchmarks), 0),
            "first place, points": number(fmean(row["first_advantage"] for row in benchmarks), 2, signed=True),
            "prompts": number(rated, 0),
            "left out": number(asked - rated, 0),
            "questions": number(spent["questions"], 0),
            "prompt tokens": number(spent["prompt_tokens"], 0),
            "completion tokens": number(spent["completion_tokens"], 0),
        }
        if "cost" in spent:
            rows[role]["cost"] = number(spent["cost"], 4)
    return pd.DataFrame.from_dict(rows, orient="index")


def _cells(result: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    return {name: ({**result["benchmarks"], MEAN: result["mean"]})[name] for name in _columns(result["benchmarks"])}


def _columns(benchmarks: Mapping[str, Any]) -> dict[str, list[str]]:
    """Return the benchmarks of each column: one each and, if there are several, all of them in the last."""
    return {name: [name] for name in benchmarks} | ({MEAN: list(benchmarks)} if len(benchmarks) > 1 else {})


def _with_interval(cell: Mapping[str, Any]) -> str:
    return with_interval(cell["ratio"], cell["interval"])
