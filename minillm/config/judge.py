"""The judge: a strong model behind an endpoint, and what asking it may cost (method.md §7)."""

import re
from typing import Self

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from minillm.config.base import Seeds, Strict


class Prices(Strict):
    """What the endpoint charges, in any one currency."""

    prompt: float = Field(ge=0.0)
    """Per million prompt tokens."""
    completion: float = Field(ge=0.0)
    """Per million completion tokens."""


class Judge(Strict):
    """A model that rates answers beside their references from 1 to 10, behind any OpenAI-compatible endpoint."""

    base_url: str
    """Address of the endpoint up to its version, e.g. https://api.openai.com/v1."""
    api_key_variable: str = "OPENAI_API_KEY"
    """Environment variable that holds the endpoint's key; the key itself stands in no file."""
    model: str = Field(min_length=1)
    """Name by which the endpoint knows the judge."""
    benchmarks: tuple[str, ...] = Field(min_length=1)
    """Names of the benchmarks that are judged (paper: DollyEval, SelfInst, VicunaEval)."""
    prompts: PositiveInt | None = None
    """Prompts judged of each benchmark, drawn once: more of them keep those of fewer. Without it, all."""
    seeds: Seeds | None = None
    """Of the generations that are judged; without it, the first of `evaluation.seeds`."""
    samples: PositiveInt = 1
    """Times that each question is put, for each of the two orders of model and reference."""
    temperature: float | None = Field(default=0.0, ge=0.0)
    """Sampling temperature of the judge; null leaves it to the endpoint, as some models demand."""
    max_tokens: PositiveInt = 256
    """Longest answer, tokens, with what a reasoning model thinks before it."""
    attempts: PositiveInt = 3
    """Times that a question is asked until its answer has the form asked for."""
    parallel: PositiveInt = 8
    """Questions under way at once, over all stages of the store."""
    timeout_seconds: PositiveFloat = 120.0
    """Until a request without an answer is sent again."""
    max_questions: PositiveInt
    """Most questions that the results of one run may take, those asked again included; methods share it equally."""
    prices: Prices | None = None
    """Without them, only questions and tokens are counted."""
    max_cost: PositiveFloat | None = None
    """Most money that the results of one run may take, in the currency of `prices`; methods share it equally."""

    @model_validator(mode="after")
    def _no_secrets(self) -> Self:
        """The messages do not quote what was given: it may be a key."""
        if not re.fullmatch(r"https?://[^\s@?#]+", self.base_url):
            raise ValueError(
                "`base_url` must be http:// or https:// with a host and a path, without user, key or query; "
                "the key is read from the environment variable `api_key_variable`"
            )
        if not re.fullmatch(r"[A-Z_][A-Z0-9_]*", self.api_key_variable):
            raise ValueError(
                "`api_key_variable` is the name of an environment variable (A–Z, 0–9, _), not the key itself"
            )
        return self

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.samples > 1 and self.temperature == 0:
            raise ValueError(
                f"samples: {self.samples} at temperature 0 is one answer paid for {self.samples} times; "
                "raise `temperature` or set `samples: 1`"
            )
        if self.max_cost is not None and self.prices is None:
            raise ValueError("`max_cost` needs `prices`; give them or leave it out")
        return self
