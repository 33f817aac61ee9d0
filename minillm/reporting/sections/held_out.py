"""Section on text that no model trained on: loss, perplexity and calibration of the next token."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from minillm.reporting.plots import Look
from minillm.reporting.sections.base import Section, cell_table, doubt_words, interval_table, read_measured
from minillm.reporting.sections.calibration import reliability_figure

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
    measured = read_measured(inputs, "held_out", roles, "held_out.json")
    if not measured:
        return None
    cells = {role: {**sets["benchmarks"], **sets["texts"]} for role, sets in measured.items()}
    tables = {
        "Loss, nats per token": interval_table(cells, "loss", 3),
        "Bits per byte": interval_table(cells, "bits_per_byte", 3),
        "Perplexity": cell_table(cells, lambda found: f"{math.exp(found['loss']['value']):.4g}"),
        "ECE of the next token": interval_table(cells, "ece", 3),
    }
    figures = {
        f"held-out-{name}": (
            f"Reliability of the next token on {name}",
            reliability_figure({role: sets["texts"][name] for role, sets in measured.items()}, look, AXIS),
        )
        for name in next(iter(measured.values()))["texts"]
    }
    sets = [found for of in measured.values() for part in of.values() for found in part.values()]
    ends = (end for found in sets for what in ("loss", "bits_per_byte", "ece") for end in found[what]["interval"])
    return Section("Held-out text", EXPLANATION + doubt_words(ends), tables, figures)
