"""Regular expressions of a configuration: checked when it is loaded, bounded in time when they are used."""

import contextlib
from collections.abc import Iterator

import regex

from minillm.errors import StageError

SECONDS = 10.0
"""Longest search of one text. One repetition inside another may try more ways than anybody could wait for."""
QUOTED = 40
"""Most characters of a text that a message quotes."""


def check_pattern(pattern: str) -> str:
    """Return a regular expression if it can be used.

    Raises:
        ValueError: It does not compile, or matches the empty text.
    """
    try:
        empty = regex.search(pattern, "")
    except regex.error as error:
        raise ValueError(f"{pattern!r} is no regular expression: {error}") from error
    if empty:
        raise ValueError(f"{pattern!r} matches the empty text, and so everywhere; let it match one character at least")
    return pattern


def check_group(pattern: str) -> str:
    """Return a regular expression of `check_pattern` if it has exactly one group.

    Raises:
        ValueError: It has none, or several.
    """
    if (groups := regex.compile(pattern).groups) != 1:
        raise ValueError(
            f"{pattern!r} has {groups} groups; put the part to compare into ( ), and others into (?: ) if need be"
        )
    return pattern


def group_in(pattern: str, text: str) -> str | None:
    """Return what the group of the first match in a text holds; None if there is no match, or nothing in the group.

    Raises:
        StageError: The search takes longer than `SECONDS`.
    """
    with _in_time(pattern, text):
        found = regex.search(pattern, text, timeout=SECONDS)
    return None if found is None else found[1]


def matches(pattern: str, text: str) -> bool:
    """Return whether a pattern is found in a text.

    Raises:
        StageError: The search takes longer than `SECONDS`.
    """
    with _in_time(pattern, text):
        return regex.search(pattern, text, timeout=SECONDS) is not None


def without(pattern: str, text: str) -> str:
    """Return a text without all that a pattern matches.

    Raises:
        StageError: The search takes longer than `SECONDS`.
    """
    with _in_time(pattern, text):
        return regex.sub(pattern, "", text, timeout=SECONDS)


@contextlib.contextmanager
def _in_time(pattern: str, text: str) -> Iterator[None]:
    try:
        yield
    except TimeoutError as error:
        raise StageError(
            f"the pattern {pattern!r} was searched for {SECONDS:g} s in a text of {len(text)} characters that begins "
            f"{text[:QUOTED]!r}; write it without a repetition inside a repetition"
        ) from error
