"""Documents of a plain-text corpus, read as a stream."""

import itertools
from collections.abc import Iterator
from pathlib import Path

from minillm.data.records import LONGEST, Record, decode_lines, too_long
from minillm.data.rows import fields_of, text_field
from minillm.data.tables import LINE_SUFFIXES, TABLE_SUFFIXES, read_records
from minillm.errors import StageError
from minillm.files import files_of, require_readable


def read_documents(path: Path) -> Iterator[str]:
    """Yield the documents of a .txt file, of a directory of them, or of rows with a `text` field; skip blank ones.

    In a .txt file, blank lines separate documents. If there is no blank line between lines, every line is a document.

    Raises:
        StageError: A line cannot be read, or a row has no text.
    """
    files = _text_files(path)
    if not files:
        yield from _row_texts(path)
    for file in files:
        yield from _paragraphs(file) if _has_blank_lines(file) else filter(str.strip, map(_text, decode_lines(file)))


def _text_files(path: Path) -> list[Path]:
    """Return the .txt files to read; none if the corpus has files of rows, since a .txt beside them is a note."""
    require_readable(path)
    files = files_of(path) if path.is_dir() else [path]
    rows = any(p.suffix in (*LINE_SUFFIXES, *TABLE_SUFFIXES) for p in files)
    return [] if rows else [p for p in files if p.suffix == ".txt"]


def _row_texts(path: Path) -> Iterator[str]:
    for record in read_records(path):
        try:
            fields = fields_of(record)
            text = text_field(fields, "text", optional="text" in fields)
        except ValueError as error:
            raise StageError(f"plain text {record.file}:{record.line}: {error}") from error
        if text.strip():
            yield text


def _text(line: Record) -> str:
    if line.problem:
        raise StageError(f"plain text {line.file}:{line.line}: {line.problem}; save it as UTF-8")
    return line.value


def _has_blank_lines(path: Path) -> bool:
    """Return True if there is a blank line between two lines of text."""
    runs = itertools.groupby(decode_lines(path), key=lambda line: not _text(line).strip())
    return len(list(itertools.islice((blank for blank, _ in runs if not blank), 2))) == 2


def _paragraphs(path: Path) -> Iterator[str]:
    lines: list[str] = []
    length = 0
    for line in decode_lines(path):
        text = _text(line)
        if text.strip():
            lines.append(text)
            length += len(text)
            if length > LONGEST:
                raise too_long(path, f"the document that ends behind line {line.line}")
        elif lines:
            yield "\n".join(lines)
            lines, length = [], 0
    if lines:
        yield "\n".join(lines)
