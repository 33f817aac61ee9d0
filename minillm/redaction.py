"""Secrets kept out of whatever is shown or stored: passwords in addresses, keys in queries, values of secret variables.

Two functions take them out of a text, `install` out of everything that a process logs or prints. Errors that users
read pass through it as well (see errors), and so does what the tracking server is told (see tasks.tracking.outbox).
"""

import functools
import io
import json
import logging
import os
import re
import sys
import traceback
import urllib.parse
from collections.abc import Iterable
from typing import Any, TextIO, cast
from xml.sax import saxutils

import markupsafe

MASK = "***"
SHORTEST = 8
"""Characters of a secret that is recognised wherever it stands; what is shorter may be an ordinary word."""
VARIABLES = re.compile(
    r"(?:^|_)(?:PASSWORD|PASSWD|TOKEN|SECRET|CREDENTIALS?|AUTH_STRING|(?:API|ACCESS|SECRET|ACCOUNT)_KEY)$",
    re.IGNORECASE,
)
"""Ends of the names of environment variables whose values are secrets."""
WORDS = (
    r"(?:[\w.-]*(?:password|passwd|token|secret|signature|credential)|(?:[\w.-]*[_.-])?(?:pwd|auth|sig)"
    r"|(?:[\w.-]*(?:api|access|secret|account|private|shared|subscription|license|auth)[_.-]?)?key)"
)
"""Names of what is secret in a query. Short ones stand alone or behind a separator: not `monkey`, not `sort_key`."""
USER = r"""(?<=://)(?!(?:localhost|\d+(?:\.\d+){3}):\d+[,;|][^\s:/"'<>]*@)(?:[^\s/?#:@\["'<>]{,200}:(?!\d+[/?#])[^\s"'<>]{,500}@|[^\s/?#"'<>]{,500}@)"""
"""User and password of an address, before its host; a password may have slashes and at signs in it.

A mail address behind a machine's address and port, with a comma between them, is none.
"""
QUERY = rf"""(?<=[?&;#])(?P<name>{WORDS}=)[^\s&#;"'<>)\]]+"""
HEADER = r"""(?P<header>\bauthorization\W{1,4}(?:basic|bearer)\s+)[\w.~+/=-]+"""
SETTING = r"""(?P<setting>\b(?:password|passwd|pwd)\s?=\s?)(?:'[^']*'|[^\s'"&,;)]+)"""
"""As in a connection string of PostgreSQL."""
FORMS = re.compile("|".join((USER, QUERY, HEADER, SETTING)), re.IGNORECASE)
MAY_HOLD = re.compile("://|=|authorization", re.IGNORECASE)
"""What every form has in it; most texts have none of it."""
_HIDDEN: set[str] = set()


def redacted(text: str) -> str:
    """A text without anything that is a secret by its form or by its value; addresses keep all else.

    >>> redacted("no reply from https://ann:pass@host:5000/api?page=2&token=abc")
    'no reply from https://host:5000/api?page=2&token=***'
    """
    text = without_known_secrets(text)
    return FORMS.sub(_masked, text) if MAY_HOLD.search(text) else text


def without_known_secrets(text: str) -> str:
    """A text without the values that the environment says are secret; what only looks like one stays.

    It is for pages with texts of others, in which an address with a password is an example.
    """
    found = (secret for variable in os.environ.items() for secret in _secrets(*variable))
    known = _known((*found, *sorted(_HIDDEN)))
    return known.sub(MASK, text) if known is not None else text


def hide(secret: str) -> None:
    """Take a value for a secret in this process, wherever it comes from."""
    if len(secret) >= SHORTEST:
        _HIDDEN.add(secret)


def redact_error(error: BaseException) -> None:
    """Take secrets out of an error and of those behind it, in place: other libraries put addresses into theirs."""
    waiting, seen = [error], set[int]()
    while waiting:
        one = waiting.pop()
        if id(one) in seen:
            continue
        seen.add(id(one))
        one.args = tuple(redacted(value) if isinstance(value, str) else value for value in one.args)
        for name, value in vars(one).items():
            if isinstance(value, str):
                vars(one)[name] = redacted(value)
        nested = (one.__cause__, one.__context__, *one.args, *vars(one).values())
        waiting += [value for value in nested if isinstance(value, BaseException)]


def install() -> None:
    """Redact all that this process logs, prints and shows of errors, from here on; a second time changes nothing."""
    if getattr(logging.getLogRecordFactory(), "redacts", False):
        return
    logging.setLogRecordFactory(_record_factory(logging.getLogRecordFactory()))
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # as of stderr: no character ends a run whose locale lacks it
    sys.stdout = cast(TextIO, _Redacting(sys.stdout))
    sys.stderr = cast(TextIO, _Redacting(sys.stderr))


class _Redacting:
    """A stream that redacts what is written to it; in all else it is the stream behind it."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        self._stream.write(redacted(text))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _record_factory(before: Any) -> Any:
    """Makes log records without secrets, for every logger and handler there is or will be."""

    def make(*arguments: Any, **named: Any) -> logging.LogRecord:
        record = before(*arguments, **named)
        try:
            said = record.getMessage()
        except Exception:  # a caller's mistake, of which logging tells by itself
            return record
        if (clean := redacted(said)) != said:
            record.msg, record.args = clean, ()
        if record.exc_info and record.exc_info[0] is not None:
            record.exc_text = redacted("".join(traceback.format_exception(*record.exc_info)).rstrip("\n"))
        return record

    make.redacts = True  # type: ignore[attr-defined]
    return make


@functools.lru_cache(maxsize=1024)
def _secrets(name: str, value: str) -> tuple[str, ...]:
    """What is secret of a variable: its value, where its name says so, or else that of the addresses in it."""
    if VARIABLES.search(name):
        return value, value.partition(":")[2]  # USER:PASSWORD, as Prefect's servers take it
    found: list[str] = []
    for match in FORMS.finditer(value) if "://" in value else ():
        if match.lastgroup is not None:
            found.append(match[0].partition("=")[2])
        else:
            password = match[0][:-1].partition(":")[2]
            found += [password, urllib.parse.unquote(password)]
    return tuple(found)


@functools.lru_cache(maxsize=8)
def _known(values: tuple[str, ...]) -> re.Pattern[str] | None:
    long = {value for value in values if len(value) >= SHORTEST}
    written = {form for value in long for form in _written(value)}
    words = "|".join(re.escape(form) for form in sorted(written, key=len, reverse=True))
    return re.compile(rf"(?:(?<![A-Za-z0-9])|(?<=\\[nrt]))(?:{words})(?![A-Za-z0-9])") if words else None


def _written(value: str) -> tuple[str, ...]:
    """A value as texts have it: as it is, in an address, in HTML, in the text of an SVG figure and in JSON."""
    in_json = (json.dumps(value, ensure_ascii=escaped)[1:-1] for escaped in (True, False))
    return (value, urllib.parse.quote(value, safe=""), str(markupsafe.escape(value)), saxutils.escape(value), *in_json)


def _masked(found: re.Match[str]) -> str:
    if found.lastgroup is None:  # user and password: the address works without them in what it shows
        return ""
    return f"{found[found.lastgroup]}{MASK}"
