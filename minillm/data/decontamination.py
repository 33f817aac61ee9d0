"""Search for training rows that also stand in an evaluation set."""

import hashlib
import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

CITATION = re.compile(r"\[(\d+|[a-z])\]")
"""Footnote marks such as [3] and [a], which only some copies of Dolly have in their contexts."""


@dataclass(frozen=True)
class Overlap:
    """A row that must not be trained on, and the place where it also stands."""

    row: int
    found_in: str
    """Name of a benchmark, or validation or test of the same data."""
    found_row: int
    """Row in that place: a prompt of the benchmark, or a row of the data."""


def normalise(text: str) -> str:
    """Normalise Unicode form and white space."""
    return " ".join(unicodedata.normalize("NFC", text).split())


def question(instruction: str, context: str) -> tuple[str, str]:
    """Return instruction and context without footnote marks, with Unicode form, white space and case normalised."""
    instruction, context = (normalise(CITATION.sub("", text)).casefold() for text in (instruction, context))
    return instruction, context


def digest(*texts: str) -> bytes:
    """Return a 16-byte digest of normalised texts, which contain no line ends."""
    return hashlib.blake2b("\n".join(texts).encode(), digest_size=16).digest()


def index_benchmarks(benchmarks: Mapping[str, Iterable[Mapping[str, Any]]]) -> dict[bytes, tuple[str, int]]:
    """Index the benchmarks' questions: (benchmark, row) by digest, the first if a question is asked twice."""
    index: dict[bytes, tuple[str, int]] = {}
    for name, rows in benchmarks.items():
        for row in rows:
            context = "" if "turn" in row else row["context"]  # of a turn, it is what was said before
            index.setdefault(digest(*question(row["instruction"], context)), (name, row["index"]))
    return index
