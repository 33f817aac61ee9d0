"""Training on pairs of responses, the teacher's preferred to the student's: DPKD (arXiv 2406.19774; method.md §5)."""

import functools
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from minillm.models.batches import Limit, make_batch, micro_batches
from minillm.models.output_head import OutputHead
from minillm.objectives.preference import preference_loss
from minillm.objectives.terms import TokenTerms
from minillm.objectives.vocabulary import head_loss, token_log_probs
from minillm.training.feeds import Losses, RowFeed, teacher_of


@dataclass
class Pairs(RowFeed):
    """Pairs of responses, both of a pair in one micro-batch.

    Examples have the columns prompt_ids, response_ids (preferred) and rejected_ids.
    """

    def losses(self, step: int, limit: Limit) -> list[Callable[[], Losses]]:
        """Return the micro-batches' shares of the mean loss per pair of the global mini-batch."""
        rows = self.rows(step)
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
            counted = {"preference": value, "preferred": preferred, "tokens": value.new_tensor(len(tokens))}
            return {"loss": linear + (value - linear.detach()), **counted}

        return models.student(batch, losses)
