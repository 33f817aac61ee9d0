"""JSON that is valid against a schema."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from jsonschema import Draft202012Validator, SchemaError
from jsonschema.exceptions import best_match
from jsonschema.validators import validator_for
from referencing import Registry
from referencing.exceptions import Unresolvable
from referencing.jsonschema import DRAFT202012

Schema = dict[str, Any]
"""JSON Schema of the draft that its `$schema` names, or 2020-12."""


def json_schema(response: str, references: Sequence[str], schema: Schema) -> float:
    """Return 1 if a response is a JSON value, with nothing around it, that is valid against a schema, or else 0.

    Args:
        response: The text to score.
        references: Not compared; what is asked for is a form.
        schema: A schema that `check_schema` has accepted.
    """
    return float(why_invalid(response, schema) is None)


def why_invalid(text: str, schema: Schema) -> str | None:
    """Say why a text is no JSON value that is valid against a schema; None if it is one."""
    try:
        value = json.loads(text, parse_constant=_refuse)
        error = best_match(_validator(schema).iter_errors(value))
    except (ValueError, RecursionError) as error:
        return f"not JSON ({error})"
    return None if error is None else error.message


def check_schema(schema: Schema) -> Schema:
    """Return a schema if it is one, and all that it refers to is in it: nothing is fetched.

    Raises:
        ValueError: It is not.
    """
    try:
        validator_for(schema, default=Draft202012Validator).check_schema(schema)
        _resolve(schema, Registry().with_resource("", DRAFT202012.create_resource(schema)).crawl().resolver())
    except SchemaError as error:
        raise ValueError(f"it is no JSON schema: {error.message}") from error
    return schema


def _validator(schema: Schema) -> Any:
    return validator_for(schema, default=Draft202012Validator)(schema, registry=Registry())


def _resolve(part: Any, resolver: Any) -> None:
    """Look up every reference in a part of a schema.

    Raises:
        ValueError: One leads nowhere.
    """
    if isinstance(part, Mapping):
        if isinstance(part.get("$id", ""), str):
            resolver = resolver.in_subresource(DRAFT202012.create_resource(part))
        if isinstance(part.get("$ref"), str):
            try:
                resolver.lookup(part["$ref"])
            except Unresolvable as error:
                raise ValueError(f"it refers to {part['$ref']!r}, which is not in it; nothing is fetched") from error
    if isinstance(part, Mapping | list):
        for inner in part.values() if isinstance(part, Mapping) else part:
            _resolve(inner, resolver)


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")
