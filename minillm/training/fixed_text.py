"""Training on fixed text, the data set's or the teacher's: SFT, KD and SeqKD (method.md §5)."""

import functools
from collections.abc import Callable
from dataclasses import dataclass

import pandas as pd
from torch import Tensor

from minillm.config import Method
from minillm.data.learnt_turns import learnt_ranges
from minillm.models.batches import Batch, Limit, lengths_of, make_batch, micro_batches, shuffled_slice
from minillm.models.output_head import OutputHead
from minillm.objectives.divergences import Functional, functional
from minillm.objectives.losses import fixed_text_loss
from minillm.objectives.vocabulary import head_loss
from minillm.streams import Purpose
from minillm.training.feeds import Feed, Losses, Models, teacher_of


def text_losses(models: Models, batch: Batch, tokens: int, divergence: Functional | None, weight: float) -> Losses:
    """Return the loss on a batch of given text, with gradient.

    Args:
        models: Student, and teacher if there is a divergence.
        batch: Prompts and the responses to learn.
        tokens: Divides the sum over the batch's tokens.
        divergence: Divergence from the teacher; None for plain cross-entropy.
        weight: Share of the divergence, the rest being cross-entropy.
    """
    teacher = None if divergence is None else teacher_of(models, batch)

    def losses(hidden: Tensor, head: OutputHead) -> Losses:
        loss, _ = head_loss(
            hidden,  # (N, H)
            head,
            batch.response[batch.response_mask],  # (N,)
            lambda terms, part: fixed_text_loss(terms, weight) / tokens,  # (n,), shares of one mean
            divergence,
            teacher,
        )
        return {"loss": loss}

    return models.student(batch, losses)


@dataclass
class FixedText(Feed):
    """Responses of the data set or of the teacher, with cross-entropy or word-level KD (method.md §5)."""

    models: Models
    method: Method
    examples: pd.DataFrame
    """Columns prompt_ids and response_ids, token id lists, and turns, the answers that are learnt."""
    seed: int

    def losses(self, step: int, limit: Limit) -> list[Callable[[], Losses]]:
        """Return the micro-batches' shares of the mean loss per learnt token of the global mini-batch."""
        rows = self._rows(step)
        part = self.examples.iloc[rows]
        lengths = dict(zip(rows, lengths_of(part["prompt_ids"], part["response_ids"]), strict=True))
        tokens = sum(end - start for turns in part["turns"] for start, end in learnt_ranges(turns))
        micros = micro_batches(rows, lengths, limit)
        return [functools.partial(self._losses, chosen, tokens) for chosen in micros]

    def _losses(self, rows: list[int], tokens: int) -> Losses:
        """Return the loss of some rows as a share of the mean over the `tokens` of the global mini-batch."""
        method, part = self.method, self.examples.iloc[rows]
        batch = make_batch(
            part["prompt_ids"].tolist(), part["response_ids"].tolist(), part["turns"].map(learnt_ranges).tolist()
        )
        plain = method.divergence == "cross_entropy"
        divergence = None if plain else functional(method.divergence, **method.parameters)
        weight = 0.0 if plain else method.divergence_weight
        return text_losses(self.models, batch.to(self.models.student.device), tokens, divergence, weight)

    def _rows(self, step: int) -> list[int]:
        size = self.method.training.batch_size
        return shuffled_slice(len(self.examples), Purpose.EXAMPLES, self.seed, step * size, size)

    def describe(self, step: int) -> str:
        """Name the training rows by their numbers in the raw file."""
        return f"training rows {self.examples['row'].iloc[self._rows(step)].tolist()}"
