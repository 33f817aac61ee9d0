"""What a loss per token is made of, and what the head needs to make it (method.md §2)."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from minillm.models.output_head import OutputHead


@dataclass(frozen=True)
class Teacher:
    """What a loss needs from the teacher for N tokens: its hidden states, not its logits."""

    hidden: Tensor  # (N, H_teacher)
    """Last hidden states that predict the tokens."""
    head: OutputHead
    log_normalizer: Tensor | None = None  # (N,)
    """log Σ exp(logits), where a pass before this one has computed it; saves its exponentials."""


@dataclass(frozen=True)
class TokenTerms:
    """What a loss is made of, for N tokens; no gradient flows through these."""

    log_prob: Tensor  # (N,)
    """log q(y_t)."""
    divergence: Tensor  # (N,)
    """D_t; zero where the loss asks for no divergence."""


PerTokenLoss = Callable[[TokenTerms, slice], Tensor]
"""From the terms of the n tokens of a slice to their losses (n,): plain differentiable arithmetic on n numbers."""
