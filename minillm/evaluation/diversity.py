"""Stage `diversity`: how much a model repeats itself in its stored responses (method.md §7); no model is needed."""

import itertools
import statistics
from collections.abc import Iterable, Sequence

import pandas as pd
from rouge_score.tokenize import tokenize

from minillm.evaluation.responses import read_rows
from minillm.files import write_json
from minillm.metrics.rouge import rouge_l
from minillm.stages.base import Job, Summary
from minillm.stages.measuring import Diversity

SIZES = (1, 2, 3, 4)
"""Lengths of the n-grams; the paper reports 4."""


def run(job: Job[Diversity]) -> Summary:
    """Write diversity.json with the measures of each benchmark (0–100); the summary has them and their means."""
    settings = job.settings
    measured: dict[str, dict[str, float]] = {}
    for name in settings.benchmarks:
        responses = pd.DataFrame(read_rows(job.inputs["responses"], name))
        measured[name] = measure(responses)
    measured["mean"] = {str(what): mean for what, mean in pd.DataFrame(measured).mean(axis=1).items()}
    write_json(job.output / "diversity.json", measured)
    return {f"{what}/{name}": value for name, row in measured.items() for what, value in row.items()}


def measure(responses: pd.DataFrame) -> dict[str, float]:
    """Return the share of distinct n-grams and, with several seeds, the self-overlap of one benchmark (0–100).

    Args:
        responses: Table with the columns index, seed, response.
    """
    texts = [list(part["response"]) for _, part in responses.groupby("seed")]
    found = {f"distinct_{n}": statistics.fmean(distinct(seed_texts, n) for seed_texts in texts) for n in SIZES}
    if len(texts) > 1:
        found["self_overlap"] = self_overlap(list(part) for _, part in responses.groupby("index")["response"])
    return found


def distinct(texts: Sequence[str], n: int) -> float:
    """Return the number of distinct n-grams per n-gram over all texts, in percent; 100 if no text has n words."""
    grams = [gram for text in texts for gram in _grams(tokenize(text, None), n)]
    return 100 * len(set(grams)) / len(grams) if grams else 100.0


def self_overlap(answers: Iterable[Sequence[str]]) -> float:
    """Return the mean Rouge-L (0–100) between two answers to the same prompt.

    Args:
        answers: Two or more answers to each prompt.
    """
    return 100 * statistics.fmean(
        statistics.fmean(rouge_l(first, [second]) for first, second in itertools.combinations(prompt_answers, 2))
        for prompt_answers in answers
    )


def _grams(words: Sequence[str], n: int) -> Iterable[tuple[str, ...]]:
    return zip(*(words[start:] for start in range(n)), strict=False)
