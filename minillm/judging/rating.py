"""Stage judge: a strong model rates one method's stored responses against their references (method.md §7)."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from minillm.config import Judge
from minillm.durable import write_atomically
from minillm.endpoints.answers import Answer, Answers
from minillm.endpoints.asking import bill, stop_when_asked
from minillm.errors import StageError
from minillm.evaluation.responses import read_responses, read_rows
from minillm.judging.asking import ask_what_is_open, ratings_in
from minillm.judging.questions import Question, questions_about
from minillm.judging.results import prompt_ratings, table
from minillm.patterns import without
from minillm.stages.base import Job, Summary
from minillm.stages.measuring import Judging
from minillm.worker.progress import Progress

FOLDER = "judge"
"""Folder of the paid answers in the store, beside the artifacts."""
QUOTED_CHARACTERS = 200
"""Characters of an answer that an error quotes."""


def run(job: Job[Judging]) -> Summary:
    """Write ratings.parquet and judge.json, and return the figures by their names in the tracked run.

    Raises:
        StageError: It would cost more than the budget, the endpoint denies access, or nothing of a benchmark was rated.
    """
    settings = job.settings
    stop_when_asked()
    questions = read_questions(job.inputs, settings)
    texts = {question.key(settings.judge): question.text for question in questions}
    answers = Answers(Path(job.runtime.store) / FOLDER)
    with answers.asking():
        progress = Progress(job.output, len(texts), "questions")
        refused = ask_what_is_open(texts, answers, settings.judge, settings.methods, progress)
    found = answers.to(texts)
    ratings = rate(questions, found, settings.judge)
    _check_rated(ratings, questions, found, refused, settings.judge)
    result = table(settings.role, ratings) | {
        "judge": settings.judge.model,
        "answered_by": sorted({answer.model for several in found.values() for answer in several}),
        "spent": bill(found).figures(settings.judge.prices),
    }
    ratings.to_parquet(job.output / "ratings.parquet")
    write_atomically(job.output / "judge.json", json.dumps(result, indent=2))
    return _flat(result)


def read_questions(inputs: Mapping[str, Path], settings: Judging) -> list[Question]:
    """Return all questions about one method's responses, benchmark by benchmark.

    Raises:
        StageError: A response is missing.
    """
    questions: list[Question] = []
    for name in settings.judge.benchmarks:
        prompts = [row for row in read_rows(inputs["benchmarks"], name) if row["references"]]
        responses = read_responses(inputs["responses"], name)
        if settings.strip is not None:
            responses = {place: without(settings.strip, text) for place, text in responses.items()}
            prompts = [
                row | {"references": [without(settings.strip, of) for of in row["references"]]} for row in prompts
            ]
        try:
            questions += questions_about(name, prompts, responses, settings.seeds, settings.judge)
        except KeyError as error:
            index, seed = error.args[0]
            raise StageError(
                f"benchmark {name}: prompt {index} has no response of seed {seed}; generate the responses again"
            ) from error
    return questions


def rate(questions: Sequence[Question], found: Mapping[str, Sequence[Answer]], judge: Judge) -> pd.DataFrame:
    """Return a row for each question: benchmark, index, seed, order, sample, and the ratings of model and reference.

    Ratings are 1 to 10, missing if no answer was well formed.
    """
    rows: list[dict[str, Any]] = []
    for question in questions:
        first, second = ratings_in(found[question.key(judge)]) or (None, None)
        model, reference = (first, second) if question.order == "model first" else (second, first)
        rows.append(
            {"benchmark": question.benchmark, "index": question.index, "seed": question.seed}
            | {"order": question.order, "sample": question.sample, "model": model, "reference": reference}
        )
    return pd.DataFrame(rows).astype({"model": "float64", "reference": "float64"})


def _check_rated(
    ratings: pd.DataFrame,
    questions: Sequence[Question],
    found: Mapping[str, Sequence[Answer]],
    refused: Mapping[str, str],
    judge: Judge,
) -> None:
    for name, prompts in prompt_ratings(ratings).items():
        if prompts.empty:
            keys = (question.key(judge) for question in questions if question.benchmark == name)
            key = next(key for key in keys if ratings_in(found[key]) is None)
            said = refused[key] if key in refused else repr(found[key][-1].text[:QUOTED_CHARACTERS])
            raise StageError(
                f"benchmark {name}: {judge.model} rated no prompt in both orders; to one question it said {said}; "
                "take another model, or raise evaluation.judge.max_tokens or attempts"
            )


def _flat(result: Mapping[str, Any]) -> Summary:
    summary: Summary = {"judge/mean": result["mean"]["ratio"]}
    for name, row in result["benchmarks"].items():
        summary[f"judge/{name}"] = row["ratio"]
        summary |= {f"{what}/{name}": row[what] for what in ("order_agreement", "first_advantage", "unanswered")}
    return summary | result["spent"]
