"""Describe the data for the page: rows kept and dropped, prompts that count, and prompts that were cut."""

from collections.abc import Mapping
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq

from minillm.reporting.comparison import Comparison
from minillm.reporting.sections.base import read_measured
from minillm.words import number


def kept_rows(examples: Path) -> str:
    """Return the number of rows that filtering kept of each part, in words."""
    counts = {part: pq.read_metadata(examples / f"{part}.parquet").num_rows for part in ("train", "validation", "test")}
    return ", ".join(f"{part} {count:,}" for part, count in counts.items())


def data_tables(examples: Path) -> dict[str, pd.DataFrame]:
    """Tabulate the rows that filtering dropped and the lengths of the others, by title."""
    # a category may be called "null" or "NA"
    dropped = pd.read_csv(examples / "dropped.csv", index_col=0, keep_default_na=False).rename_axis(None).map(str)
    lengths = pd.read_csv(examples / "lengths.csv", keep_default_na=False)
    lengths.index = lengths.pop("category") + ", " + lengths.pop("text")  # type: ignore[assignment]
    lengths = lengths.map(lambda value: number(value) if isinstance(value, float) else str(value))
    return {"Dropped rows by reason and category": dropped, "Lengths of the kept rows in tokens": lengths}


def prompt_words(comparison: Comparison) -> str:
    """Return the number of prompts of each benchmark, in words; the same for every model."""
    rows = comparison.tables[comparison.roles[0]]["benchmarks"]
    return ", ".join(
        f"{name} {row['prompts']:,}" + (f" of {row['all_prompts']:,}" if row["prompts"] < row["all_prompts"] else "")
        for name, row in rows.items()
    )


def cut_words(inputs: Mapping[str, Path], comparison: Comparison) -> str:
    """Return the number of prompts whose beginning was cut, in words; by model if their tokenizers make them differ."""
    counts = read_measured(inputs, "prompts", comparison.roles, "cut_prompts.json")
    words = {
        role: ", ".join(f"{name} {count}" for name, count in of.items() if count) or "none"
        for role, of in counts.items()
    }
    if len(set(words.values())) == 1:
        return words[comparison.roles[0]]
    return "; ".join(f"{role}: {of}" for role, of in words.items())
