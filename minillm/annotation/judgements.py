"""What annotators chose: kept in a database that survives a killed server, and exchanged as a CSV file."""

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
    """Which two answers are compared: those of two methods to one prompt."""

    benchmark: str
    index: int
    """Of the prompt in the benchmark."""
    seed: int
    """Of the generation."""
    method: str
    other: str
    answers: str
    """Digest of the two texts: a choice between others does not count."""

    @property
    def identity(self) -> tuple[Any, ...]:
        """The same for every judgement of these answers."""
        return tuple(getattr(self, field) for field in Compared.model_fields)


class Judgement(Compared):
    """One annotator's choice between two answers; its fields are the columns of the CSV file."""

    annotator: str = Field(min_length=1)
    choice: Choice
    """What `method` did against `other`."""
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
        """Open or make the file.

        Raises:
            StageError: It is no such database, or cannot be written.
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
        """Have a choice on disk when this returns; it replaces the annotator's earlier one on the same pair."""
        with self._connection() as connection:
            connection.execute(_KEEP, judgement.model_dump(mode="json"))

    def of(self, pairs: Iterable[Compared], annotator: str | None = None) -> Iterator[tuple[Compared, str, Choice]]:
        """Pair, annotator and choice of every judgement of some pairs, each pair looked up by the table's key.

        Args:
            pairs: In any number; what else the table holds costs nothing.
            annotator: Whose judgements; without it, everybody's.
        """
        with self._connection() as connection:
            for pair in pairs:
                asked = (*pair.identity, annotator) if annotator is not None else pair.identity
                query = _OF_PAIR + (" AND annotator = ?" if annotator is not None else "")
                for name, choice in connection.execute(query, asked).fetchall():
                    yield pair, name, choice

    def all(self) -> list[Judgement]:
        """In the order of time."""
        with self._connection() as connection:
            rows = connection.execute("SELECT * FROM judgement ORDER BY time").fetchall()
        return [Judgement(**dict(zip(COLUMNS, row, strict=True))) for row in rows]

    @contextlib.contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        """A connection of the calling thread's own; what it did is committed at the end, if nothing went wrong."""
        with contextlib.closing(sqlite3.connect(self.path, timeout=30)) as connection, connection:
            connection.execute("PRAGMA synchronous = EXTRA")  # a commit outlives a power cut too
            yield connection


def write_csv(path: Path, judgements: Sequence[Judgement]) -> None:
    """Write judgements to a file, whole or not at all.

    Raises:
        StageError: It cannot be written.
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
    """Judgements of a file that `write_csv` wrote; further columns are left aside.

    Raises:
        StageError: The file is no CSV file with these columns, has a wrong value, a choice twice or none at all.
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
            "as `python -m minillm.annotation --export` writes it"
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
