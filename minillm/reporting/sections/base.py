"""Parts of the report that stand there only where something was measured for them."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import pandas as pd
from matplotlib.figure import Figure

from minillm.evaluation.uncertainty import FEW, FEW_PROMPTS, FEWEST, WITHOUT_INTERVAL


@dataclass(frozen=True)
class Section:
    """One measurement on the page, under a heading of its own."""

    title: str
    words: str
    """What was measured and how to read it; plain text."""
    tables: Mapping[str, pd.DataFrame] = field(default_factory=dict)
    """By their titles; cells are words already."""
    figures: Mapping[str, tuple[str, Figure]] = field(default_factory=dict)
    """Title and figure, by the name of its file."""


def doubt_words(ends: Iterable[float | None], prompts: Iterable[int] = ()) -> str:
    """Sentences for a page where intervals are missing or are over few prompts, after a space; nothing elsewhere.

    Args:
        ends: Of the intervals.
        prompts: That they are over.
    """
    words = f" {WITHOUT_INTERVAL}" if any(end is None for end in ends) else ""
    return words + (f" {FEW_PROMPTS}" if any(FEWEST <= number < FEW for number in prompts) else "")
