"""Questions to the judge: rate a model's answer and the reference, shown in either order."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, WithJsonSchema

from minillm.config import Judge
from minillm.store.manifest import text_digest
from minillm.streams import Purpose, generator, stream

Order = Literal["model first", "reference first"]
ORDERS: tuple[Order, ...] = ("model first", "reference first")
"""Judges favour one place, so each pair is shown both ways."""

# The wording is that of the paper's appendix, except for the end: the paper asks for two values on a line and an
# explanation after them, which could not change them any more and would have to be paid for.
REQUEST = """[Instruction]
{instruction}
{context}
[The Start of Assistant 1's Response]
{first}
[The End of Assistant 1's Response]

[The Start of Assistant 2's Response]
{second}
[The End of Assistant 2's Response]

[System]
We would like to request your feedback on the performance of two AI assistants in response to the user instruction and \
input displayed above. Please rate the helpfulness, relevance, accuracy, and level of detail of their responses. Each \
assistant receives an overall score on a scale of 1 to 10, where a higher score indicates better overall performance. \
Avoid any potential bias, and ensure that the order in which the responses were presented does not affect your \
judgment. Answer with one JSON object and nothing else: {{"assistant_1": SCORE, "assistant_2": SCORE}}, where each \
SCORE is a whole number from 1 to 10.\
"""
FENCED = re.compile(r"```(?:json)?\s*(.*?)\s*```", re.DOTALL)

# Endpoints know `enum` more widely than `minimum` and `maximum`.
Rating = Annotated[int, Field(ge=1, le=10), WithJsonSchema({"type": "integer", "enum": list(range(1, 11))})]


class Ratings(BaseModel):
    """Form of an answer, and the schema for endpoints with structured output."""

    model_config = ConfigDict(extra="forbid", strict=True)
    assistant_1: Rating
    assistant_2: Rating


@dataclass(frozen=True)
class Question:
    """One question: a pair of answers in one order."""

    benchmark: str
    index: int
    """Index of the prompt in its benchmark."""
    seed: int
    """Seed of the generation."""
    order: Order
    sample: int
    text: str
    """The whole message."""

    def key(self, judge: Judge) -> str:
        """Return the digest of all that determines the answer, whichever stage asks and whenever."""
        asked = {"base_url": judge.base_url.rstrip("/"), "model": judge.model, "temperature": judge.temperature}
        return text_digest(asked | {"text": self.text, "sample": self.sample})


def questions_about(
    benchmark: str,
    prompts: Sequence[Mapping[str, Any]],
    responses: Mapping[tuple[int, int], str],
    seeds: Sequence[int],
    judge: Judge,
) -> Iterator[Question]:
    """Yield every question about one benchmark.

    Args:
        benchmark: Name of the benchmark.
        prompts: Rows of the benchmark; the answer is compared with the first reference.
        responses: The model's answers by (index, seed).
        seeds: Seeds of the judged generations.
        judge: Settings, such as the number of prompts and samples.
    """
    for row in chosen(prompts, judge.prompts):
        for seed in seeds:
            answer, reference = responses[row["index"], seed], row["references"][0]
            for order in ORDERS:
                pair = (answer, reference) if order == "model first" else (reference, answer)
                text = message(row["instruction"], row["context"], *pair)
                for sample in range(judge.samples):
                    yield Question(benchmark, row["index"], seed, order, sample, text)


def chosen(prompts: Sequence[Mapping[str, Any]], count: int | None) -> list[Mapping[str, Any]]:
    """Choose prompts of a benchmark, in its order; a larger count includes those of a smaller one."""
    places = generator(stream(Purpose.JUDGED, 0)).permutation(len(prompts))
    return [prompts[place] for place in sorted(places[:count])]


def message(instruction: str, context: str, first: str, second: str) -> str:
    """Write the question as the judge reads it."""
    given = f"\n[Input]\n{context}\n" if context.strip() else ""
    text = REQUEST.format(instruction=instruction, context=given, first=first, second=second)
    return text.encode(errors="replace").decode()  # JSON files may hold lone surrogates, requests may not


def read_ratings(answer: str) -> tuple[int, int] | None:
    """Return the ratings of the first and the second answer shown; None unless the reply is the object asked for.

    A Markdown fence around it is allowed; anything else is not guessed at.
    """
    text = answer.strip()
    fenced = FENCED.fullmatch(text)
    try:
        ratings = Ratings.model_validate_json(fenced[1] if fenced else text)
    except ValidationError:
        return None
    return ratings.assistant_1, ratings.assistant_2


def schema() -> dict[str, Any]:
    """Return `response_format` for an endpoint with structured output."""
    form = {"name": "ratings", "strict": True, "schema": Ratings.model_json_schema()}
    return {"type": "json_schema", "json_schema": form}
