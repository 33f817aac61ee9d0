"""Configuration of a teacher's stored knowledge: what one pass over the training text keeps of each token."""

from typing import Literal, Self

from pydantic import Field, PositiveInt, model_validator

from minillm.config.base import Strict

Form = Literal["top", "sampled", "hidden"]
"""Form of what is kept at a token: the likeliest entries, entries drawn at random, or the hidden state."""
SPARSE_DIVERGENCE = "forward_kl"
"""The divergence that some entries of the teacher's distribution can give; all of it gives every one."""


class Top(Strict):
    """The smallest set of likeliest entries, and the mass of all others as one. Give at most one of the fields."""

    share: float | None = Field(default=None, gt=0.0, le=1.0)
    """Share of the vocabulary's entries that is kept; 0.05 if no field is given (SLIM: 5 %)."""
    k: PositiveInt | None = None
    """Number of entries that are kept."""
    mass: float | None = Field(default=None, gt=0.0, lt=1.0)
    """Least probability of the kept entries together, as in top-p sampling; their number differs by token."""

    @model_validator(mode="after")
    def _one_size(self) -> Self:
        if len(given := [f"`{name}`" for name, value in self if value is not None]) > 1:
            raise ValueError(f"{' and '.join(given)} each say what is kept; give one")
        return self

    def entries(self, vocabulary: int) -> int:
        """Return the number of entries kept of a vocabulary; the most there may be where `mass` decides."""
        if self.mass is not None:
            return vocabulary
        return min(vocabulary, self.k or max(1, round((self.share or 0.05) * vocabulary)))


class Sampled(Strict):
    """Entries drawn from the teacher (arXiv 2503.16870): their counts are unbiased for its probabilities."""

    draws: int = Field(default=50, ge=1, le=255)
    """Draws with replacement at each token; fewer entries, each with its count in one byte (default: ours)."""


class Knowledge(Strict):
    """Form and size of what the teacher leaves of the training text, for `teacher: top`, `sampled` or `hidden`."""

    top: Top = Top()
    sampled: Sampled = Sampled()
    precision: Literal["float32", "bfloat16"] = "float32"
    """Precision that the teacher runs in, and that hidden states and head are kept in."""
