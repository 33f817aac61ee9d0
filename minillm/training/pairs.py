"""Training on pairs of responses, the teacher's preferred to the student's: DPKD (arXiv 2406.19774; method.md §5)."""

import functools
from collections.abc import Callable
from dataclasses import dataclass

import pandas as pd
from torch import Tensor

from minillm.config import Method
from minillm.models.batches import Limit, make_batch, micro_batches, shuffled_slice
from minillm.models.output_head import OutputHead
from minillm.objectives.preference import preference_loss
from minillm.objectives.terms import TokenTerms
from minillm.objectives.vocabulary import head_loss, token_log_probs
from minillm.streams import Purpose
from minillm.training.feeds import Feed, Losses, Models, teacher_of


@dataclass
class Pairs(Feed):
    """Pairs in an order drawn anew for each epoch; both responses of a pair are in one micro-batch."""

    models: Models
    method: Method
    examples: pd.DataFrame
    """Columns row, and prompt_ids, response_ids (preferred) and rejected_ids, token id lists."""
    seed: int

    def losses(self, step: int, limit: Limit) -> list[Callable[[], Losses]]:
        """Return the micro-batches' shares of the mean loss per pair of the global mini-batch."""
        rows = self._rows(step)
        part = self.examples.iloc[rows]
        columns = (part[name].map(len) for name in ("prompt_ids", "response_ids", "rejected_ids"))
        lengths = {row: (prompt, max(pair)) for row, prompt, *pair in zip(rows, *columns, strict=True)}
        half = Limit(*(None if most is None else max(1, most // 2) for most in (limit.rows, limit.tokens)))
        return [functools.partial(self._losses, chosen, len(rows)) for chosen in micro_batches(rows, lengths, half)]

    def _losses(self, rows: list[int], pairs: int) -> Losses:
        """Return the loss of some rows as a share of the mean over the `pairs` of the global mini-batch."""
        part, models = self.examples.iloc[rows], self.models
        responses = [*part["response_ids"], *part["rejected_ids"]]
        batch = make_batch([*part["prompt_ids"]] * 2, responses).to(models.student.device)
        tokens = batch.response[batch.response_mask]  # (N,)
        teacher = teacher_of(models, batch)
        teacher_log_prob, _ = token_log_probs(teacher.hidden, teacher.head, tokens)  # (N,)

        def losses(hidden: Tensor, head: OutputHead) -> Losses:
            log_prob, _ = token_log_probs(hidden, head, tokens)  # (N,)
            found = preference_loss(log_prob - teacher_log_prob, list(map(len, responses)), self.method.beta)

            def per_token(terms: TokenTerms, chosen: slice) -> Tensor:
                return found.slope[chosen] * terms.log_prob / pairs

            linear, _ = head_loss(hidden, head, tokens, per_token)  # has the gradient of the loss, not its value
            value = found.loss.sum() / pairs
            preferred = (found.margin > 0).sum() / pairs
            return {"loss": linear + (value - linear.detach()), "preference": value, "preferred": preferred}

        return models.student(batch, losses)

    def _rows(self, step: int) -> list[int]:
        size = self.method.training.batch_size
        return shuffled_slice(len(self.examples), Purpose.EXAMPLES, self.seed, step * size, size)

    def describe(self, step: int) -> str:
        """Name the training rows by their numbers in the raw file."""
        return f"training rows {self.examples['row'].iloc[self._rows(step)].tolist()}"
