"""Raw rows of any data file or directory, each with the place it came from."""

import csv
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from minillm.data.json_rows import json_lines, json_list, opens_list
from minillm.data.records import LONGEST, Record, bounded_lines, require_utf8
from minillm.errors import StageError
from minillm.files import files_of, open_file, require_readable

LINE_SUFFIXES = (".jsonl", ".ndjson", ".json")
TABLE_SUFFIXES = (".parquet", ".csv", ".arrow")
SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "dev", "val"),
    "test": ("test", "testing", "eval", "evaluation"),
}
"""Words in a file's name that say which split it holds, as on the hub."""
BATCH = 64
"""Rows of a table that become Python values at once."""


def read_records(path: Path) -> Iterator[Record]:
    """Yield the rows of a JSONL, JSON, parquet, csv or arrow file, or of a directory of one of these. Streams.

    Blank lines are skipped. A row that is not UTF-8, not JSON, or not whole comes as a record with a `problem`. Fields
    of a csv file are text as written, also NA, null, 007 and True.

    Raises:
        StageError: The format is unknown, or the file as a whole cannot be read.
    """
    require_readable(path)
    if path.is_dir():
        return _directory(path)
    if path.suffix in LINE_SUFFIXES:
        return json_list(path) if path.suffix == ".json" and opens_list(path) else json_lines(path)
    if path.suffix == ".csv":
        return _csv(path)
    if path.suffix in TABLE_SUFFIXES:
        return _table(path)
    suffixes = ", ".join((*LINE_SUFFIXES, *TABLE_SUFFIXES))
    raise StageError(f"{path}: unknown format {path.suffix!r}; use one of {suffixes}")


def _directory(path: Path) -> Iterator[Record]:
    """Rows of the only file of lines, or of the tables in one folder if they are of one split, sorted by name."""
    files = files_of(path)
    lines = [p for p in files if p.suffix in (".jsonl", ".ndjson")]
    tables = [p for p in files if p.suffix in TABLE_SUFFIXES]
    if len(lines) == 1 and not tables:
        return read_records(lines[0])
    if lines or len({(p.parent, p.suffix) for p in tables}) != 1:
        names = ", ".join(str(p.relative_to(path)) for p in files[:20]) or "nothing"
        raise StageError(f"{path} is a directory that holds {names}; name the file or folder to read with `file`")
    found = {_split(p) for p in tables}
    if len(found) > 1:
        raise StageError(
            f"{path} has the splits {', '.join(s for s in SPLITS if s in found)}; name the file to read with `file`"
        )
    return (record for table in tables for record in read_records(table))


def _split(path: Path) -> str:
    words = re.split(r"[-._ 0-9]+", path.stem.lower())
    return next((split for split, names in SPLITS.items() if not {*names}.isdisjoint(words)), "train")


def _csv(path: Path) -> Iterator[Record]:
    require_utf8(path)
    csv.field_size_limit(LONGEST)
    with open_file(path) as stream:
        lines = (line.decode("utf-8-sig" if n == 0 else "utf-8") for n, line in enumerate(bounded_lines(path, stream)))
        reader = csv.reader(lines, strict=True)
        try:
            names = next(reader, [])
            if twice := [name for name in names if names.count(name) > 1]:
                raise StageError(f"{path} has two columns `{twice[0]}`; rename one")
            for number, fields in enumerate(filter(None, reader), start=1):
                if len(fields) == len(names):
                    yield Record(str(path), number, dict(zip(names, fields, strict=True)))
                else:
                    yield Record(str(path), number, None, f"{len(fields)} fields under {len(names)} names of columns")
        except csv.Error as error:
            raise StageError(f"{path}:{reader.line_num} is not CSV ({error}); mend the line") from error


def _table(path: Path) -> Iterator[Record]:
    number = 0
    try:
        with open_file(path) as stream:
            for batch in _batches(path, stream):
                for start in range(0, batch.num_rows, BATCH):
                    for value in batch.slice(start, BATCH).to_pylist():
                        number += 1
                        yield Record(str(path), number, value, of_table=True)
    except (pa.ArrowException, ValueError, OSError) as error:
        raise StageError(f"{path} cannot be read as a table behind row {number}: {error}") from error


def _batches(path: Path, stream: Any) -> Iterator[pa.RecordBatch]:
    if path.suffix == ".parquet":
        yield from pq.ParquetFile(stream, pre_buffer=False).iter_batches(BATCH)
        return
    import datasets  # takes a second, and few files are .arrow

    try:
        yield from datasets.Dataset.from_file(str(path)).data.to_batches()  # mapped into memory
    except pa.ArrowInvalid:  # the file is by pyarrow's file writer, not by `datasets`
        file = pa.ipc.open_file(stream)
        yield from map(file.get_batch, range(file.num_record_batches))
