"""Rows of a plan: how many there are, what does not fit, and some of them as they are learnt."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from minillm.data.filter_report import Example
from minillm.words import counted, percent

EDGE = 120
"""Characters that are shown of the beginning and of the end of a text."""


def rows_words(
    examples: Path, summary: Mapping[str, float | str], cut: Mapping[str, float | str], shown: Sequence[Example]
) -> str:
    """Tell the format, the rows that are too long, the benchmark prompts that are cut, and show some rows.

    Args:
        examples: Artifact of the filter.
        summary: Its summary.
        cut: Summary of the stage that encodes the benchmarks' prompts.
        shown: Some rows.
    """
    dropped = pd.read_csv(examples / "dropped.csv")
    long = sum(dropped.loc[dropped["reason"].str.endswith("too long"), "total"].tolist())
    prompts = sum(int(count) for count in cut.values())
    lines = [
        f"Rows ({summary['format']}): {summary['train']:,.0f} to train on, {summary['validation']:,.0f} to validate; "
        f"{counted(long, 'row')} of {summary['rows']:,.0f} ({percent(long / float(summary['rows']))}) dropped as too "
        f"long, {counted(prompts, 'benchmark prompt')} cut"
    ]
    for number, parts in enumerate(shown, 1):
        lines.append("\n".join([f"Row {number}", *(f"    {name.lower():6} {_short(text)}" for name, text in parts)]))
    return "\n\n".join(lines)


def _short(text: str) -> str:
    """Quote a text with its line ends and other invisible characters as escapes, without its middle."""
    if len(text) <= 3 * EDGE:
        return repr(text)
    return f"{text[:EDGE]!r} … {len(text) - 2 * EDGE:,} characters … {text[-EDGE:]!r}"
