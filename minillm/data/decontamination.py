"""Which training rows also stand in an evaluation set."""

import hashlib
import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

CITATION = re.compile(r"\[(\d+|[a-z])\]")
"""Footnote marks such as [3] and [a], left in the contexts of some copies of Dolly and not of others."""


@dataclass(frozen=True)
class Overlap:
    """A row that may not be trained on, and where it also stands."""

    row: int
    found_in: str
    """A benchmark's name, or validation or test of the same data."""
    found_row: int
    """Row there: the benchmark's prompt, or the row of the data."""


def normalise(text: str) -> str:
    """Text up to Unicode form and white space."""
    return " ".join(unicodedata.normalize("NFC", text).split())


def question(instruction: str, context: str) -> tuple[str, str]:
    """What is asked, up to Unicode form, white space, letter case and footnote marks."""
    instruction, context = (normalise(CITATION.sub("", text)).casefold() for text in (instruction, context))
    return instruction, context


def digest(*texts: str) -> bytes:
    """Digest of normalised texts, in which there are no line ends: what tells them apart, in 16 bytes."""
    return hashlib.blake2b("\n".join(texts).encode(), digest_size=16).digest()


def index_benchmarks(benchmarks: Mapping[str, Iterable[Mapping[str, Any]]]) -> dict[bytes, tuple[str, int]]:
    """The benchmark and row of every question asked there, by its digest; the first where it is asked twice."""
    index: dict[bytes, tuple[str, int]] = {}
    for name, rows in benchmarks.items():
        for row in rows:
            index.setdefault(digest(*question(row["instruction"], row["context"])), (name, row["index"]))
    return index


def find_overlaps(
    questions: Mapping[int, bytes],
    parts: Mapping[int, str],
    benchmarks: Mapping[bytes, tuple[str, int]],
) -> list[Overlap]:
    """Rows of train and validation that a benchmark, or the data held out from them, also asks.

    Args:
        questions: Digests by row.
        parts: train, validation or test, by row.
        benchmarks: From `index_benchmarks`.

    Returns:
        In the order of rows. A test row is never one: it naturally stands in the benchmark made of it.
    """
    overlaps: list[Overlap] = []
    held_out: dict[bytes, tuple[str, int]] = dict(benchmarks)
    for part in ("test", "validation", "train"):
        rows = [row for row in questions if parts[row] == part]
        found = {} if part == "test" else {row: held_out[questions[row]] for row in rows if questions[row] in held_out}
        overlaps += [Overlap(row, *place) for row, place in found.items()]
        if part != "train":
            for row in rows:
                if row not in found:
                    held_out.setdefault(questions[row], (part, row))
    return sorted(overlaps, key=lambda overlap: overlap.row)
