"""What pages and cards are made of: templates, tables as Markdown, texts cut to a readable length, saved figures."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from matplotlib.figure import Figure

from minillm.redaction import without_known_secrets
from minillm.reporting import plots

TEMPLATES = Path(__file__).parent / "templates"
SHOWN_CHARACTERS = 1200
"""Longer texts are cut in the page; the stored responses are whole."""


def render(name: str, page: Mapping[str, Any]) -> str:
    """Fill the template of a file; everything that goes into HTML is escaped unless the template says otherwise.

    Values of secret environment variables are masked, whatever they came in with.
    """
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=lambda name: name is not None and ".html" in name,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"shorten": shorten, "markdown": markdown}
    return without_known_secrets(environment.get_template(f"{name}.jinja").render(page))


def markdown(frame: pd.DataFrame) -> str:
    """A table whose figures keep the digits they were written with, and whose cells stay cells."""
    alignment = ("left", *["right"] * len(frame.columns))
    whole = frame.map(lambda cell: str(cell).replace("\n", "\\n").replace("|", "\\|"))
    return whole.to_markdown(disable_numparse=True, colalign=alignment)


def shorten(text: str) -> str:
    """The beginning of a long text; control characters, which models do write, are replaced."""
    text = re.sub(r"[\x00-\x08\x0b-\x1f\x7f]", "\N{REPLACEMENT CHARACTER}", text)
    return text if len(text) <= SHOWN_CHARACTERS else text[:SHOWN_CHARACTERS].rstrip() + " …"


def save_figures(figures: Mapping[str, tuple[str, Figure]], output: Path) -> dict[str, dict[str, str]]:
    """Save every figure as PNG in plots/; by file name, its title and its SVG."""
    folder = output / "plots"
    folder.mkdir(exist_ok=True)
    return {
        name: {"title": title, "svg": plots.save(figure, folder / f"{name}.png")}
        for name, (title, figure) in figures.items()
    }
