"""Differences between methods, with p-values adjusted within families of comparisons that are read together."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from minillm.evaluation.uncertainty import Values, adjusted, paired_estimate
from minillm.words import with_interval

LEVEL = 0.05
"""A difference counts as clear below this p-value, adjusted for the comparisons of its family."""
TEACHER = "teacher"
"""Name of the first row if the others are its students."""


@dataclass(frozen=True)
class Difference:
    """Difference between two methods on one benchmark."""

    method: str
    """The method that is higher where the value is positive."""
    other: str
    benchmark: str
    value: float
    """Score of `method` minus that of `other`."""
    low: float | None
    """Lower end of the 95 % interval over prompts; None if there is none (see `uncertainty.WITHOUT_INTERVAL`)."""
    high: float | None
    p_value: float | None
    """Two-sided, adjusted for the differences of its family (see `family`); None if it cannot be computed."""

    @property
    def clear(self) -> bool:
        """True if the choice of prompts does not explain the difference."""
        return self.p_value is not None and self.p_value < LEVEL

    def __str__(self) -> str:
        return with_interval(self.value, (self.low, self.high), signed=True)

    @property
    def marked(self) -> str:
        """The difference in words, with a star if it is clear."""
        return f"{self}{' *' if self.clear else ''}"


def family(method: str, other: str) -> str:
    """Name the family that a p-value is adjusted for: comparisons with the teacher, or between other methods.

    "Does a student equal its teacher?" is a different question from "which method is best?", and mostly an easy one.
    Each family includes all benchmarks and their mean, because all of them are read.
    """
    return "with the teacher" if TEACHER in (method, other) else "between methods"


def paired_differences(
    values: Mapping[tuple[str, str, str], Values], families: Callable[[str, str], str]
) -> list[Difference]:
    """Return the difference of each entry, with p-values adjusted within families.

    Args:
        values: Score of the method minus that of the other one, per prompt, for each benchmark averaged over; by
            (method, other, benchmark).
        families: Names the family of a method and another one.
    """
    estimates = [paired_estimate(of_pair) for of_pair in values.values()]
    p_values = adjusted(
        [found.p_value for found in estimates], [families(method, other) for method, other, _ in values]
    )
    return [
        Difference(*pair, found.value, found.low, found.high, p_value)
        for pair, found, p_value in zip(values, estimates, p_values, strict=True)
    ]
