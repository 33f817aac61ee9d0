"""Sections of the report, which are present only if their measurement was made."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import pandas as pd
from matplotlib.figure import Figure

from minillm.evaluation.uncertainty import FEW, FEW_PROMPTS, FEWEST, WITHOUT_INTERVAL


@dataclass(frozen=True)
class Section:
    """One measurement, under its own heading."""

    title: str
    words: str
    """Explanation of the measurement and how to read it, as plain text."""
    tables: Mapping[str, pd.DataFrame] = field(default_factory=dict)
    """Tables by title; all cells are strings."""
    figures: Mapping[str, tuple[str, Figure]] = field(default_factory=dict)
    """Title and figure, by the name of its file."""


def doubt_words(ends: Iterable[float | None], prompts: Iterable[int] = ()) -> str:
    """Warn of missing intervals and of intervals over few prompts, after a space; nothing if there are none.

    Args:
        ends: Ends of the intervals.
        prompts: Numbers of prompts that they cover.
    """
    words = f" {WITHOUT_INTERVAL}" if any(end is None for end in ends) else ""
    return words + (f" {FEW_PROMPTS}" if any(FEWEST <= number < FEW for number in prompts) else "")
