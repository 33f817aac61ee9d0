"""What the judge is asked: one answer of a model beside the reference, in either order, for two ratings."""

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
"""Judges favour a place; each pair is shown both ways."""

# The request is worded as in the paper's appendix, but for its end: there, two values on a line and an explanation
# after them, which could not change them any more and would be paid for.
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
    """The form of an answer, and the schema that endpoints with structured output hold it to."""

    model_config = ConfigDict(extra="forbid", strict=True)
    assistant_1: Rating
    assistant_2: Rating


@dataclass(frozen=True)
class Question:
    """One pair of answers in one order, put to the judge once."""

    benchmark: str
    index: int
    """Of the prompt in its benchmark."""
    seed: int
    """Of the generation."""
    order: Order
    sample: int
    text: str
    """The whole message."""

    def key(self, judge: Judge) -> str:
        """Digest of what decides the answer; the same question is the same whatever stage asks it, and when."""
        asked = {"base_url": judge.base_url.rstrip("/"), "model": judge.model, "temperature": judge.temperature}
        return text_digest(asked | {"text": self.text, "sample": self.sample})


def questions_about(
    benchmark: str,
    prompts: Sequence[Mapping[str, Any]],
    responses: Mapping[tuple[int, int], str],
    seeds: Sequence[int],
    judge: Judge,
) -> Iterator[Question]:
    """Every question about one benchmark.

    Args:
        benchmark: Its name.
        prompts: Its rows; the first reference is the one compared with.
        responses: The model's answers by (index, seed).
        seeds: Of the generations that are judged.
        judge: Number of prompts and samples.
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
    """Some prompts of a benchmark, in its order; a larger count has those of a smaller one among it."""
    places = generator(stream(Purpose.JUDGED, 0)).permutation(len(prompts))
    return [prompts[place] for place in sorted(places[:count])]


def message(instruction: str, context: str, first: str, second: str) -> str:
    """The question as the judge reads it."""
    given = f"\n[Input]\n{context}\n" if context.strip() else ""
    text = REQUEST.format(instruction=instruction, context=given, first=first, second=second)
    return text.encode(errors="replace").decode()  # JSON files can hold halves of characters, requests cannot


def read_ratings(answer: str) -> tuple[int, int] | None:
    """Ratings of the first and the second answer shown; None unless the answer is the object asked for.

    A Markdown fence around it is no other answer; anything else is never guessed at.
    """
    text = answer.strip()
    fenced = FENCED.fullmatch(text)
    try:
        ratings = Ratings.model_validate_json(fenced[1] if fenced else text)
    except ValidationError:
        return None
    return ratings.assistant_1, ratings.assistant_2


def schema() -> dict[str, Any]:
    """`response_format` of an endpoint with structured output."""
    form = {"name": "ratings", "strict": True, "schema": Ratings.model_json_schema()}
    return {"type": "json_schema", "json_schema": form}
