"""Feeds: the source of text and losses for each training step (implemented in fixed_text and on_policy).

For a step number, a feed chooses the global mini-batch and turns this process's rows of it into losses. Everything but
the current round of rollouts is a pure function of seed and step, so a resumed run continues the same stream.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import pandas as pd
import torch
from torch import Tensor
from transformers import PreTrainedModel

from minillm.config import Method
from minillm.models.batches import Batch, Limit, shuffled_slice
from minillm.models.output_head import output_head, response_hidden
from minillm.objectives.terms import Teacher
from minillm.streams import Purpose

Losses = dict[str, Tensor]
"""Sums over this process's tokens of a step, divided by the step's global count; `loss` is differentiated."""


@dataclass(frozen=True)
class Models:
    """The student, its frozen teacher if there is one, and their vocabulary and end tokens."""

    student: Any
    """DeepSpeed engine around a `HeadedModel`."""
    teacher: PreTrainedModel | None
    vocabulary: int
    ends: tuple[int, ...]
    """Tokens that end a response."""


class Feed(Protocol):
    """Interface between the trainer and a source of text; by default nothing is prepared and no state kept."""

    def prepare(self, step: int, limit: Limit) -> dict[str, float]:
        """Prepare the step on every process, for instance sample a new round; return metrics of what is new."""
        return {}

    def losses(self, step: int, limit: Limit) -> list[Callable[[], Losses]]:
        """Return what computes the losses of each of this process's micro-batches of the step, with gradient."""
        ...

    def validated(self, loss: float) -> None:
        """Take note of a validation loss, nats per token."""

    def describe(self, step: int) -> str:
        """Name the rows the step trains on, for error messages."""
        ...

    def state(self) -> dict[str, Any]:
        """Return what this process needs and cannot compute from the seed and the step."""
        return {}

    def restore(self, states: Sequence[dict[str, Any]]) -> None:
        """Restore from what `state` returned on each process; there may be more or fewer processes now."""


@dataclass
class RowFeed(Feed):
    """Training rows in an order drawn anew for each epoch."""

    models: Models
    method: Method
    examples: pd.DataFrame
    """Rows of token id lists, each with its number in the raw file (`row`)."""
    seed: int

    def rows(self, step: int) -> list[int]:
        """Return the places of a step's rows in `examples`."""
        size = self.method.training.batch_size
        return shuffled_slice(len(self.examples), Purpose.EXAMPLES, self.seed, step * size, size)

    def describe(self, step: int) -> str:
        """Name the training rows by their numbers in the raw file."""
        return f"training rows {self.examples['row'].iloc[self.rows(step)].tolist()}"


@torch.no_grad()
def teacher_of(models: Models, batch: Batch) -> Teacher:
    """Run the teacher on a batch, without gradient; return it at the N learnt response tokens."""
    assert models.teacher is not None
    hidden = response_hidden(models.teacher, batch)  # (N, H_teacher)
    return Teacher(hidden, output_head(models.teacher, models.vocabulary))
