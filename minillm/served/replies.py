"""Forms in which servers tell log-probabilities; what has another form is not read."""

from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

LogProb = Annotated[float, Field(lt=1)]
"""Not NaN; rounding may take it above 0."""


class Entry(BaseModel):
    """One token that vLLM tells of a place."""

    logprob: LogProb


class Echo(BaseModel):
    """Tokens of the text, and of what follows it, as strings."""

    model_config = ConfigDict(from_attributes=True)

    tokens: list[str]
    token_logprobs: list[LogProb | None]
    top_logprobs: list[dict[str, LogProb] | None]

    @model_validator(mode="after")
    def _of_all_tokens(self) -> Self:
        if not len(self.tokens) == len(self.token_logprobs) == len(self.top_logprobs):
            raise ValueError("the lists differ in length")
        return self


class Choice(BaseModel):
    """The part of a completion's choice that is read."""

    model_config = ConfigDict(from_attributes=True)

    prompt_logprobs: list[dict[int, Entry] | None] | None = None
    """vLLM's: for each token of the text, the likeliest and itself by id."""
    logprobs: Echo | None = None


def read_choice(choice: Any) -> Choice:
    """Read a choice; one that is malformed tells nothing."""
    try:
        return Choice.model_validate(choice)
    except ValidationError:
        return Choice()
