"""Instruction rows (the schema of Dolly) and their split, read and checked one by one."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from minillm.data.tables import Record, read_records
from minillm.errors import StageError
from minillm.nearest import suggestion

PARTS = ("train", "dev", "test", "unused")
NO_CATEGORY = "none"


@dataclass(frozen=True)
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


def read_rows(path: Path) -> tuple[list[Row], list[Malformed]]:
    """Rows with instruction, response and, where present, context and category; `input` and `output` do as well.

    Raises:
        StageError: If the file as a whole cannot be read.
    """
    rows: list[Row] = []
    malformed: list[Malformed] = []
    for number, record in enumerate(read_records(path)):
        try:
            rows.append(parse_row(number, record))
        except ValueError as error:
            malformed.append(Malformed(number, record.file, record.line, str(error)))
    return rows, malformed


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


def text_field(value: dict, *names: str, optional: bool = False) -> str:
    """Text under the first of the names that is there.

    Raises:
        ValueError: If it is not text, or absent or blank where it must not be.
    """
    name = next((name for name in names if name in value), names[0])
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
        row, part = value["row"], value["split"]
        if part not in PARTS:
            raise StageError(f"{where}: unknown part {part!r}; {suggestion(str(part), PARTS)}")
        if not isinstance(row, int) or not 0 <= row < total:
            raise StageError(f"{where}: row {row!r} is not one of the {total} rows of the data (counted from 0)")
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
