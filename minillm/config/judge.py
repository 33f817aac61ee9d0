"""The judge, a strong model behind an endpoint, and how much asking it may cost (method.md §7)."""

from typing import ClassVar, Self

from pydantic import Field, PositiveInt, model_validator

from minillm.config.base import Seeds
from minillm.config.endpoint import Endpoint


class Judge(Endpoint):
    """A model behind an OpenAI-compatible endpoint that rates answers beside their references from 1 to 10."""

    field: ClassVar[str] = "evaluation.judge"

    benchmarks: tuple[str, ...] = Field(min_length=1)
    """Names of the benchmarks that are judged (paper: DollyEval, SelfInst, VicunaEval)."""
    prompts: PositiveInt | None = None
    """Prompts of each benchmark to judge, drawn at random; a larger number keeps the prompts of a smaller one.
    Without it, all."""
    seeds: Seeds | None = None
    """Seeds of the generations that are judged; without it, the first of `evaluation.seeds`."""
    samples: PositiveInt = 1
    """Number of times each question is asked, for each of the two orders of model and reference."""
    temperature: float | None = Field(default=0.0, ge=0.0)
    """Sampling temperature of the judge; null leaves it to the endpoint, as some models require."""
    max_tokens: PositiveInt = 256
    """Longest answer, in tokens, including what a reasoning model thinks before it."""
    max_questions: PositiveInt
    """Most questions that the results of one run may take, repeats included; methods share them equally."""

    @property
    def most_questions(self) -> tuple[str, int]:
        """Field that limits the number of questions, and its value."""
        return "max_questions", self.max_questions

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.samples > 1 and self.temperature == 0:
            raise ValueError(
                f"samples: {self.samples} at temperature 0 is one answer paid for {self.samples} times; "
                "raise `temperature` or set `samples: 1`"
            )
        return self
