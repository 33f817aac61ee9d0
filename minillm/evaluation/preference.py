"""Stage preference: turn people's judgements of pairs of answers into shares of wins, ties and losses (method.md §7).

Shares are on 0–100. A prompt counts once, as the mean over its annotators, and every benchmark weighs the same;
intervals are over prompts.
"""

import itertools
import math
import statistics
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args

import numpy as np
from sklearn.exceptions import UndefinedMetricWarning
from sklearn.metrics import cohen_kappa_score

from minillm.annotation.judgements import Choice, Judgement, read_csv
from minillm.annotation.pairs import mismatch
from minillm.errors import StageError
from minillm.evaluation.differences import family
from minillm.evaluation.uncertainty import Values, adjusted, estimate, paired_estimate
from minillm.files import write_json
from minillm.stages.base import Job, Summary
from minillm.stages.measuring import Preference

MEASURES: dict[str, Mapping[Choice, float]] = {
    "win": {"win": 100.0, "tie": 0.0, "loss": 0.0},
    "tie": {"win": 0.0, "tie": 100.0, "loss": 0.0},
    "loss": {"win": 0.0, "tie": 0.0, "loss": 100.0},
    "net": {"win": 100.0, "tie": 0.0, "loss": -100.0},
}
"""Points of a choice: their means are the shares of wins, ties and losses, and wins minus losses."""


def run(job: Job[Preference]) -> Summary:
    """Write preference.json: the shares of each comparison, and the agreement of annotators."""
    path = job.inputs["judgements"]
    judgements = read_csv(path)
    responses = {
        name.removeprefix("responses/"): at for name, at in job.inputs.items() if name.startswith("responses/")
    }
    require_same_answers(path, judgements, responses)
    comparisons = compare(judgements)
    annotators = sorted({judgement.annotator for judgement in judgements})
    found = {"annotators": annotators, "comparisons": comparisons, "agreement": agreement(judgements)}
    write_json(job.output / "preference.json", found)
    return {
        f"preference/{row['method']}/{row['other']}/{what}": row[what]["value"]
        for row in comparisons
        for what in MEASURES
    }


def require_same_answers(path: Path, judgements: Sequence[Judgement], responses: Mapping[str, Path]) -> None:
    """Check that every judgement is of answers that this run has.

    Raises:
        StageError: One is not; the message names the first.
    """
    for line, judgement in enumerate(judgements, start=2):
        problem = mismatch(judgement, responses)
        if problem is not None:
            raise StageError(
                f"{path}, line {line}: {problem}; have this run's answers judged with `minillm annotate` "
                "and export that, or leave out evaluation.preference"
            )


def compare(judgements: Sequence[Judgement]) -> list[dict[str, Any]]:
    """Count wins, ties and losses of each method against each other one that it was compared with.

    Returns:
        A row per comparison: method, other; numbers of prompts and judgements; win, tie, loss and net (see
        `MEASURES`), each an `Estimate` as a dictionary. The p-values of net are adjusted within two families:
        comparisons between methods, and comparisons with the teacher.
    """
    rows = []
    for method, other in dict.fromkeys((judgement.method, judgement.other) for judgement in judgements):
        part = [judgement for judgement in judgements if (judgement.method, judgement.other) == (method, other)]
        counts = {
            "prompts": len({(judgement.benchmark, judgement.index) for judgement in part}),
            "judgements": len(part),
        }
        measured = {
            what: asdict((paired_estimate if what == "net" else estimate)(_by_prompt(part, points)))
            for what, points in MEASURES.items()
        }
        rows.append({"method": method, "other": other, **counts, **measured})
    families = [family(row["method"], row["other"]) for row in rows]
    for row, p_value in zip(rows, adjusted([row["net"]["p_value"] for row in rows], families), strict=True):
        row["net"]["p_value"] = p_value
    return rows


def agreement(judgements: Sequence[Judgement]) -> list[dict[str, Any]]:
    """Measure the agreement of every two annotators on the pairs that both have judged, if there are any.

    Returns:
        first, second; pairs; same, the percentage of equal choices; Cohen's kappa, or None if both made
        the same choice throughout: chance would do as well.
    """
    chosen: dict[str, dict[tuple[Any, ...], Choice]] = {}
    for judgement in judgements:
        chosen.setdefault(judgement.annotator, {})[judgement.identity] = judgement.choice
    rows = []
    for first, second in itertools.combinations(sorted(chosen), 2):
        shared = [pair for pair in chosen[first] if pair in chosen[second]]
        if shared:
            both = [[chosen[annotator][pair] for pair in shared] for annotator in (first, second)]
            same = 100 * statistics.fmean(one == another for one, another in zip(*both, strict=True))
            with warnings.catch_warnings(action="ignore", category=UndefinedMetricWarning):
                kappa = float(cohen_kappa_score(*both, labels=get_args(Choice)))
            rows.append(
                {"first": first, "second": second, "pairs": len(shared), "same": same}
                | {"kappa": None if math.isnan(kappa) else kappa}
            )
    return rows


def _by_prompt(judgements: Sequence[Judgement], points: Mapping[Choice, float]) -> Values:
    """Return the mean points of each prompt over its annotators, by benchmark."""
    values: dict[str, dict[int, list[float]]] = {}
    for judgement in judgements:
        values.setdefault(judgement.benchmark, {}).setdefault(judgement.index, []).append(points[judgement.choice])
    return [np.array([statistics.fmean(v) for v in prompts.values()]) for prompts in values.values()]
