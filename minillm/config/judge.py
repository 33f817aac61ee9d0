"""The judge, a strong model behind an endpoint, and how much asking it may cost (method.md §7)."""

import re
from typing import Self

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from minillm.config.base import Seeds, Strict


class Prices(Strict):
    """Prices of the endpoint, in any one currency."""

    prompt: float = Field(ge=0.0)
    """Price of a million prompt tokens."""
    completion: float = Field(ge=0.0)
    """Price of a million completion tokens."""


class Judge(Strict):
    """A model behind an OpenAI-compatible endpoint that rates answers beside their references from 1 to 10."""

    base_url: str
    """Address of the endpoint up to its version, e.g. https://api.openai.com/v1."""
    api_key_variable: str = "OPENAI_API_KEY"
    """Environment variable with the endpoint's key; the key itself is in no file."""
    model: str = Field(min_length=1)
    """Name of the judge at the endpoint."""
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
    attempts: PositiveInt = 3
    """Most times a question is asked until its answer has the required form."""
    parallel: PositiveInt = 8
    """Questions under way at once, over all stages of the store."""
    timeout_seconds: PositiveFloat = 120.0
    """Seconds after which a request without an answer is sent again."""
    max_questions: PositiveInt
    """Most questions that the results of one run may take, repeats included; methods share them equally."""
    prices: Prices | None = None
    """Prices of the endpoint; without them, only questions and tokens are counted."""
    max_cost: PositiveFloat | None = None
    """Most money that the results of one run may cost, in the currency of `prices`; methods share it equally."""

    @model_validator(mode="after")
    def _no_secrets(self) -> Self:
        """Refuse values that hold a secret; the messages do not quote them, since they may be keys."""
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
