"""How far methods are apart, with p-values adjusted within the family of comparisons that are read together."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from minillm.evaluation.uncertainty import Values, adjusted, paired_estimate

LEVEL = 0.05
"""A difference counts as clear below this p-value, adjusted for the comparisons of its family."""
TEACHER = "teacher"
"""The first row's name where the others are its students."""


@dataclass(frozen=True)
class Difference:
    """How far one method is above another on one benchmark."""

    method: str
    """The method that is higher where the value is positive."""
    other: str
    benchmark: str
    value: float
    """Score of `method` minus that of `other`."""
    low: float | None
    """Lower end of the 95 % interval over prompts; None where there is none (see `uncertainty.WITHOUT_INTERVAL`)."""
    high: float | None
    p_value: float | None
    """Two-sided, adjusted for the differences of its family (see `family`); None where it cannot be had."""

    @property
    def clear(self) -> bool:
        """Whether it is not to be put down to the choice of prompts."""
        return self.p_value is not None and self.p_value < LEVEL

    def __str__(self) -> str:
        interval = "" if self.low is None else f" [{self.low:+.1f}, {self.high:+.1f}]"
        return f"{self.value:+.1f}{interval}".replace("-", "−")


def family(method: str, other: str) -> str:
    """Comparisons that a p-value is adjusted for: those with the teacher, or those between other methods.

    Whether a student equals its teacher is another question than which method is best, and mostly an easy one. Each
    family has all benchmarks and their mean in it, for all of them are read.
    """
    return "with the teacher" if TEACHER in (method, other) else "between methods"


def paired_differences(
    values: Mapping[tuple[str, str, str], Values], families: Callable[[str, str], str]
) -> list[Difference]:
    """One for each entry, with p-values adjusted within families.

    Args:
        values: What the method scored minus what the other one did, per prompt and benchmark that it is over; by
            (method, other, benchmark).
        families: From method and other to the name of their family.
    """
    estimates = [paired_estimate(of_pair) for of_pair in values.values()]
    p_values = adjusted(
        [found.p_value for found in estimates], [families(method, other) for method, other, _ in values]
    )
    return [
        Difference(*pair, found.value, found.low, found.high, p_value)
        for pair, found, p_value in zip(values, estimates, p_values, strict=True)
    ]
