"""Stage `system2`: a page on accuracy and tokens of System 1 before, System 2 and System 1 after, and what was kept."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import NDArray

from minillm.data.benchmarks import load_benchmarks
from minillm.durable import write_atomically
from minillm.evaluation.uncertainty import Estimate, adjusted, estimate, paired_estimate
from minillm.files import read_json
from minillm.reporting import plots
from minillm.reporting.comparison import MEAN
from minillm.reporting.data_words import kept_rows
from minillm.reporting.markdown import code
from minillm.reporting.pages import write_page
from minillm.reporting.provenance import provenance, versions
from minillm.reporting.sections.base import doubt_words
from minillm.stages.base import Job, Summary
from minillm.stages.system2 import System2Report
from minillm.system2.asking import CUT, LONG, UNREAD, Answer, problems_of, read_answers
from minillm.system2.consistency import is_right
from minillm.words import number, p_statement, p_value, percent, with_interval

BEFORE, SLOW, AFTER = "system1_before", "system2", "system1_after"
TITLES = {BEFORE: "System 1 before", SLOW: "System 2", AFTER: "System 1 after"}
PAIRS = ((AFTER, BEFORE), (AFTER, SLOW), (SLOW, BEFORE))
CLEAR = 0.05
"""Largest p-value of a clear difference."""
SHOWN = 3
"""Questions of each test set that the page shows answers to."""
Questions = Mapping[str, Sequence[Mapping[str, Any]]]


@dataclass(frozen=True)
class Measured:
    """Answers of one system to the test questions."""

    answers: Sequence[Answer]
    accuracy: Mapping[str, NDArray[np.float64]]
    """Share of right answers to each question (n,), 0–100, by test set."""

    def estimate(self, name: str) -> Estimate:
        """Estimate the accuracy on a test set, or the mean over all."""
        return estimate(list(self.accuracy.values()) if name == MEAN else [self.accuracy[name]])

    @property
    def tokens(self) -> float:
        """Mean tokens of an answer, with all steps."""
        return fmean(answer.tokens for answer in self.answers)


def run(job: Job[System2Report]) -> Summary:
    """Write results.json, plots, system2.md and system2.html, and return the figures."""
    questions = load_benchmarks(job.inputs["questions"])
    measured = {system: measure(questions, read_answers(job.inputs[f"answers/{system}"])) for system in TITLES}
    columns = [*questions, *([MEAN] if len(questions) > 1 else [])]
    cells = {
        system: {name: _cell(of.estimate(name)) for name in columns} for system, of in measured.items()
    }  # fmt: skip
    differences = compare(measured)
    kept = read_json(job.inputs["examples"] / "right.json")
    sentences = verdict(measured, differences)
    figures = draw(cells, job.inputs["train"])
    results = {
        "name": job.settings.name,
        "verdict": sentences,
        "accuracy": {TITLES[system]: of for system, of in cells.items()},
        "tokens": {TITLES[system]: of.tokens for system, of in measured.items()},
        "right_of_kept": kept,
    }
    write_atomically(job.output / "results.json", json.dumps(results, indent=2))
    page = {
        "title": job.settings.name,
        "sentences": sentences,
        "accuracy": accuracy_table(cells, measured),
        "differences": difference_table(differences),
        "problems": problem_table(measured),
        "test_words": ", ".join(f"{name} {len(rows):,}" for name, rows in questions.items()),
        "test_samples": len(measured[BEFORE].answers) // sum(map(len, questions.values())),
        "doubt_words": doubt_words(
            (c["interval"][0] for of in cells.values() for c in of.values()), map(len, questions.values())
        ),
        "chain": job.settings.chain,
        "samples": job.settings.samples,
        "reasoner": job.settings.reasoner and code(job.settings.reasoner),
        "dropped": pd.read_csv(job.inputs["examples"] / "dropped.csv", index_col=0).rename_axis(None).map(str),
        "kept_words": kept_rows(job.inputs["examples"]),
        "right_words": right_words(kept),
        "curves": [name for name in figures if name != "accuracy"],
        "answers": {name: shown_answers(name, rows, measured) for name, rows in questions.items()},
        "provenance": provenance(job.inputs),
        "versions": ", ".join(f"{library} {version}" for library, version in versions(job.inputs).items()),
    }
    write_page("system2", page, figures, job.output, tiles(measured))
    return summary(cells, measured) | {"verdict": " ".join(sentences)}


def measure(questions: Questions, answers: Sequence[Answer]) -> Measured:
    """Compare every answer with its question's references."""
    right: dict[str, list[list[bool]]] = {name: [[] for _ in rows] for name, rows in questions.items()}
    for answer in answers:
        references = questions[answer.set][answer.index]["references"]
        right[answer.set][answer.index].append(is_right(answer.answer, references))
    return Measured(answers, {name: np.array([100 * fmean(of) for of in rows]) for name, rows in right.items()})


def compare(measured: Mapping[str, Measured]) -> dict[tuple[str, str], Estimate]:
    """Estimate the differences of accuracy on the same questions; p-values are adjusted for their number (Holm)."""
    found = {
        pair: paired_estimate(
            [of - measured[pair[1]].accuracy[name] for name, of in measured[pair[0]].accuracy.items()]
        )
        for pair in PAIRS
    }
    p_values = adjusted([of.p_value for of in found.values()], [0] * len(found))
    return {pair: Estimate(of.value, of.low, of.high, p) for (pair, of), p in zip(found.items(), p_values, strict=True)}


