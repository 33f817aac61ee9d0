"""Ingredients of a loss per token, shared by the losses and the head that computes them (method.md §2)."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from minillm.models.output_head import OutputHead


@dataclass(frozen=True)
class Teacher:
    """The teacher at N tokens: its hidden states and head, from which its logits are made chunk by chunk."""

    hidden: Tensor  # (N, H_teacher)
    """Last hidden states that predict the tokens."""
    head: OutputHead
    log_normalizer: Tensor | None = None  # (N,)
    """log Σ exp(logits), where a pass before this one has computed it; saves its exponentials."""


@dataclass(frozen=True)
class TokenTerms:
    """Terms of a loss at N tokens; no gradient flows through these."""

    log_prob: Tensor  # (N,)
    """log q(y_t)."""
    divergence: Tensor  # (N,)
    """D_t; zero where the loss asks for no divergence."""


PerTokenLoss = Callable[[TokenTerms, slice], Tensor]
"""From the terms of the n tokens of a slice to their losses (n,): plain differentiable arithmetic on n numbers."""
