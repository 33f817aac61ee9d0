"""Search for training rows that also stand in an evaluation set."""

import hashlib
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from minillm.data.rows import user_message

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


def question(message: str) -> str:
    """Return a user's message without footnote marks, with Unicode form, white space and case normalised.

    An instruction with its context is the message of `minillm.data.rows.user_message`, so that it is found in
    conversations too.
    """
    return normalise(CITATION.sub("", message)).casefold()


def digest(*texts: str) -> bytes:
    """Return a 16-byte digest of normalised texts, which contain no line ends."""
    return hashlib.blake2b("\n".join(texts).encode(), digest_size=16).digest()


def index_benchmarks(benchmarks: Mapping[str, Iterable[Mapping[str, Any]]]) -> dict[bytes, tuple[str, int]]:
    """Index what opens the benchmarks' rows: (benchmark, row) by digest, the first if a question is asked twice.

    What a user says later in a conversation is no question by itself: many conversations go on with `Thanks!`.
    """
    index: dict[bytes, tuple[str, int]] = {}
    for name, rows in benchmarks.items():
        for row, message in _openings(rows):
            index.setdefault(digest(question(message)), (name, row))
    return index


def _openings(rows: Iterable[Mapping[str, Any]]) -> Iterator[tuple[int, str]]:
    """Yield the first message of the user in each row with an instruction and each conversation, and its row."""
    opened = set()
    for row in rows:
        talk = row.get("conversation", row["index"])
        messages = row["messages"] if "turn" in row else user_message(row["instruction"], row["context"])
        asked = [message["content"] for message in messages if message["role"] == "user"]
        if asked and talk not in opened:
            opened.add(talk)
            yield row["index"], asked[0]
