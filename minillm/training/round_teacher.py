"""The teacher of a round of rollouts: what it says of the responses, and what the updates on them read of it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from transformers import PreTrainedModel

from minillm.models.batches import Batch
from minillm.models.output_head import OutputHead, output_head, response_hidden
from minillm.objectives.agreement import agreement
from minillm.objectives.terms import Teacher
from minillm.objectives.vocabulary import token_log_probs

PerToken = tuple[Tensor, ...]
"""Tensors with a row for each token of a response."""
Compare = Callable[[Tensor, OutputHead], Tensor]
"""From the student's last hidden states at some tokens (M, H), and its head, to figures of the log at them (M, F)."""


@dataclass(frozen=True)
class Scored:
    """What a teacher says of the n response tokens of a batch."""

    log_prob: Tensor  # (n,)
    """log p(y_t)."""
    kept: PerToken
    """What `recall` needs."""
    figures: int
    """F, the first so many of `minillm.training.rounds.COMPARED`."""
    compare: Callable[[Tensor], Compare]
    """From a mask of the tokens to compare at (n,)."""


class RoundTeacher(Protocol):
    """A teacher that scores rollouts, wherever it runs."""

    def expect(self, prompts: Sequence[list[int]], responses: Sequence[list[int]], rows: Sequence[int]) -> None:
        """Take note of a round, and of those of its rows that this process will have scored."""
        ...

    def score(self, batch: Batch, rows: Sequence[int]) -> Scored:
        """Score some rows of the round, which are the batch."""
        ...

    def recall(self, kept: Sequence[PerToken], device: torch.device) -> Teacher | None:
        """Return the teacher at the tokens of some rows, row after row; None if it has told of the tokens alone."""
        ...


class SilentTeacher:
    """A teacher that keeps nothing, having told of the tokens alone; on its own it tells of none."""

    def expect(self, prompts: Sequence[list[int]], responses: Sequence[list[int]], rows: Sequence[int]) -> None:
        """Do nothing."""

    def score(self, batch: Batch, rows: Sequence[int]) -> Scored:
        """Refuse, as there is nothing to ask."""
        raise NotImplementedError

    def recall(self, kept: Sequence[PerToken], device: torch.device) -> None:
        """Return nothing."""


@dataclass(frozen=True)
class RunningTeacher:
    """A teacher that runs in training: its hidden states are kept, and give its whole distribution again."""

    model: PreTrainedModel
    vocabulary: int
    temperature: float

    def expect(self, prompts: Sequence[list[int]], responses: Sequence[list[int]], rows: Sequence[int]) -> None:
        """Do nothing: it runs batch by batch."""

    def score(self, batch: Batch, rows: Sequence[int]) -> Scored:
        """Run over a batch."""
        hidden, head = response_hidden(self.model, batch), output_head(self.model, self.vocabulary)
        tokens = batch.response[batch.response_mask]
        log_prob, normalizer = token_log_probs(hidden, head, tokens, self.temperature)

        def compare(chosen: Tensor) -> Compare:
            return lambda student, own: agreement(student, own, hidden[chosen], head, self.temperature)

        return Scored(log_prob, (hidden, normalizer), 3, compare)

    def recall(self, kept: Sequence[PerToken], device: torch.device) -> Teacher:
        """Return the teacher from its hidden states (n, H_teacher) and log-normalisers (n,)."""
        states, normalizer = map(torch.cat, zip(*kept, strict=True))
        return Teacher(states.to(device), output_head(self.model, self.vocabulary), normalizer.to(device))
