"""Section on text that no model trained on: loss, perplexity and calibration of the next token."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from minillm.files import read_json
from minillm.reporting.plots import Look
from minillm.reporting.sections.base import Section, doubt_words
from minillm.reporting.sections.calibration import reliability_figure
from minillm.words import with_interval

EXPLANATION = (
    "Loss: mean negative log probability of the tokens of each benchmark prompt's first reference, and of plain text "
    "that no model was trained on, in nats per token; perplexity is its exponential. Each model counts tokens by its "
    "own tokenizer: if these differ, compare bits per byte. A method that seeks the teacher's modes may answer "
    "better and still have a higher loss. ECE of the next token, from 0 to 1: the gap between the probability of the "
    "likeliest next token and how often it is the right one, over 15 bins of that probability. In brackets, 95 % "
    "intervals over prompts or, for plain text, over blocks; that of an ECE may lie mostly below it, because chance "
    "alone makes it too large. In the diagrams, points below the diagonal are overconfident."
)
AXIS = "probability of the likeliest token"


def held_out_section(inputs: Mapping[str, Path], roles: Sequence[str], look: Look) -> Section | None:
    """Show loss, perplexity and ECE of each method on each benchmark and text; None if they were not measured."""
    if f"held_out/{roles[0]}" not in inputs:
        return None
    measured = {role: read_json(inputs[f"held_out/{role}"] / "held_out.json") for role in roles}
    tables = {
        "Loss, nats per token": _table(measured, lambda found: _measured(found["loss"])),
        "Bits per byte": _table(measured, lambda found: _measured(found["bits_per_byte"])),
        "Perplexity": _table(measured, lambda found: f"{math.exp(found['loss']['value']):.4g}"),
        "ECE of the next token": _table(measured, lambda found: _measured(found["ece"])),
    }
    figures = {
        f"held-out-{name}": (
            f"Reliability of the next token on {name}",
            reliability_figure({role: sets["texts"][name] for role, sets in measured.items()}, look, AXIS),
        )
        for name in measured[roles[0]]["texts"]
    }
    sets = [found for of in measured.values() for part in of.values() for found in part.values()]
    ends = (end for found in sets for what in ("loss", "bits_per_byte", "ece") for end in found[what]["interval"])
    return Section("Held-out text", EXPLANATION + doubt_words(ends), tables, figures)


def _measured(found: Mapping[str, Any]) -> str:
    return with_interval(found["value"], found["interval"], 3)


def _table(measured: Mapping[str, Any], words: Callable[[Mapping[str, Any]], str]) -> pd.DataFrame:
    """Return method × benchmark and text."""
    rows = {
        role: {name: words(found) for name, found in {**sets["benchmarks"], **sets["texts"]}.items()}
        for role, sets in measured.items()
    }
    return pd.DataFrame.from_dict(rows, orient="index")
