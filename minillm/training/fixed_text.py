"""Training on fixed text, the data set's or the teacher's: SFT, KD and SeqKD (method.md §5)."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from minillm.data.learnt_turns import learnt_ranges
from minillm.models.batches import Batch, Limit, lengths_of, make_batch, micro_batches
from minillm.models.output_head import OutputHead
from minillm.objectives.divergences import Functional, functional
from minillm.objectives.losses import confidence_weight, fixed_text_loss
from minillm.objectives.sparse import SparseTeacher
from minillm.objectives.terms import Teacher, TokenTerms
from minillm.objectives.vocabulary import head_loss, token_log_probs
from minillm.training.feeds import Losses, Models, RowFeed, teacher_of

StoredTeacher = Callable[[Sequence[int], torch.device], Teacher | SparseTeacher]
"""From training rows to the teacher at their learnt tokens, row after row."""


def text_losses(
    models: Models,
    batch: Batch,
    tokens: int,
    teacher: Teacher | SparseTeacher | None,
    divergence: Functional | None,
    weight: float,
    by_confidence: bool = False,
) -> Losses:
    """Return the loss on a batch of given text, with gradient.

    Args:
        models: Student.
        batch: Prompts and the responses to learn.
        tokens: Divides the sum over the batch's tokens.
        teacher: Teacher at the batch's tokens; None for plain cross-entropy.
        divergence: Divergence from the teacher; None without one and for a sparse teacher.
        weight: Share of the divergence, the rest being cross-entropy.
        by_confidence: The share is that of tokens of which both models are equally sure.
    """
    learnt = batch.response[batch.response_mask]  # (N,)
    teacher_log_prob = _token_log_prob(teacher, learnt) if by_confidence else None

    def per_token(terms: TokenTerms, part: slice) -> Tensor:
        share: float | Tensor = weight
        if teacher_log_prob is not None:
            share = confidence_weight(terms.log_prob, teacher_log_prob[part], weight)
        return fixed_text_loss(terms, share) / tokens  # (n,), shares of one mean

    def losses(hidden: Tensor, head: OutputHead) -> Losses:
        loss, _ = head_loss(hidden, head, learnt, per_token, divergence, teacher)
        return {"loss": loss, "tokens": loss.new_tensor(len(learnt))}

    return models.student(batch, losses)


def _token_log_prob(teacher: Teacher | SparseTeacher | None, tokens: Tensor) -> Tensor:
    """Log p of the text's own tokens (N,); a whole teacher takes one more product with its head."""
    assert teacher is not None
    if isinstance(teacher, SparseTeacher):
        return teacher.token_log_prob
    return token_log_probs(teacher.hidden, teacher.head, tokens)[0]


@dataclass
class FixedText(RowFeed):
    """Responses of the data set or of the teacher, with cross-entropy or word-level KD (method.md §5).

    Examples have the columns prompt_ids, response_ids, and turns, the answers that are learnt.
    """

    stored: StoredTeacher | None = None
    """The teacher, if it ran before; None if it runs now, or none is asked."""

    def losses(self, step: int, limit: Limit) -> list[Callable[[], Losses]]:
        """Return the micro-batches' shares of the mean loss per learnt token of the global mini-batch."""
        rows = self.rows(step)
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
        device = self.models.student.device
        batch = batch.to(device)
        if method.divergence == "cross_entropy":
            return text_losses(self.models, batch, tokens, None, None, 0.0)
        teacher = teacher_of(self.models, batch) if self.stored is None else self.stored(rows, device)
        whole = isinstance(teacher, Teacher)
        divergence = functional(method.divergence, **method.parameters) if whole else None
        by_confidence = method.weighting == "confidence"
        return text_losses(self.models, batch, tokens, teacher, divergence, method.divergence_weight, by_confidence)
