"""JSON schemas of a benchmark's rows, by which their references must be valid."""

from collections.abc import Mapping, Sequence

from minillm.data.json_rows import Reader
from minillm.data.rows import field_with_value
from minillm.metrics.json_schema import Schema, check_schema, why_invalid
from minillm.patterns import QUOTED

SCHEMA_FIELDS = ("json_schema", "schema")
"""Fields that may hold the schema if the configuration names none."""


def schema_of(
    value: Mapping[str, object], field: str | None, for_all: Schema | None, references: Sequence[str]
) -> Schema:
    """Return the schema of a row: its own, an object or the text of one, or else that of all rows.

    Args:
        value: The row.
        field: Name of the field with its schema, if the configuration gives one.
        for_all: Schema of rows that have none.
        references: Right answers, which must be valid.

    Raises:
        ValueError: There is no schema, it is none, or a reference is not valid.
    """
    name = field or field_with_value(value, *SCHEMA_FIELDS)
    given = value.get(name)
    if isinstance(given, str):
        try:
            given = Reader().whole(given.strip())
        except ValueError as error:
            raise ValueError(f"`{name}` cannot be read: {error}") from error
    if given is None:
        if for_all is None or field is not None:
            raise ValueError(f"no schema in `{name}`; give one to each row, or to all as the benchmark's `json_schema`")
        schema = for_all
    elif isinstance(given, dict):
        try:
            schema = check_schema(given)
        except ValueError as error:
            raise ValueError(f"`{name}`: {error}") from error
    else:
        raise ValueError(f"`{name}` is {type(given).__name__}, not an object")
    for text in references:
        if reason := why_invalid(text, schema):
            raise ValueError(f"the reference {text[:QUOTED]!r} is not valid against its schema: {reason}")
    return schema
