"""Records: the content of one line or row of a data file, with its place and what is wrong with it."""

import codecs
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from minillm.errors import StageError
from minillm.files import open_file

LONGEST = 1 << 26
"""Most bytes of one line, row or document (64 MiB): a longer one would fill the memory, and is a mistake."""
BLOCK = 1 << 20


@dataclass(frozen=True, slots=True)
class Record:
    """One row as it was found."""

    file: str
    line: int
    """Line of a JSONL file, element of a JSON list or row of a table, counted from 1."""
    value: Any
    problem: str | None = None
    """Reason why the row could not be read; None if it could."""
    of_table: bool = False
    """True if nulls may stand for fields that only other rows have: a table has every field in all rows."""


def has_value(found: Any) -> bool:
    """Return whether a field has a value; null, blank text and an empty list are none."""
    return bool(found.strip()) if isinstance(found, str) else found is not None and found != []


def decode_lines(path: Path) -> Iterator[Record]:
    """Yield the lines of a text file, without line ends; a line that is not UTF-8 comes with a `problem`. Streams.

    Raises:
        StageError: The file cannot be opened, or a line is longer than LONGEST.
    """
    with open_file(path) as stream:
        for number, line in enumerate(bounded_lines(path, stream), start=1):
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
                yield Record(str(path), number, text)
            except UnicodeDecodeError as error:
                byte = f"0x{error.object[error.start]:02x}"
                yield Record(str(path), number, None, f"not UTF-8 (byte {byte} at column {error.start + 1})")


def bounded_lines(path: Path, stream: BinaryIO) -> Iterator[bytes]:
    """Yield the lines of a stream, with line ends.

    Raises:
        StageError: A line is longer than LONGEST.
    """
    number = 0
    while line := stream.readline(LONGEST + 1):
        number += 1
        if len(line) > LONGEST:
            raise too_long(path, f"line {number}")
        yield line


def too_long(path: Path, what: str) -> StageError:
    """Return the error for a line, row or document that is longer than LONGEST."""
    return StageError(f"{path}: {what} is longer than {LONGEST >> 20} MiB; part it into several, or leave it out")


def require_utf8(path: Path) -> None:
    """Check that a whole file is UTF-8, for formats in which one bad byte spoils all that follows.

    Raises:
        StageError: The file is not UTF-8. The message has the first wrong byte and its position from 0.
    """
    decoder = codecs.getincrementaldecoder("utf-8")()
    before = 0
    with open_file(path) as stream:
        while True:
            pending = len(decoder.getstate()[0])
            block = stream.read(BLOCK)
            try:
                decoder.decode(block, final=not block)
            except UnicodeDecodeError as error:
                byte = error.object[error.start]
                place = before - pending + error.start
                raise StageError(
                    f"{path} is not UTF-8: byte 0x{byte:02x} at position {place}; save it as UTF-8"
                ) from error
            if not block:
                return
            before += len(block)
