"""Instruction rows (the schema of Dolly) and their split, read and checked one by one."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minillm.data.records import Record
from minillm.data.tables import read_records
from minillm.errors import StageError
from minillm.nearest import suggestion

PARTS = ("train", "dev", "test", "unused")
NO_CATEGORY = "none"


@dataclass(frozen=True, slots=True)
class Row:
    """One example: what is asked, about what, and the answer."""

    row: int
    """0-based, malformed rows counted too."""
    instruction: str
    context: str
    response: str
    category: str


@dataclass(frozen=True)
class Malformed:
    """A row that cannot be used."""

    row: int
    file: str
    line: int
    reason: str


def read_rows(path: Path) -> Iterator[Row | Malformed]:
    """Rows with instruction, response and, where present, context and category; `input` and `output` do as well.

    Where both names of one thing stand in a row, the first that has a value counts. Streams.

    Raises:
        StageError: If the file as a whole cannot be read.
    """
    for number, record in enumerate(read_records(path)):
        try:
            yield parse_row(number, record)
        except ValueError as error:
            yield Malformed(number, record.file, record.line, str(error))


def parse_row(number: int, record: Record) -> Row:
    """One row.

    Raises:
        ValueError: With the reason why it is malformed.
    """
    if record.problem is not None:
        raise ValueError(record.problem)
    if not isinstance(record.value, dict):
        raise ValueError(f"not an object but {type(record.value).__name__}")
    instruction = text_field(record.value, "instruction")
    response = text_field(record.value, "response", "output")
    context = text_field(record.value, "context", "input", optional=True)
    category = text_field(record.value, "category", optional=True)
    return Row(number, instruction, context, response, category.strip() or NO_CATEGORY)


def field_with_value(value: Mapping[str, Any], *names: str) -> str:
    """The first of some names for one thing under which a row has a value: neither null, nor blank, nor an empty list.

    Rows of several sources put together have every name, and a value under one of them. Where none has a value, the
    first that is there at all, or else the first.
    """
    there = [name for name in names if name in value]
    return next((name for name in there if _has_value(value[name])), there[0] if there else names[0])


def _has_value(found: Any) -> bool:
    return bool(found.strip()) if isinstance(found, str) else found is not None and found != []


def text_field(value: Mapping[str, Any], *names: str, optional: bool = False) -> str:
    """Text under the first of the names that has a value (see `field_with_value`).

    Raises:
        ValueError: If it is not text, or absent or blank where it must not be.
    """
    name = field_with_value(value, *names)
    text = value.get(name)
    if text is None and optional:
        return ""
    if name not in value:
        raise ValueError(f"no field `{name}`")
    if not isinstance(text, str):
        raise ValueError(f"`{name}` is {type(text).__name__}, not text")
    if not optional and not text.strip():
        raise ValueError(f"`{name}` is empty")
    return text


def refuse_malformed(malformed: Sequence[Malformed], total: int, max_share: float) -> None:
    """Stop where too many rows are malformed.

    Raises:
        StageError: If their share of `total` is above `max_share`; it lists the first ten.
    """
    if not malformed or len(malformed) <= max_share * total:
        return
    first = "\n".join(f"  {m.file}:{m.line}: {m.reason}" for m in malformed[:10])
    raise StageError(
        f"{len(malformed)} of {total} rows are malformed ({len(malformed) / total:.1%}), above "
        f"data.max_malformed_share {max_share:.1%}; mend them or raise the share. The first are:\n{first}"
    )


def read_split(path: Path, total: int) -> list[str]:
    """The part of each row, out of rows {row, split}.

    Args:
        path: Of the split.
        total: Rows of the instruction data, malformed ones included.

    Raises:
        StageError: If a row is out of range, named twice or missing, or a part is unknown.
    """
    parts: dict[int, str] = {}
    for record in read_records(path):
        where = f"split {record.file}:{record.line}"
        value = record.value
        if record.problem or not isinstance(value, dict) or not {"row", "split"} <= value.keys():
            raise StageError(f"{where}: {record.problem or 'needs the fields `row` and `split`'}")
        row, part = _number(value["row"]), value["split"]
        if part not in PARTS:
            raise StageError(f"{where}: unknown part {part!r}; {suggestion(str(part), PARTS)}")
        if row is None or not 0 <= row < total:
            raise StageError(
                f"{where}: row {value['row']!r} is not one of the {total} rows of the data (counted from 0)"
            )
        if row in parts:
            raise StageError(f"{where}: row {row} has a part already")
        parts[row] = part
    missing = [row for row in range(total) if row not in parts]
    if missing:
        raise StageError(
            f"split {path} names no part for {len(missing)} of {total} rows, first {missing[:5]}; "
            "give every row one of " + ", ".join(PARTS)
        )
    return [parts[row] for row in range(total)]


def _number(value: Any) -> int | None:
    """A whole number, or the text of one: a csv file has nothing but text."""
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 19:
        return int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) else None
