"""Stage `question_sets`: reads questions, free or multiple-choice, and keeps those of the test out of the others."""

import re
import string
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from minillm.config import QuestionSet
from minillm.data.benchmarks import load_benchmarks
from minillm.data.decontamination import digest, question
from minillm.data.questions import read_choices, right_choice
from minillm.data.rows import read_set, text_field, user_message
from minillm.errors import StageError
from minillm.files import write_json_lines
from minillm.patterns import group_in
from minillm.stages.base import Job, Summary
from minillm.stages.system2 import QuestionSets
from minillm.system2.canonical import canonical

LETTERS = string.ascii_uppercase
LETTER = re.compile(r"\W*([A-Za-z])(?:[).:]|\W*$)")
"""A letter that names a choice: `B`, `(b)`, `B. no`; not the article in `a dog`."""


def run(job: Job[QuestionSets]) -> Summary:
    """Write NAME.jsonl for each set; the summary has its rows, and how many were left out.

    Raises:
        StageError: A row has no question or, for a test, no answer; or nothing is left of a set.
    """
    settings = job.settings
    tested = load_benchmarks(job.inputs["test"]) if "test" in job.inputs else {}
    seen = {_identity(row): f"in test set {name}" for name, rows in tested.items() for row in rows}
    summary: Summary = {}
    for name, record in settings.sets.items():
        what = f"data.{settings.part}.{name}"
        rows = read_questions(what, job.inputs[f"questions/{name}"], record, settings.part == "test")
        kept: list[dict[str, Any]] = []
        for row in rows:
            if _identity(row) not in seen:
                seen[_identity(row)] = "repeated"
                kept.append({**row, "index": len(kept)})
        if not kept:
            raise StageError(f"{what}: all {len(rows)} questions are repeated or in the test sets; give others")
        write_json_lines(job.output / f"{name}.jsonl", kept)
        if len(kept) < len(rows):
            print(f"{what}: {len(rows) - len(kept)} of {len(rows)} left out, repeated or in the test sets", flush=True)
        summary |= {name: float(len(kept)), f"left_out/{name}": float(len(rows) - len(kept))}
    return summary


def read_questions(what: str, path: Path, record: QuestionSet, needs_answers: bool) -> list[dict[str, Any]]:
    """Return rows {"index", "instruction", "context", "choices", "references"}.

    Free questions have no choices. The reference of a multiple-choice question is the letter of the right choice; a row
    without an answer has no reference.

    Raises:
        StageError: A row has no question or, if it needs one, no answer; or there are no such rows.
    """

    def parse(row: Mapping[str, Any]) -> dict[str, Any]:
        fields = record.fields
        context = text_field(row, fields.context) if fields.context else ""
        texts, labels = read_choices(row, fields.choices) if fields.choices in row else ([], [])
        if len(texts) > len(LETTERS):
            raise ValueError(f"`{fields.choices}` has {len(texts)} choices; at most {len(LETTERS)} have a letter")
        answers = []
        if needs_answers or row.get(fields.answer) is not None:
            answers = [LETTERS[right_choice(row, fields.answer, texts, labels)] if texts else _answer(row, record)]
        (asked,) = user_message(text_field(row, fields.question), context)
        return {"instruction": asked["content"], "context": "", "choices": texts, "references": answers}

    first, end = record.rows or (0, None)
    rows = read_set(what, path, parse)
    if record.rows is not None and len(rows) < record.rows[1]:
        raise StageError(f"{what}: rows {list(record.rows)} go beyond the {len(rows)} rows of {path}; lower the second")
    return rows[first:end]


def shown(row: Mapping[str, Any], order: int) -> str:
    """Return a question with its choices, lettered in the given order."""
    lines = [f"{letter}. {text}" for letter, text in zip(LETTERS, ordered(row["choices"], order), strict=False)]
    return "\n".join([row["instruction"], *lines])


def ordered(choices: Sequence[str], order: int) -> list[str]:
    """Return choices moved round by `order` places, so that every one has another letter in every order."""
    return [*choices[order:], *choices[:order]]


def orders_of(row: Mapping[str, Any], orders: int) -> int:
    """Return how many of so many orders a question is asked in: one without choices, and no order twice."""
    return min(orders, max(1, len(row["choices"])))


def original_letter(found: str, row: Mapping[str, Any], order: int) -> str | None:
    """Return the letter in the first order of a choice that was named by letter or text; None if it is no choice."""
    choices = ordered(row["choices"], order)
    named = [place for place, text in enumerate(choices) if text.strip() == found.strip()]
    named = named or [place for place, text in enumerate(choices) if canonical(text) == canonical(found)]
    if not named and (letter := LETTER.match(found)):
        named = [LETTERS.index(letter[1].upper())]
    one = len(named) == 1 and named[0] < len(choices)
    return LETTERS[(named[0] + order) % len(choices)] if one else None


def _answer(row: Mapping[str, Any], record: QuestionSet) -> str:
    """Return the final answer of a row; numbers and truth values as text."""
    value = row.get(record.fields.answer)
    if isinstance(value, bool | int | float):
        value = str(value)
    text = text_field({record.fields.answer: value} if value is not None else row, record.fields.answer)
    if record.answer is None:
        return text.strip()
    found = group_in(record.answer, text)
    if found is None or not found.strip():
        raise ValueError(f"`{record.fields.answer}` has no match of the set's `answer` pattern: {text[-80:]!r}")
    return found.strip()


def _identity(row: Mapping[str, Any]) -> bytes:
    return digest(question(row["instruction"]), *sorted(row["choices"]))
