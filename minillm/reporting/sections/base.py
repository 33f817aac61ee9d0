"""Sections of the report, which are present only if their measurement was made."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from minillm.evaluation.uncertainty import FEW, FEW_PROMPTS, FEWEST, WITHOUT_INTERVAL
from minillm.files import read_json
from minillm.words import with_interval


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


def read_measured(inputs: Mapping[str, Path], kind: str, roles: Sequence[str], file: str) -> dict[str, Any]:
    """Return what a kind of stage wrote into a file for each method, of those that it measured."""
    return {role: read_json(inputs[f"{kind}/{role}"] / file) for role in roles if f"{kind}/{role}" in inputs}


def cell_table(cells: Mapping[str, Mapping[str, Any]], words: Callable[[Any], str]) -> pd.DataFrame:
    """Return method × column of some cells, each in words."""
    rows = {role: {name: words(cell) for name, cell in of.items()} for role, of in cells.items()}
    return pd.DataFrame.from_dict(rows, orient="index")


def interval_table(cells: Mapping[str, Mapping[str, Any]], what: str, digits: int = 1) -> pd.DataFrame:
    """Return method × column of one measurement, each with its interval."""
    return cell_table(cells, lambda found: with_interval(found[what]["value"], found[what]["interval"], digits))


def doubt_words(ends: Iterable[float | None], prompts: Iterable[int] = ()) -> str:
    """Warn of missing intervals and of intervals over few prompts, after a space; nothing if there are none.

    Args:
        ends: Ends of the intervals.
        prompts: Numbers of prompts that they cover.
    """
    words = f" {WITHOUT_INTERVAL}" if any(end is None for end in ends) else ""
    return words + (f" {FEW_PROMPTS}" if any(FEWEST <= number < FEW for number in prompts) else "")
