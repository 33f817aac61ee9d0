"""Raw rows out of any data file or directory, each with the place it came from."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minillm.errors import StageError

LINES = (".jsonl", ".ndjson", ".json")
TABLES = {".parquet": "parquet", ".csv": "csv", ".arrow": "arrow"}


@dataclass(frozen=True)
class Record:
    """One row as it was found."""

    file: str
    line: int
    """Counted from 1: the line of a JSONL file, the element of a JSON list, the row of a table."""
    value: Any
    problem: str | None = None
    """Why it could not be read; None where it could."""


def read_records(path: Path) -> Iterator[Record]:
    """Rows of a JSONL or JSON file, a parquet, csv or arrow file, or a directory of one of these. Streams.

    Blank lines are skipped. A line that is not UTF-8 or not JSON comes as a record with a `problem`.

    Raises:
        StageError: If the format is unknown or the file as a whole cannot be read.
    """
    if path.is_dir():
        return _directory(path)
    if path.suffix in LINES:
        return _json_list(path) if path.suffix == ".json" and _opens_list(path) else _json_lines(path)
    if path.suffix in TABLES:
        return _table(path, TABLES[path.suffix], data_files=str(path))
    raise StageError(f"{path}: unknown format {path.suffix!r}; use one of {', '.join((*LINES, *TABLES))}")


def decode_lines(path: Path) -> Iterator[Record]:
    """Lines of a text file, without their ends; a line that is not UTF-8 comes with a `problem`."""
    with path.open("rb") as stream:
        for number, line in enumerate(stream, start=1):
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
                yield Record(str(path), number, text)
            except UnicodeDecodeError as error:
                byte = f"0x{line[error.start]:02x}"
                yield Record(str(path), number, None, f"not UTF-8 (byte {byte} at column {error.start + 1})")


def _json_lines(path: Path) -> Iterator[Record]:
    for record in decode_lines(path):
        if record.problem is not None:
            yield record
        elif record.value.strip():
            try:
                yield Record(record.file, record.line, json.loads(record.value))
            except ValueError as error:
                yield Record(record.file, record.line, None, f"not JSON ({error})")


def _opens_list(path: Path) -> bool:
    with path.open("rb") as stream:
        return stream.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()[:1] == b"["


def _json_list(path: Path) -> Iterator[Record]:
    try:
        rows = json.loads(path.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise StageError(f"{path} opens with [ but is not a JSON list in UTF-8: {error}") from error
    for number, value in enumerate(rows, start=1):
        yield Record(str(path), number, value)


def _directory(path: Path) -> Iterator[Record]:
    files = sorted(p for p in path.rglob("*") if p.is_file() and not p.name.startswith("."))
    lines = [p for p in files if p.suffix in (".jsonl", ".ndjson")]
    tables = [p for p in files if p.suffix in TABLES]
    if len(lines) == 1 and not tables:
        return read_records(lines[0])
    if lines or not tables:
        names = ", ".join(str(p.relative_to(path)) for p in files[:20]) or "nothing"
        raise StageError(f"{path} is a directory that holds {names}; name the file to read with `file`")
    return _table(path, str(path))


def _table(path: Path, loader: str, data_files: str | None = None) -> Iterator[Record]:
    """Rows through `datasets`, streamed, so that nothing is copied into a cache."""
    from datasets import IterableDatasetDict, load_dataset
    from datasets.exceptions import DatasetGenerationError

    try:
        loaded = load_dataset(loader, data_files=data_files, streaming=True)
        assert isinstance(loaded, IterableDatasetDict)
        if len(loaded) > 1:
            raise StageError(f"{path} has the splits {', '.join(map(str, loaded))}; name the file to read with `file`")
        for number, value in enumerate(next(iter(loaded.values())), start=1):
            yield Record(str(path), number, value)
    except (ValueError, OSError, DatasetGenerationError) as error:
        raise StageError(f"{path} cannot be read as a table: {error}") from error
