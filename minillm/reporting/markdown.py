"""Markdown that is safe to fill with what others wrote: names, settings, errors, texts of models and data.

`render` fills a template. Whatever it puts in is escaped unless it is `Markdown` already, as HTML templates do it: it
reads as it was written, and makes no heading, link, image, table or HTML. Secrets are masked first, because an escaped
secret is spelt differently.
"""

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from minillm.redaction import without_known_secrets

TEMPLATES = Path(__file__).parent / "templates"
SHOWN_CHARACTERS = 1200
"""Longer texts are cut on a page; the stored responses are whole."""
LINE_BREAK = "↵"
"""Stands for a line break inside a table or a sentence."""
WIDEST = 40
"""Characters that a column is filled up to, so that its figures stand below each other."""
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")
SPECIAL = re.compile(
    r"""
    (?P<interval>\[[+−]?\d[\d.]*,[ ][+−]?\d[\d.]*\](?![(:\[]))  # as our own figures have it; no link
    |(?P<mark>
        [`~|\[\]]
        |\\(?=[!-/:-@\[-`{-~]|$)
        |<(?=[A-Za-z/!?]|$)
        |&(?=[A-Za-z\#]|$)
        |(?<![^\W_])_|_(?![^\W_])  # not inside a word such as rouge_l
        |(?<=\S)\*|\*(?=\S)|^\*  # not between spaces
        |(?<!\S)\#
        |^(?:[-+](?=\s|$)|-(?=-)|[=>])
    )
    """,
    re.VERBOSE,
)
"""Characters that mean something in Markdown where they stand; what is harmless stays readable."""
NUMBERED = re.compile(r"^(\d{1,9})([.)])(?=\s|$)")
"""The beginning of a numbered list."""
SAFE_IN_ADDRESS = "/:?#@!$&'*+,;=%~[]"


class Markdown(str):
    """Text that is Markdown already, as markupsafe's Markup is HTML."""

    __slots__ = ()


def render(name: str, page: Mapping[str, Any]) -> str:
    """Fill the template of a file."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        finalize=escaped,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"table": table, "quoted": quoted, "address": address}
    return without_known_secrets(environment.get_template(f"{name}.jinja").render(page))


def escaped(value: object) -> Markdown:
    """Write a value as Markdown that reads as the value does, on one line."""
    if isinstance(value, Markdown):
        return value
    text = re.sub("\r\n?", "\n", without_known_secrets(str(value))).replace("\n", LINE_BREAK)
    text = CONTROL.sub("\N{REPLACEMENT CHARACTER}", re.sub("[ \t]+", " ", text))
    inner = text.strip(" ")
    before, _, after = text.partition(inner) if inner else (text, "", "")
    marked = SPECIAL.sub(lambda found: found["interval"] or f"\\{found['mark']}", inner)
    return Markdown(before + NUMBERED.sub(r"\1\\\2", marked) + after)


def table(frame: pd.DataFrame, strong: str = "", words: Collection[str] = ()) -> Markdown:
    """Write a table; its first column is the frame's index.

    Args:
        frame: Cells as they are to be read, figures as words already.
        strong: Label of a row in bold.
        words: Names of the columns of text, which are set to the left; figures are set to the right.
    """
    left = [True, *(column in words for column in frame.columns)]
    lines = [[escaped(cell).strip() for cell in (frame.index.name or "", *frame.columns)]]
    lines.append([":--" if is_left else "--:" for is_left in left])
    for label, *cells in frame.itertuples(name=None):
        line = [escaped(cell).strip() for cell in (label, *cells)]
        lines.append([_bold(cell) for cell in line] if strong and label == strong else line)
    widths = [min(WIDEST, max(map(len, column))) for column in zip(*lines, strict=True)]
    padded = (
        (cell.ljust(width) if is_left else cell.rjust(width) for cell, width, is_left in zip(*row, strict=True))
        for row in ((line, widths, left) for line in lines)
    )
    return Markdown("\n".join(f"| {' | '.join(line)} |" for line in padded))


def quoted(text: str) -> Markdown:
    """Write a text as a block in which nothing is read as Markdown; a long text is cut."""
    text = CONTROL.sub("\N{REPLACEMENT CHARACTER}", re.sub("\r\n", "\n", without_known_secrets(text)))
    text = text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS].rstrip()} …"
    fence = _longer_fence(text, 3)
    return Markdown(f"{fence}\n{text}\n{fence}")


def code(text: str) -> Markdown:
    """Write a name as code, on one line."""
    text = CONTROL.sub("\N{REPLACEMENT CHARACTER}", re.sub(r"\s+", " ", without_known_secrets(text).strip()))
    fence = _longer_fence(text, 1)
    space = " " if text.startswith("`") or text.endswith("`") else ""
    return Markdown(f"{fence}{space}{text}{space}{fence}")


def address(url: str) -> Markdown:
    """Write the target of a link: a web address or a file beside the page; nothing for any other."""
    try:
        parts = urlsplit(without_known_secrets(url))
    except ValueError:
        return Markdown("")
    known = parts.scheme in ("http", "https") or not (parts.scheme or parts.netloc)
    return Markdown(quote(parts.geturl(), safe=SAFE_IN_ADDRESS) if known else "")


def _longer_fence(text: str, shortest: int) -> str:
    """Return more backticks than stand in a row anywhere in a text."""
    return "`" * max(shortest, 1 + max(map(len, re.findall("`+", text)), default=0))


def _bold(cell: str) -> str:
    """Set a cell in bold; the star of a clear difference stays a star."""
    return f"**{cell[:-2]} \\***" if cell.endswith(" *") else f"**{cell}**" if cell else ""
