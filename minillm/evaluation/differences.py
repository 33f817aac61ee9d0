"""Differences between methods, with p-values adjusted within the family of comparisons that are read together."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from minillm.evaluation.uncertainty import Values, adjusted, paired_estimate
from minillm.words import with_interval

LEVEL = 0.05
"""A difference counts as clear below this p-value, adjusted for the comparisons of its family."""
TEACHER = "teacher"
"""Name of the first row of a table whose other rows are its students."""


@dataclass(frozen=True)
class Difference:
    """Difference between the scores of two methods on one benchmark."""

    method: str
    """The method that is higher where the value is positive."""
    other: str
    benchmark: str
    value: float
    """Score of `method` minus that of `other`."""
    low: float | None
    """Lower end of the 95 % interval over prompts; None without an interval (see `uncertainty.WITHOUT_INTERVAL`)."""
    high: float | None
    p_value: float | None
    """Two-sided p-value, adjusted within its family (see `family`); None if it cannot be computed."""

    @property
    def clear(self) -> bool:
        """True if the difference is too large to be explained by the choice of prompts."""
        return self.p_value is not None and self.p_value < LEVEL

    def __str__(self) -> str:
        return with_interval(self.value, (self.low, self.high), signed=True)

    @property
    def marked(self) -> str:
        """The difference in words, with a star where it is clear."""
        return f"{self}{' *' if self.clear else ''}"


def family(method: str, other: str) -> str:
    """Name the family within which a p-value is adjusted: comparisons with the teacher, or between other methods.

    "Does a student equal its teacher?" is a different question from "which method is best?", and usually an easy one.
    Each family covers all benchmarks and their mean, because a reader looks at all of them.
    """
    return "with the teacher" if TEACHER in (method, other) else "between methods"


def paired_differences(
    values: Mapping[tuple[str, str, str], Values], families: Callable[[str, str], str]
) -> list[Difference]:
    """Return one difference for each entry, with p-values adjusted within families.

    Args:
        values: The method's score minus the other's, per prompt, for each benchmark that the difference covers; keyed
            by (method, other, benchmark).
        families: Maps method and other to the name of their family.
    """
    estimates = [paired_estimate(of_pair) for of_pair in values.values()]
    p_values = adjusted(
        [found.p_value for found in estimates], [families(method, other) for method, other, _ in values]
    )
    return [
        Difference(*pair, found.value, found.low, found.high, p_value)
        for pair, found, p_value in zip(values, estimates, p_values, strict=True)
    ]
