"""A model behind an OpenAI-compatible endpoint: where it is, how it is asked, and how much asking may cost."""

import re
from typing import ClassVar, Self

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from minillm.config.base import Pattern, Strict


class Prices(Strict):
    """Prices of the endpoint, in any one currency."""

    prompt: float = Field(ge=0.0)
    """Price of a million prompt tokens."""
    completion: float = Field(ge=0.0)
    """Price of a million completion tokens."""


class Endpoint(Strict):
    """Fields of every model behind an endpoint."""

    field: ClassVar[str]
    """Name of the section in a configuration, for errors."""

    base_url: str
    """Address of the endpoint up to its version, e.g. https://api.openai.com/v1."""
    api_key_variable: str = "OPENAI_API_KEY"
    """Environment variable with the endpoint's key; the key itself is in no file."""
    model: str = Field(min_length=1)
    """Name of the model at the endpoint."""
    attempts: PositiveInt = 3
    """Most times a question is asked until its answer has the required form."""
    parallel: PositiveInt = 8
    """Questions under way at once, over all stages of the store."""
    requests_per_minute: PositiveFloat | None = None
    """Most questions sent in a minute; without it, as many as are answered."""
    timeout_seconds: PositiveFloat = 120.0
    """Seconds after which a request without an answer is sent again."""
    prices: Prices | None = None
    """Prices of the endpoint; without them, only questions and tokens are counted."""
    max_cost: PositiveFloat | None = None
    """Most money that the questions may cost, in the currency of `prices`, counted like their number."""

    @property
    def most_questions(self) -> tuple[str, int]:
        """Field that limits the number of questions, and its value."""
        raise NotImplementedError

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
    def _money_has_prices(self) -> Self:
        if self.max_cost is not None and self.prices is None:
            raise ValueError("`max_cost` needs `prices`; give them or leave it out")
        return self


REFUSALS = (
    r"(?i)^\W*(I['’]?m|I am) (very |really |so |truly )?(sorry|afraid|unable|not able)\b",
    r"(?i)^\W*(I|We) (can['’]?t|cannot|can not|won['’]?t|will not|must decline|am unable)\b",
    r"(?i)^\W*(sorry|unfortunately),? (but )?I\b",
    r"(?i)^\W*as an? (AI|artificial intelligence|large language model|language model)\b",
)
"""Beginnings of English answers that are none."""


class Served(Endpoint):
    """A model behind an endpoint that writes what others learn; a store keeps all that it was paid for."""

    who: ClassVar[str]
    """Name of its part in a run, for the log."""

    temperature: float | None = Field(default=1.0, ge=0.0)
    """Sampling temperature of what it writes to be learnt (paper: 1); null leaves it to the endpoint, as some models
    require."""
    max_requests: PositiveInt
    """Most requests that a store may send to this model, in all runs together; what is kept there is not sent again."""

    @property
    def most_questions(self) -> tuple[str, int]:
        """Field that limits the number of questions, and its value."""
        return "max_requests", self.max_requests


class ServedTeacher(Served):
    """A teacher that runs elsewhere (docs/served-teacher.md)."""

    field: ClassVar[str] = "teacher.model.endpoint"
    who: ClassVar[str] = "teacher"

    refusals: tuple[Pattern, ...] = REFUSALS
    """Regular expressions that are looked for in a response to a training prompt; one that is found drops it."""
    duplicate_characters: PositiveInt | None = 200
    """Characters from which on a response that repeats that to an earlier training prompt is dropped; null keeps all
    (default: ours)."""


class Reasoner(Served):
    """A model that runs elsewhere and answers by System 2 (docs/system2.md)."""

    field: ClassVar[str] = "reasoner"
    who: ClassVar[str] = "reasoner"

    max_tokens: PositiveInt = 1024
    """Longest response to one prompt, in the endpoint's tokens, with what it thinks before (default: ours)."""
