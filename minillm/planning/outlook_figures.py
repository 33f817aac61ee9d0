"""Figures of a plan's comparison of teacher and student, from one record for each row (docs/outlook.md)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from pydantic import BaseModel

from minillm.evaluation.uncertainty import Estimate, difference_of_ratios, paired_estimate

MODELS = ("teacher", "student")
TOP = (1, 5, 20)
"""Numbers of likeliest tokens that are compared."""


class OwnWays(BaseModel):
    """Template and end tokens that a model brings itself, beside the run's."""

    template: Literal["same", "different", "absent", "unused"]
    """Its own chat template writes the run's prompts, or others; or it has none, or the run writes a text."""
    missing_ends: tuple[str, ...] = ()
    """Tokens that end rows, and that neither its tokenizer nor its generation_config.json names as ends."""


@dataclass(frozen=True)
class Figures:
    """Figures of both models; by `teacher` and `student`, and by the number of top tokens."""

    rows: int
    loss: Mapping[str, float]
    """Nats per token of the references."""
    loss_gain: Estimate
    """The student's loss minus the teacher's: positive where the teacher is better."""
    score: Mapping[str, float]
    """Mean score of the responses, 0–100."""
    score_gain: Estimate
    """The teacher's score minus the student's."""
    length: Mapping[str, float]
    """Geometric mean of response tokens by reference tokens; a cut response counts with the tokens that it has."""
    longest: Mapping[str, float]
    """The same, a response that was stopped early counting with the tokens that the run lets it have."""
    cut: Mapping[str, float]
    """Share of the responses that did not end within the run's limit."""
    stopped: Mapping[str, float]
    """Share of the responses that were stopped before that limit."""
    end: Mapping[str, float]
    """Mean probability of the token that ends a reference, where it ends."""
    entropy: Mapping[str, float]
    """Nats per token of the references."""
    shared: Mapping[int, float]
    """Share of the teacher's top tokens that are also among the student's."""
    mass: Mapping[str, Mapping[int, float]]
    """Probability that a model gives to the other's top tokens."""


def figures(records: Sequence[Mapping[str, float]]) -> Figures:
    """Compute the figures, those per token over all tokens together.

    Args:
        records: What `minillm.planning.outlook.Pair.measure` returns, at least one.
    """
    column = {name: np.array([record[name] for record in records]) for name in records[0]}  # (n,) each
    tokens = column["tokens"]

    def per_token(figure: str) -> float:
        return float(column[figure].sum() / tokens.sum())

    def per_row(figure: str) -> dict[str, float]:
        return {name: float(column[f"{name}_{figure}"].mean()) for name in MODELS}

    def ratio(figure: str) -> dict[str, float]:
        return {name: float(np.exp(np.log(column[f"{name}_{figure}"] / tokens).mean())) for name in MODELS}

    losses = {name: np.stack([column[f"{name}_loss"], tokens]) for name in MODELS}  # (2, n) each
    return Figures(
        rows=len(records),
        loss={name: per_token(f"{name}_loss") for name in MODELS},
        loss_gain=difference_of_ratios([losses["student"]], [losses["teacher"]]),
        score=per_row("score"),
        score_gain=paired_estimate([column["teacher_score"] - column["student_score"]]),
        length=ratio("response"),
        longest=ratio("longest"),
        cut=per_row("cut"),
        stopped=per_row("stopped"),
        end=per_row("end"),
        entropy={name: per_token(f"{name}_entropy") for name in MODELS},
        shared={k: per_token(f"shared_{k}") for k in TOP},
        mass={name: {k: per_token(f"{name}_mass_{k}") for k in TOP} for name in MODELS},
    )
