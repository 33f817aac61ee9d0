"""Choices of annotators: kept in a database that survives a killed server, and exchanged as a CSV file."""

import contextlib
import csv
import io
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import AwareDatetime, Field, ValidationError

from minillm.config import Strict
from minillm.durable import write_atomically
from minillm.errors import StageError

Choice = Literal["win", "tie", "loss"]


class Compared(Strict):
    """The two answers that are compared, of two methods to one prompt."""

    benchmark: str
    index: int
    """Index of the prompt in the benchmark."""
    seed: int
    """Seed of the generation."""
    method: str
    other: str
    answers: str
    """Digest of the two texts; a choice between different ones does not count."""

    @property
    def identity(self) -> tuple[Any, ...]:
        """Key that all judgements of these answers share."""
        return tuple(getattr(self, field) for field in Compared.model_fields)


class Judgement(Compared):
    """One annotator's choice between two answers; its fields are the columns of the CSV file."""

    annotator: str = Field(min_length=1)
    choice: Choice
    """Outcome of `method` against `other`."""
    time: AwareDatetime


COLUMNS = tuple(Judgement.model_fields)
_TABLE = """
CREATE TABLE IF NOT EXISTS judgement (
    benchmark TEXT, "index" INTEGER, seed INTEGER, method TEXT, other TEXT, answers TEXT, annotator TEXT,
    choice TEXT, time TEXT, PRIMARY KEY (benchmark, "index", seed, method, other, answers, annotator)
)
"""
_OF_PAIR = "SELECT annotator, choice FROM judgement WHERE " + " AND ".join(
    f'"{name}" = ?' for name in Compared.model_fields
)
_KEEP = f"INSERT OR REPLACE INTO judgement VALUES ({', '.join(f':{column}' for column in COLUMNS)})"


class Judgements:
    """The judgements of all annotators of a store, in one SQLite file; several servers may share it."""

    def __init__(self, path: Path) -> None:
        """Open the file, or make it.

        Raises:
            StageError: It is not such a database, or cannot be written.
        """
        self.path = path
        try:
            with self._connection() as connection:
                connection.execute(_TABLE)
        except sqlite3.Error as error:
            raise StageError(
                f"judgements cannot be kept in {path}: {error}; make its folder writable, or move the file away if it "
                "is another program's"
            ) from error

    def keep(self, judgement: Judgement) -> None:
        """Write a choice to disk; it replaces the annotator's earlier one on the same pair."""
        with self._connection() as connection:
            connection.execute(_KEEP, judgement.model_dump(mode="json"))

    def of(self, pairs: Iterable[Compared]) -> list[dict[str, Choice]]:
        """Return the choices on each pair by annotator, looked up by the table's key, however long the table is."""
        with self._connection() as connection:
            return [dict(connection.execute(_OF_PAIR, pair.identity).fetchall()) for pair in pairs]

    def all(self) -> list[Judgement]:
        """Return all judgements in the order of time."""
        with self._connection() as connection:
            rows = connection.execute("SELECT * FROM judgement ORDER BY time").fetchall()
        return [Judgement(**dict(zip(COLUMNS, row, strict=True))) for row in rows]

    @contextlib.contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        """Open a connection for the calling thread; its changes are committed at the end unless there was an error."""
        with contextlib.closing(sqlite3.connect(self.path, timeout=30)) as connection, connection:
            connection.execute("PRAGMA synchronous = EXTRA")  # a commit survives a power cut too
            yield connection


def write_csv(path: Path, judgements: Sequence[Judgement]) -> None:
    """Write judgements to a file atomically.

    Raises:
        StageError: The file cannot be written.
    """
    stream = io.StringIO()
    writer = csv.DictWriter(stream, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(judgement.model_dump(mode="json") for judgement in judgements)
    try:
        write_atomically(path, stream.getvalue())
    except OSError as error:
        raise StageError(f"{path} cannot be written: {error.strerror}; give another file") from error


def read_csv(path: Path) -> list[Judgement]:
    """Read judgements from a file that `write_csv` wrote; other columns are ignored.

    Raises:
        StageError: The file is not a CSV file with these columns, has a wrong value, a choice twice, or none at all.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            rows = list(csv.DictReader(stream))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise StageError(f"judgements {path} cannot be read as a CSV file in UTF-8: {error}") from error
    if not rows:
        raise StageError(f"{path} has no judgements; leave out evaluation.preference until there are some")
    if missing := [column for column in COLUMNS if column not in rows[0]]:
        raise StageError(
            f"{path} has no column {', '.join(missing)}; its first line must name {', '.join(COLUMNS)}, "
            "as `minillm annotate --export` writes it"
        )
    judgements = [_parse(path, line, row) for line, row in enumerate(rows, start=2)]
    first_lines: dict[tuple[Any, ...], int] = {}
    for line, judgement in enumerate(judgements, start=2):
        first = first_lines.setdefault((judgement.annotator, *judgement.identity), line)
        if first != line:
            raise StageError(
                f"{path}, line {line}: {judgement.annotator} judged this pair on line {first} already; keep one of them"
            )
    return judgements


def _parse(path: Path, line: int, row: dict[str, str]) -> Judgement:
    try:
        return Judgement(**{column: row[column] for column in COLUMNS})  # type: ignore[arg-type]
    except ValidationError as error:
        details = error.errors()[0]
        raise StageError(
            f"{path}, line {line}: {details['loc'][0]} is {details['input']!r}: {details['msg']}; mend the line"
        ) from error
