"""Where the text of a training step comes from: the interface that the trainer asks (see fixed_text, on_policy).

A feed gives, for a step number, the global mini-batch, and turns this process's rows of it into losses. Everything but
the current round of rollouts is a pure function of the seed and the step, so a resumed run continues the same stream.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import PreTrainedModel

from minillm.models.batches import Batch, shuffled_stream
from minillm.models.output_head import output_head, response_hidden
from minillm.objectives.terms import Teacher
from minillm.streams import Purpose

Losses = dict[str, Tensor]
"""Sums over this process's tokens of a step, each divided by the step's global count; `loss` is what is learnt."""


@dataclass(frozen=True)
class Models:
    """The student, its frozen teacher where there is one, and what they share."""

    student: Any
    """DeepSpeed engine around a `HeadedModel`."""
    teacher: PreTrainedModel | None
    vocabulary: int
    ends: tuple[int, ...]
    """Tokens that end a response."""


class Feed(Protocol):
    """What the trainer asks of a source of text."""

    def prepare(self, step: int, micro_batch_size: int) -> dict[str, float]:
        """Make ready what the step needs (a new round of rollouts, say), on every process; metrics of what is new."""
        ...

    def losses(self, step: int, micro_batch_size: int) -> Iterator[Losses]:
        """Losses of this process's micro-batches of the step, one after the other, with gradient."""
        ...

    def describe(self, step: int) -> str:
        """Which rows the step trains on, for error messages."""
        ...

    def state(self) -> dict[str, Any]:
        """Return what this process needs and cannot compute from the seed and the step."""
        ...

    def restore(self, states: Sequence[dict[str, Any]]) -> None:
        """Take back what `state` gave on each process; there may be more or fewer of them now."""
        ...


def shuffled_slice(count: int, purpose: Purpose, seed: int, start: int, number: int) -> list[int]:
    """The `number` examples of a shuffled stream (see `shuffled_stream`) from position `start`."""
    return list(itertools.islice(shuffled_stream(count, purpose, seed, start), number))


@torch.no_grad()
def teacher_of(models: Models, batch: Batch) -> Teacher:
    """The teacher's hidden states at the batch's real response tokens, without gradient."""
    assert models.teacher is not None
    hidden = response_hidden(models.teacher, batch)  # (N, H_teacher)
    return Teacher(hidden, output_head(models.teacher, models.vocabulary))