def verdict(measured: Mapping[str, Measured], differences: Mapping[tuple[str, str], Estimate]) -> list[str]:
    """Say first whether distillation worked, then what it saves and what it lost."""
    before, slow, after = (measured[system].estimate(MEAN).value for system in (BEFORE, SLOW, AFTER))
    gain, gap, of_slow = (differences[pair] for pair in PAIRS)
    figures = f"System 1 has {number(after)} % right after it, {number(before)} % before, System 2 {number(slow)} %"
    if _clear(gain) and gain.value > 0:
        sentences = [f"Distillation worked: {figures}."]
    else:
        worse = "worse than" if _clear(gain) else "not better than"
        sentences = [f"Distillation did not work: System 1 after is {worse} before ({_words(gain)}). {figures}."]
    if not (_clear(of_slow) and of_slow.value > 0):
        sentences.append(
            f"System 2 is not better than System 1 before ({_words(of_slow)}), so there is little to distil."
        )
    saved = measured[AFTER].tokens / measured[SLOW].tokens
    sentences.append(
        f"An answer takes {number(measured[AFTER].tokens)} tokens, {percent(saved)} of System 2's "
        f"{number(measured[SLOW].tokens)}; the difference in accuracy is {_words(gap)}."
    )
    return sentences


def accuracy_table(cells: Mapping[str, Mapping[str, Any]], measured: Mapping[str, Measured]) -> pd.DataFrame:
    """Return system × test set, accuracy with its interval, and the tokens of an answer."""
    rows = {
        TITLES[system]: {name: with_interval(cell["mean"], cell["interval"]) for name, cell in of.items()}
        | {"tokens per answer": number(measured[system].tokens)}
        for system, of in cells.items()
    }
    return pd.DataFrame.from_dict(rows, orient="index")


def difference_table(differences: Mapping[tuple[str, str], Estimate]) -> pd.DataFrame:
    """Return the difference of every two systems on the mean, its interval and p-value."""
    rows = {
        f"{TITLES[one]} − {TITLES[other]}": {
            "difference": with_interval(of.value, (of.low, of.high), signed=True),
            "p": p_value(of.p_value),
        }
        for (one, other), of in differences.items()
    }
    return pd.DataFrame.from_dict(rows, orient="index")


def problem_table(measured: Mapping[str, Measured]) -> pd.DataFrame:
    """Return the share of answers to test questions without a final answer, by the reason; they count as wrong."""
    counts = {system: problems_of(of.answers) for system, of in measured.items()}
    reasons = dict.fromkeys([UNREAD, CUT, LONG, *(reason for of in counts.values() for reason in of)])
    rows = {
        TITLES[system]: {reason: number(100 * of.get(reason, 0) / len(measured[system].answers)) for reason in reasons}
        for system, of in counts.items()
    }
    return pd.DataFrame.from_dict(rows, orient="index")


def right_words(kept: Mapping[str, int]) -> str:
    """Say how many of the answers that are kept are right, where that is known."""
    if not kept["known"]:
        return "Whether they are right is not known: the rows have no answers."
    share = percent(kept["right"] / kept["known"])
    return f"Of {kept['known']:,} of them whose rows have an answer, {share} are right; nothing was chosen by that."


def shown_answers(
    name: str, rows: Sequence[Mapping[str, Any]], measured: Mapping[str, Measured]
) -> list[dict[str, Any]]:
    """Return some questions of a test set, evenly spaced, with the first answer of each system."""
    places = dict.fromkeys(number * len(rows) // SHOWN for number in range(SHOWN))
    first = {
        system: {a.index: a for a in of.answers if (a.set, a.order, a.sample) == (name, 0, 0)}
        for system, of in measured.items()
    }
    return [
        {
            "question": rows[place]["instruction"],
            "reference": ", ".join(rows[place]["references"]),
            "answers": {
                TITLES[system]: "\n\n".join(of[place].responses.values()) or of[place].problem
                for system, of in first.items()
            },
        }
        for place in places
    ]


def draw(cells: Mapping[str, Mapping[str, Any]], trained: Path) -> dict[str, tuple[str, Figure]]:
    """Draw accuracy by test set, and the curves of the training; title and figure by the name of the file."""
    look = plots.looks(list(TITLES.values()))
    by_title = {TITLES[system]: of for system, of in cells.items()}
    accuracy = plots.interval_figure(by_title, "Right answers, %, and 95 % interval over questions", look)
    curves = plots.curve_figures({TITLES[AFTER]: plots.read_curves(trained)}, look)
    return {"accuracy": ("Accuracy by test set", accuracy), **curves}


def tiles(measured: Mapping[str, Measured]) -> list[tuple[str, str]]:
    """Return the figures at the top of the page."""
    found = [(number(of.estimate(MEAN).value), f"% right, {TITLES[system]}") for system, of in measured.items()]
    return [*found, (percent(measured[AFTER].tokens / measured[SLOW].tokens), "of System 2's tokens")]


def summary(cells: Mapping[str, Mapping[str, Any]], measured: Mapping[str, Measured]) -> Summary:
    """Return accuracy and tokens by their names in the tracked run."""
    found: Summary = {f"accuracy/{system}/{name}": c["mean"] for system, of in cells.items() for name, c in of.items()}
    return found | {f"tokens/{system}": of.tokens for system, of in measured.items()}


def _cell(found: Estimate) -> dict[str, Any]:
    return {"mean": found.value, "interval": [found.low, found.high]}


def _clear(found: Estimate) -> bool:
    return found.p_value is not None and found.p_value < CLEAR


def _words(found: Estimate) -> str:
    return f"{with_interval(found.value, (found.low, found.high), signed=True)}, {p_statement(found.p_value)}"
