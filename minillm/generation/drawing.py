"""Choice of the next token: one uniform number and one pass over the logits decide it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from transformers import (
    LogitsProcessorList,
    NoRepeatNGramLogitsProcessor,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from minillm.objectives.divergences import over_vocabulary

BLOCK = 256
"""Entries of the vocabulary summed together, before one of them is searched for."""


@dataclass(frozen=True)
class Decoding:
    """Rules by which the next token follows from a model's logits; the defaults are plain sampling."""

    strategy: Literal["sample", "greedy"] = "sample"
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    no_repeat_ngram: int | None = None

    def warp(self, logits: Tensor, sequence: Callable[[int], Tensor]) -> Tensor:
        """Forbid tokens and apply the temperature.

        Args:
            logits: (N, V), in float32 at least; may be written over.
            sequence: Returns the tokens of a row so far; called only if n-grams must not repeat.

        Returns:
            (N, V), −inf where a token is forbidden.
        """
        if self.no_repeat_ngram is not None:
            forbid = NoRepeatNGramLogitsProcessor(self.no_repeat_ngram)
            rows = enumerate(logits.split(1))
            logits = torch.cat([forbid(sequence(i)[None], row) for i, row in rows])  # type: ignore[arg-type]
        if self.temperature != 1.0:
            logits = logits.div_(self.temperature)
        warpers = LogitsProcessorList()
        if self.top_k is not None:
            warpers.append(TopKLogitsWarper(self.top_k))
        if self.top_p is not None:
            warpers.append(TopPLogitsWarper(self.top_p))
        return warpers(None, logits) if warpers else logits  # type: ignore[arg-type]


@dataclass(frozen=True)
class Draw:
    """Next tokens of N rows, their log-probabilities and log-normalisers, (N,) each."""

    token: Tensor
    log_prob: Tensor
    log_normalizer: Tensor
    """log Σ exp(logits)."""


def draw(logits: Tensor, uniform: Tensor) -> Draw:
    """Invert the cumulative distribution: first over sums of blocks of the vocabulary, then inside one block.

    Args:
        logits: (N, V), −inf where a token is forbidden; in float32 at least.
        uniform: (N,) float64 in [0, 1), one number for each row.

    Returns:
        Tokens and their log-probabilities; a token of probability zero is never drawn.
    """
    highest = over_vocabulary(torch.amax, logits)  # (N,)
    mass = torch.sub(logits, highest[:, None]).exp_()  # (N, V), probabilities but for their sum
    columns, whole = mass.t(), mass.shape[1] // BLOCK * BLOCK  # (V, N)
    # Entries in the first dimension, as logits are laid out: the other way around these sums are far slower.
    sums = columns[:whole].reshape(whole // BLOCK, BLOCK, len(mass)).sum(dim=1)  # (V // BLOCK, N)
    sums = torch.cat([sums, columns[whole:].sum(dim=0, keepdim=True)]).t()  # (N, B), the last block is what is left
    log_normalizer = sums.sum(dim=1).log() + highest  # (N,)
    below = sums.double().cumsum(dim=1)  # (N, B)
    total = below[:, -1:]  # (N, 1)
    block = _first_above(below, uniform[:, None] * total)  # (N, 1)
    # Mass still to go inside the block; rounding of the cumulative sums may leave a little less than none.
    rest = (uniform[:, None] * total - (below.gather(1, block) - sums.gather(1, block))).clamp(min=0)
    inside = block * BLOCK + torch.arange(BLOCK, device=logits.device)  # (N, BLOCK), may run beyond V
    candidates = mass.gather(1, inside.clamp(max=mass.shape[1] - 1)).masked_fill(inside >= mass.shape[1], 0.0)
    token = (block * BLOCK + _first_above(candidates.double().cumsum(dim=1), rest)).squeeze(1)  # (N,)
    return Draw(token, logits.gather(1, token[:, None]).squeeze(1) - log_normalizer, log_normalizer)


def greedy(logits: Tensor) -> Draw:
    """Choose the likeliest token of each row of logits (N, V)."""
    token = logits.argmax(dim=-1)  # (N,)
    log_normalizer = torch.logsumexp(logits, dim=-1)  # (N,)
    return Draw(token, logits.gather(1, token[:, None]).squeeze(1) - log_normalizer, log_normalizer)


def _first_above(cumulative: Tensor, threshold: Tensor) -> Tensor:
    """Return the first entry (N, 1) above each row's threshold (N, 1) in cumulative sums (N, n).

    Where rounding puts the threshold at the total, return the last entry that adds anything.
    """
    # The largest number below the total, so that one entry is always above the threshold.
    threshold = torch.minimum(threshold, torch.nextafter(cumulative[:, -1:], cumulative.new_zeros(())))
    return torch.searchsorted(cumulative, threshold, right=True)
