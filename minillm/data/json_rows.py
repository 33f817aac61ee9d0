"""Rows of JSON files, one a line or as the elements of one list."""

import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from minillm.data.records import BLOCK, LONGEST, Record, decode_lines, require_utf8, too_long
from minillm.errors import StageError
from minillm.files import open_file

SPACE = re.compile(r"[ \t\r\n]*")
SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
LONGEST_WORD = 16
"""Bound on the characters of a JSON token other than a string or number; the longest is `-Infinity`."""
TOO_DEEP = "nested too deeply"


class Reader:
    """A JSON decoder that reports values of which a part would be lost.

    Such values have a name twice, half a character, or a number of thousands of digits, which Python does not read.
    """

    def __init__(self) -> None:
        self._problems: list[str] = []
        self._decoder = json.JSONDecoder(object_pairs_hook=self._object, parse_int=self._whole_number)

    def read(self, text: str, start: int = 0) -> tuple[Any, int, str | None]:
        """Return the value at a place in a text, the place where it ends, and what is wrong with it, if anything.

        Raises:
            ValueError: There is no JSON value.
            RecursionError: The value is nested too deeply.
        """
        self._problems.clear()
        value, end = self._decoder.raw_decode(text, start)
        if self._problems:
            return None, end, self._problems[0]
        return value, end, _half_character(value) if SURROGATE.search(text, start, end) else None

    def whole(self, text: str) -> Any:
        """Return the value that a text without surrounding white space is.

        Raises:
            ValueError: It is none, or a part of it would be lost; the message is the reason.
        """
        try:
            value, end, problem = self.read(text)
            if end < len(text):
                raise json.JSONDecodeError("Extra data", text, end)
        except RecursionError as error:
            raise ValueError(TOO_DEEP) from error
        except ValueError as error:
            raise ValueError(f"not JSON ({error})") from error
        if problem is not None:
            raise ValueError(problem)
        return value

    def _object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        value = dict(pairs)
        if len(value) < len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            self._problems.append(f"`{twice}` is given twice")
        return value

    def _whole_number(self, text: str) -> int:
        try:
            return int(text)
        except ValueError:
            self._problems.append(f"a number of {len(text):,} digits, too many to read")
            return 0


def _half_character(value: Any) -> str | None:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        code = ord(error.object[error.start])
        return f"half a character: \\u{code:04x} is one of a surrogate pair, and the other is not beside it"
    return None


def json_lines(path: Path) -> Iterator[Record]:
    """Yield a row for each line; blank lines are skipped, and a line that is not JSON comes with a `problem`. Streams.

    Raises:
        StageError: The file cannot be read.
    """
    reader = Reader()
    for record in decode_lines(path):
        if record.problem is not None:
            yield record
        elif text := record.value.strip():
            yield _parsed(reader, record, text)


def _parsed(reader: Reader, record: Record, text: str) -> Record:
    try:
        return Record(record.file, record.line, reader.whole(text))
    except ValueError as error:
        return Record(record.file, record.line, None, str(error))


def opens_list(path: Path) -> bool:
    """Return True if a JSON file is one list."""
    with open_file(path) as stream:
        return stream.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()[:1] == b"["


def json_list(path: Path) -> Iterator[Record]:
    """Yield the elements of a JSON list; one of which a part would be lost comes with a `problem`. Streams.

    Raises:
        StageError: The file cannot be read, is no such list, or nests an element so deeply that its end is not found.
    """
    require_utf8(path)
    reader = Reader()
    with open_file(path) as raw, io.TextIOWrapper(raw, encoding="utf-8-sig", newline="") as stream:
        text, number = stream.read(BLOCK), 0
        place = text.index("[") + 1
        while True:
            block = stream.read(BLOCK)
            text, place = text[place:] + block, 0
            while (found := _element(path, reader, text, place, number + 1, last=not block)) is not None:
                record, place = found
                if record is None:
                    return
                number += 1
                yield record
            if len(text) - place > LONGEST:
                raise too_long(path, f"element {number + 1}")


def _element(
    path: Path, reader: Reader, text: str, place: int, number: int, last: bool
) -> tuple[Record | None, int] | None:
    """Return the next element and the place after it.

    Args:
        path: The file.
        reader: Reader of values.
        text: Part of the file.
        place: Place after the opening bracket, or of the comma or bracket after an element.
        number: Number of the element.
        last: True if the text reaches to the end of the file.

    Returns:
        The element and its end; no element (None, place) at the end of the list; None if more must be read first.

    Raises:
        StageError: There is no element where one must be.
    """
    wrong = f"{path} opens with [ but is not a JSON list in UTF-8: element {number}: "
    start = SPACE.match(text, place).end()  # type: ignore[union-attr]
    if text[start : start + 1] == "]":
        if text[start + 1 :].strip():
            raise StageError(f"{path} has something behind the ] of its list; remove it, or write a row a line")
        return (None, start) if last else None
    if number > 1 and text[start : start + 1] == ",":
        start = SPACE.match(text, start + 1).end()  # type: ignore[union-attr]
    elif number > 1 and start < len(text):
        raise StageError(f"{wrong}a comma is missing before it")
    try:
        value, end, problem = reader.read(text, start)
    except RecursionError as error:
        raise StageError(wrong + TOO_DEEP) from error
    except json.JSONDecodeError as error:
        cut_off = error.msg.startswith("Unterminated string") or error.pos > len(text) - LONGEST_WORD
        if last or not cut_off:
            raise StageError(wrong + error.msg) from error
        return None
    behind = SPACE.match(text, end).end()  # type: ignore[union-attr]
    if not last and (behind == len(text) or ((problem or isinstance(value, int | float)) and text[behind] not in ",]")):
        return None  # the number may continue in the next block
    return Record(str(path), number, None if problem else value, problem), end
