"""Reading and checking of training rows, instructions (the schema of Dolly) or conversations, and of their split."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from minillm.config.data import RowFields
from minillm.data.conversations import Conversation, Format, Message, parse_conversation, recognise
from minillm.data.records import Record, has_value
from minillm.data.tables import read_records
from minillm.errors import StageError
from minillm.nearest import suggestion

SPLIT_NAMES = ("train", "dev", "test", "unused")
NO_CATEGORY = "none"
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Row:
    """One example: an instruction, its context and the response, or a conversation."""

    row: int
    """Number of the row from 0, malformed rows counted too."""
    instruction: str
    """The last message of the user where it is a conversation."""
    context: str
    response: str
    """The last answer where it is a conversation."""
    category: str
    conversation: Conversation | None = None
    file: str = ""
    line: int = 0
    """Place of the row, as in `Record`."""

    @property
    def messages(self) -> tuple[Message, ...]:
        """The example as messages; the last is the answer."""
        if self.conversation is not None:
            return self.conversation.messages
        return *user_message(self.instruction, self.context), {"role": "assistant", "content": self.response}

    @property
    def texts(self) -> tuple[str, ...]:
        """All of the example, as text."""
        return (self.instruction, self.context, self.response) if self.conversation is None else self.conversation.texts

    @property
    def questions(self) -> list[str]:
        """All messages of the user; the first opens the example."""
        return [message["content"] for message in self.messages if message["role"] == "user"]


def user_message(instruction: str, context: str) -> tuple[Message]:
    """Return an instruction and its context as a user would write them."""
    return ({"role": "user", "content": f"{instruction}\n\n{context}" if context.strip() else instruction},)


@dataclass(frozen=True)
class Malformed:
    """A row that cannot be used."""

    row: int
    file: str
    line: int
    reason: str


def read_examples(path: Path, fields: RowFields) -> Iterator[Row | Malformed]:
    """Yield rows of the format that the first row with a known format has. Streams.

    Rows with an instruction have a response (or `output`) and, if present, context (or `input`) and category; the
    other formats are those of `minillm.data.conversations`. If a row has both names of one thing, the first that has a
    value counts.

    Args:
        path: File or directory of rows.
        fields: Names of their fields.

    Raises:
        StageError: The file as a whole cannot be read.
    """
    form = format_of(path, fields)
    for number, record in enumerate(read_records(path)):
        try:
            value = fields_of(record)
            if form == "instruction":
                row = _instruction_row(number, value, fields)
            else:
                row = _conversation_row(number, value, form, fields)
            yield replace(row, file=record.file, line=record.line)
        except ValueError as error:
            yield Malformed(number, record.file, record.line, str(error))


def format_of(path: Path, fields: RowFields) -> Format:
    """Return the format of a file's rows: that of the first row that has a known one."""
    for record in read_records(path):
        if record.problem is None and isinstance(record.value, dict) and (form := recognise(record.value, fields)):
            return form
    return "instruction"


def _instruction_row(number: int, value: Mapping[str, Any], fields: RowFields) -> Row:
    instruction = text_field(value, fields.instruction)
    response = text_field(value, *((fields.response,) if fields.response else ("response", "output")))
    context = text_field(value, *((fields.context,) if fields.context else ("context", "input")), optional=True)
    return Row(number, instruction, context, response, _category(value, fields))


def _conversation_row(number: int, value: Mapping[str, Any], form: Format, fields: RowFields) -> Row:
    conversation = parse_conversation(value, form, fields)
    *before, answer = conversation.messages
    asked = next((message["content"] for message in reversed(before) if message["role"] == "user"), "")
    return Row(number, asked, "", answer["content"], _category(value, fields), conversation)


def _category(value: Mapping[str, Any], fields: RowFields) -> str:
    return text_field(value, fields.category, optional=True).strip() or NO_CATEGORY


