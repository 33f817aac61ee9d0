"""Preference of the teacher's response over the student's: the loss of DPKD (arXiv 2406.19774; method.md §5)."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class PreferenceLoss:
    """The loss of n pairs, and its slope at each of their N tokens."""

    loss: Tensor  # (n,)
    margin: Tensor  # (n,)
    """m, positive where the preferred response is the likelier one, measured by the teacher."""
    slope: Tensor  # (N,)
    """∂loss/∂log q(y_t)."""


def preference_loss(log_ratio: Tensor, lengths: Sequence[int], beta: float) -> PreferenceLoss:
    """Return −log σ(m), m = β·(mean log q/p of the preferred response − that of the rejected one).

    Args:
        log_ratio: log q(y_t) − log p(y_t) of the tokens of n preferred responses, then of the n rejected ones, (N,).
        lengths: Tokens of each of the 2n responses.
        beta: β.
    """
    counts = torch.tensor(lengths, device=log_ratio.device)  # (2n,)
    means = torch.stack([part.mean() for part in log_ratio.split(list(lengths))])  # (2n,)
    preferred, rejected = means.chunk(2)
    margin = beta * (preferred - rejected)  # (n,)
    pull = -beta * torch.sigmoid(-margin)  # ∂loss/∂(preferred − rejected), (n,)
    slope = torch.cat([pull, -pull]) / counts  # (2n,)
    return PreferenceLoss(-torch.nn.functional.logsigmoid(margin), margin, slope.repeat_interleave(counts))
