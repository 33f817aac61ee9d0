"""Log-probabilities of given responses under a model, made without a tensor of all tokens over the vocabulary."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from minillm.errors import StageError
from minillm.models.batches import Limit, lengths_of, make_batch, micro_batches
from minillm.models.output_head import output_head, response_hidden
from minillm.models.passes import in_step
from minillm.objectives.vocabulary import likeliest_log_probs
from minillm.worker.processes import gather_lists, world_size

Pair = tuple[Sequence[int], Sequence[int]]
"""Token ids of a prompt and of the response that follows it, at least one token each."""


@dataclass(frozen=True)
class Likelihood:
    """Log-probabilities of one response of T tokens."""

    log_prob: NDArray[np.float64]
    """Log-probability of each token, given all before it, (T,)."""
    likeliest: NDArray[np.float64]
    """Log-probability of the likeliest token in its place, (T,): equal, bit by bit, where that is the token itself."""

    @property
    def confidence(self) -> NDArray[np.float64]:
        """Probability of the likeliest token in each place, (T,)."""
        return np.exp(self.likeliest)

    @property
    def correct(self) -> NDArray[np.bool_]:
        """Mask of the tokens that are the likeliest in their place, (T,)."""
        return self.log_prob == self.likeliest


def likelihoods(
    model: PreTrainedModel,
    vocabulary: int,
    pairs: Sequence[Pair],
    limit: Limit,
    report: Callable[[int], None] = lambda done: None,
) -> list[Likelihood]:
    """Compute the likelihood of every response, in the order given; the processes of the group share the work.

    Args:
        model: Model in evaluation mode, on the device to compute on.
        vocabulary: Entries of the tokenizer.
        pairs: Prompts and responses, at least one pair.
        limit: Most of one forward pass.
        report: Called with the number of pairs done by all processes together.

    Raises:
        StageError: Some log-probabilities are not numbers, so nothing can be measured with them.
    """
    mine: list[tuple[int, Likelihood]] = []
    with in_step(model):
        for rows in filter(None, micro_batches(range(len(pairs)), lengths_of(*zip(*pairs, strict=True)), limit)):
            mine += zip(rows, _of_batch(model, vocabulary, [pairs[row] for row in rows]), strict=True)
            report(min(len(mine) * world_size(), len(pairs)))
    found = [likelihood for _, likelihood in sorted(gather_lists(mine), key=lambda row: row[0])]
    if lost := [number for number, of in enumerate(found) if np.isnan(of.log_prob).any()]:
        raise StageError(
            f"the model's log-probabilities are not a number on {len(lost)} of {len(found)} texts, the first is number "
            f"{lost[0]}, counted from 0; set evaluation.precision: float32 or look at its weights"
        )
    return found


@torch.no_grad()
def _of_batch(model: PreTrainedModel, vocabulary: int, pairs: Sequence[Pair]) -> list[Likelihood]:
    prompts, responses = zip(*pairs, strict=True)
    batch = make_batch(prompts, responses).to(model.device)
    tokens = batch.response[batch.response_mask]  # (N,), N the real response tokens
    scores = likeliest_log_probs(response_hidden(model, batch), output_head(model, vocabulary), tokens)  # (N,) each
    ends = np.cumsum([len(response) for response in responses])[:-1]  # (rows − 1,)
    of_rows = [np.split(score.double().cpu().numpy(), ends) for score in scores]
    return [Likelihood(*row) for row in zip(*of_rows, strict=True)]
