"""Removal of secrets from all that is shown or stored: passwords in URLs, keys in queries, secret variables' values.

`redacted` and `without_known_secrets` take them out of a text, `install` out of everything that a process logs or
prints. Errors that users read are redacted too (see errors), and so is what the tracking server is told (see
tasks.tracking.outbox).
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
"""Least characters of a secret that is recognised by its value; anything shorter may be an ordinary word."""
VARIABLES = re.compile(
    r"(?:^|_)(?:PASSWORD|PASSWD|TOKEN|SECRET|CREDENTIALS?|AUTH_STRING|(?:API|ACCESS|SECRET|ACCOUNT)_KEY)$",
    re.IGNORECASE,
)
"""Endings of the names of environment variables whose values are secrets."""
SECRET_NAMES = (
    r"(?:[\w.-]*(?:password|passwd|token|secret|signature|credential)|(?:[\w.-]*[_.-])?(?:pwd|auth|sig)"
    r"|(?:[\w.-]*(?:api|access|secret|account|private|shared|subscription|license|auth)[_.-]?)?key)"
)
"""Names of secret parameters in a query. Short names must stand alone or follow a separator: `monkey` and `sort_key`
are no secrets."""
USER = r"""(?<=://)(?!(?:localhost|\d+(?:\.\d+){3}):\d+[,;|][^\s:/"'<>]*@)(?:[^\s/?#:@\["'<>]{,200}:(?!\d+[/?#])[^\s"'<>]{,500}@|[^\s/?#"'<>]{,500}@)"""
"""User and password in a URL, before its host. A password may contain slashes and at signs.

A mail address that follows a host and port and a comma does not count as one.
"""
QUERY = rf"""(?<=[?&;#])(?P<name>{SECRET_NAMES}=)[^\s&#;"'<>)\]]+"""
HEADER = r"""(?P<header>\bauthorization\W{1,4}(?:basic|bearer)\s+)[\w.~+/=-]+"""
SETTING = r"""(?P<setting>\b(?:password|passwd|pwd)\s?=\s?)(?:'[^']*'|[^\s'"&,;)]+)"""
"""Password in a connection string such as PostgreSQL's."""
HUB_TOKEN = r"""(?P<hub>\bhf_)[A-Za-z0-9]{20,}"""
"""Token of the Hugging Face hub."""
FORMS = re.compile("|".join((USER, QUERY, HEADER, SETTING, HUB_TOKEN)), re.IGNORECASE)
MAY_HOLD = re.compile("://|=|authorization|hf_", re.IGNORECASE)
"""Quick test: every form contains one of these, and most texts contain none."""
_HIDDEN: set[str] = set()


def redacted(text: str) -> str:
    """Return a text without its secrets, which are known by their form or by their value. URLs keep all else.

    >>> redacted("no reply from https://ann:pass@host:5000/api?page=2&token=abc")
    'no reply from https://host:5000/api?page=2&token=***'
    """
    text = without_known_secrets(text)
    return FORMS.sub(_masked, text) if MAY_HOLD.search(text) else text


def without_known_secrets(text: str) -> str:
    """Return a text without the values that are secret in this environment; text that only looks secret stays.

    This is for pages that quote other people's texts, in which a URL with a password is an example.
    """
    found = (secret for variable in os.environ.items() for secret in _secrets(*variable))
    known = _values_pattern((*found, *sorted(_HIDDEN)))
    return known.sub(MASK, text) if known is not None else text


def hide(secret: str) -> None:
    """Treat a value as a secret from now on in this process."""
    if len(secret) >= SHORTEST:
        _HIDDEN.add(secret)


def redact_error(error: BaseException) -> None:
    """Remove secrets in place from an error and from its causes: libraries quote URLs in their errors."""
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
    """Redact everything that this process logs or prints from now on, errors included. A second call does nothing."""
    if getattr(logging.getLogRecordFactory(), "redacts", False):
        return
    logging.setLogRecordFactory(_record_factory(logging.getLogRecordFactory()))
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # as on stderr: no character that the locale lacks ends a run
    sys.stdout = cast(TextIO, _Redacting(sys.stdout))
    sys.stderr = cast(TextIO, _Redacting(sys.stderr))


class _Redacting:
    """A stream that redacts what is written to it and otherwise behaves as the one it wraps."""

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
    """Make log records without secrets, for every present and future logger and handler."""

    def make(*arguments: Any, **named: Any) -> logging.LogRecord:
        record = before(*arguments, **named)
        try:
            said = record.getMessage()
        except Exception:  # a caller's mistake, which logging reports itself
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
    """Secrets in a variable: its value if its name says so, or else the secrets of the URLs in it."""
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
def _values_pattern(values: tuple[str, ...]) -> re.Pattern[str] | None:
    """Pattern of secret values in all their spellings; None if no value is long enough."""
    long = {value for value in values if len(value) >= SHORTEST}
    written = {form for value in long for form in _spellings(value)}
    words = "|".join(re.escape(form) for form in sorted(written, key=len, reverse=True))
    return re.compile(rf"(?:(?<![A-Za-z0-9])|(?<=\\[nrt]))(?:{words})(?![A-Za-z0-9])") if words else None


def _spellings(value: str) -> tuple[str, ...]:
    """A value as it is, and as it is written in a URL, in HTML, in the text of an SVG figure and in JSON."""
    in_json = (json.dumps(value, ensure_ascii=escaped)[1:-1] for escaped in (True, False))
    return (value, urllib.parse.quote(value, safe=""), str(markupsafe.escape(value)), saxutils.escape(value), *in_json)


def _masked(found: re.Match[str]) -> str:
    if found.lastgroup is None:  # user and password: the URL can be shown without them
        return ""
    return f"{found[found.lastgroup]}{MASK}"
