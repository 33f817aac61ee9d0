"""Section on the judge: ratings relative to those of the references, and how far to trust them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import pandas as pd

from minillm.evaluation.differences import Difference, family
from minillm.evaluation.uncertainty import adjusted
from minillm.judging.results import difference, prompt_ratings
from minillm.reporting.comparison import MEAN
from minillm.reporting.plots import Look, interval_figure
from minillm.reporting.sections.base import Section, cell_table, doubt_words, read_measured
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
    results = read_measured(inputs, "judge", roles, "judge.json")
    if not results:
        return None
    prompts = {role: prompt_ratings(pd.read_parquet(inputs[f"judge/{role}"] / "ratings.parquet")) for role in results}
    cells = {role: _cells(result) for role, result in results.items()}
    judges = {name for result in results.values() for name in result["answered_by"]}
    ends = (end for of in cells.values() for cell in of.values() for end in cell["interval"])
    rated = [row["prompts"] for result in results.values() for row in result["benchmarks"].values()]
    figure = interval_figure(cells, "Σ model / Σ reference, %, with 95 % interval over prompts", look)
    if compared not in results:
        compared = max(results, key=lambda role: results[role][MEAN]["ratio"])
    return Section(
        title="Judge",
        words=EXPLANATION.format(judge=", ".join(sorted(judges))) + doubt_words(ends, rated),
        tables={
            "Σ model / Σ reference, %": cell_table(cells, lambda cell: with_interval(cell["mean"], cell["interval"])),
            f"{compared} minus each other method, points": difference_table(compared, prompts),
            "How far to trust it, and what it took": trust_table(results),
        },
        figures={"judge": ("Ratings by the judge", figure)},
    )


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
    for (pair, of), p_value in zip(found.items(), p_values, strict=True):
        words = ABSENT if of is None else Difference(compared, *pair, of.value, of.low, of.high, p_value).marked
        rows.setdefault(pair[0], {})[pair[1]] = words
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
    """Return the share of each column as figures have it."""
    rows = {**result["benchmarks"], MEAN: result["mean"]}
    return {
        name: {"mean": rows[name]["ratio"], "interval": rows[name]["interval"]}
        for name in _columns(result["benchmarks"])
    }


def _columns(benchmarks: Mapping[str, Any]) -> dict[str, list[str]]:
    """Return the benchmarks of each column: one each and, if there are several, all of them in the last."""
    return {name: [name] for name in benchmarks} | ({MEAN: list(benchmarks)} if len(benchmarks) > 1 else {})