def read_set(what: str, path: Path, parse: Callable[[dict[str, Any]], dict[str, Any]]) -> list[dict[str, Any]]:
    """Read the rows of an evaluation set, each with its number from 0 as `index`.

    Args:
        what: The set, for errors, e.g. benchmark sni.
        path: File or directory of rows.
        parse: Returns what is kept of a row's fields; raises ValueError, with the reason, where they are wrong.

    Raises:
        StageError: There is no row, or one cannot be read or parsed.
    """
    rows = []
    for index, record in enumerate(read_records(path)):
        try:
            rows.append({"index": index, **parse(fields_of(record))})
        except ValueError as error:
            raise StageError(f"{what}, {record.file}:{record.line}: {error}") from error
    if not rows:
        raise StageError(f"{what}: {path} has no rows; mend the file or leave the set out")
    return rows


def evenly(values: Sequence[T], count: int | None) -> list[T]:
    """Return `count` of the values, evenly spread; all of them if there are no more."""
    count = min(count or len(values), len(values))
    return [values[place * len(values) // count] for place in range(count)]


def fields_of(record: Record) -> dict[str, Any]:
    """Return the fields of a row; of a table's, without the nulls within them.

    Raises:
        ValueError: The row could not be read, or is no object.
    """
    if record.problem is not None:
        raise ValueError(record.problem)
    if not isinstance(record.value, dict):
        raise ValueError(f"not an object but {type(record.value).__name__}")
    if record.of_table:
        return {name: _without_nulls(field) for name, field in record.value.items()}
    return record.value


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_nulls(field) for name, field in value.items() if field is not None}
    return list(map(_without_nulls, value)) if isinstance(value, list) else value


def field_with_value(value: Mapping[str, Any], *names: str) -> str:
    """Return the first of several names for one thing under which a row has a value.

    Rows merged from several sources have every name, but a value (see `has_value`) under one of them only. If no name
    has a value, return the first that is present, or else the first.
    """
    there = [name for name in names if name in value]
    return next((name for name in there if has_value(value[name])), there[0] if there else names[0])


def text_field(value: Mapping[str, Any], *names: str, optional: bool = False) -> str:
    """Return the text under the first of the names that has a value (see `field_with_value`).

    Raises:
        ValueError: The value is not text, or is absent or blank and not optional.
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
    """Stop if too many rows are malformed.

    Raises:
        StageError: Their share of `total` is above `max_share`. The message lists the first ten.
    """
    if not malformed or len(malformed) <= max_share * total:
        return
    first = "\n".join(f"  {m.file}:{m.line}: {m.reason}" for m in malformed[:10])
    raise StageError(
        f"{len(malformed)} of {total} rows are malformed ({len(malformed) / total:.1%}), above "
        f"data.max_malformed_share {max_share:.1%}; mend them or raise the share. The first are:\n{first}"
    )


def read_split(path: Path, total: int) -> list[str]:
    """Read the part of each row from a split of rows {row, split}.

    Args:
        path: The split.
        total: Number of rows of the instruction data, malformed ones included.

    Raises:
        StageError: A row is out of range, named twice or missing, or a part is unknown.
    """
    parts: dict[int, str] = {}
    for record in read_records(path):
        where = f"split {record.file}:{record.line}"
        value = record.value
        if record.problem or not isinstance(value, dict) or not {"row", "split"} <= value.keys():
            raise StageError(f"{where}: {record.problem or 'needs the fields `row` and `split`'}")
        row, part = _number(value["row"]), value["split"]
        if part not in SPLIT_NAMES:
            raise StageError(f"{where}: unknown part {part!r}; {suggestion(str(part), SPLIT_NAMES)}")
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
            "give every row one of " + ", ".join(SPLIT_NAMES)
        )
    return [parts[row] for row in range(total)]


def _number(value: Any) -> int | None:
    """Return a whole number, also if it is given as text, as in a csv file; None for anything else."""
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 19:
        return int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) else None
