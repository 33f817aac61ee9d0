"""Tables and a page that say what filtering did."""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from minillm.data.candidates import Candidate
from minillm.data.decontamination import Overlap
from minillm.data.rows import NO_CATEGORY, Malformed

SHOWN = 20
"""Malformed and decontaminated rows that the page lists; their files list all."""
NO_PART = "no part"
Example = Sequence[tuple[str, str]]
"""Parts of a row in their order, by name: prompt, what is learnt, what ends it, what is only read."""


def dropped_table(candidates: Sequence[Candidate], malformed: int) -> pd.DataFrame:
    """Count dropped rows, reason × category, with totals. Malformed rows have no category.

    Args:
        candidates: All readable rows.
        malformed: Number of rows that could not be read.
    """
    gone = [(c.reason, c.category) for c in candidates if c.reason]
    table = _count([*gone, *[("malformed", NO_CATEGORY)] * malformed])
    table["total"] = table.sum(axis=1)
    table.loc["total"] = table.sum(axis=0)
    return table.rename_axis("reason")


def part_table(candidates: Sequence[Candidate], malformed: int) -> pd.DataFrame:
    """Count the kept and dropped rows of each part. Rows dropped before a random split have no part."""
    outcomes = [(c.reason or "kept", c.part or NO_PART) for c in candidates]
    return _count([*outcomes, *[("malformed", NO_PART)] * malformed]).rename_axis("outcome")


def _count(pairs: Sequence[tuple[str, str]]) -> pd.DataFrame:
    """Count each pair in a table first × second, both in alphabetical order."""
    table = pd.DataFrame(pairs, columns=["line", "column"])
    return pd.crosstab(table["line"], table["column"]).rename_axis(columns=None)


def length_table(examples: Sequence[Candidate]) -> pd.DataFrame:
    """Summarise tokens of prompts and responses by category and over all: count, mean, 50, 90, 99 % and maximum."""
    groups: dict[str, list[Candidate]] = {}
    for example in examples:
        groups.setdefault(example.category, []).append(example)
    lines = []
    for category, group in [*sorted(groups.items()), ("all", examples)]:
        texts = {"prompt": [e.prompt_tokens for e in group], "response": [e.response_tokens for e in group]}
        for text, tokens in texts.items():
            middle, high, highest = np.percentile(tokens, [50, 90, 99])
            facts = {"count": len(tokens), "mean": round(float(np.mean(tokens)), 1)}
            facts |= {"50%": middle, "90%": high, "99%": highest, "max": max(tokens)}
            lines.append({"category": category, "text": text, **facts})
    return pd.DataFrame(lines)


def write_report(
    path: Path,
    candidates: Sequence[Candidate],
    malformed: Sequence[Malformed],
    overlaps: Sequence[Overlap],
    dropped: pd.DataFrame,
    lengths: pd.DataFrame,
    form: str,
    notes: Mapping[str, int],
    examples: Sequence[Example],
) -> None:
    """Write the page (markdown).

    Args:
        path: File to write.
        candidates: All readable rows, decided upon.
        malformed: Rows that cannot be learnt from.
        overlaps: Rows that are also in an evaluation set.
        dropped: Table of `dropped_table`.
        lengths: Table of `length_table`.
        form: Format of the rows.
        notes: What was special about kept or dropped rows, and how often.
        examples: Some rows, to show what is learnt.
    """
    kept = sum(not c.reason for c in candidates)
    sections = [
        f"# Filtering: {kept} of {len(candidates) + len(malformed)} rows kept",
        f"Format of the rows: {form}. {' '.join(f'{count} rows: {note}.' for note, count in notes.items())}".strip(),
        "## Dropped, by reason and category",
        dropped.to_markdown(),
        "## Parts",
        part_table(candidates, len(malformed)).to_markdown(),
        "## Lengths of the kept rows, tokens (prompt: read; response: learnt, with what ends it)",
        lengths.to_markdown(index=False),
        "## What is prompt, what is learnt, and what ends it",
        *map(_shown, examples),
        f"## Malformed rows: {len(malformed)}",
        _listing([f"{m.file}:{m.line}: {m.reason}" for m in malformed], "malformed.jsonl"),
        f"## Also in an evaluation set: {len(overlaps)}",
        _listing([f"row {o.row}: {o.found_in}, row {o.found_row}" for o in overlaps], "decontaminated.jsonl"),
    ]
    path.write_text("\n\n".join(sections) + "\n", encoding="utf-8")


def _shown(example: Example) -> str:
    """Return the parts of an example as blocks of code."""
    return "\n\n".join(f"{name}:\n\n{textwrap.indent(text, '    ', lambda line: True)}" for name, text in example)


def _listing(lines: Sequence[str], file: str) -> str:
    if not lines:
        return "None."
    more = [f"- … and {len(lines) - SHOWN} more, all in `{file}`"] if len(lines) > SHOWN else []
    return "\n".join([*(f"- {line}" for line in lines[:SHOWN]), *more])
