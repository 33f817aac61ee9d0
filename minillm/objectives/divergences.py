"""Per-token losses over the vocabulary, as pure functions of logits (method.md §2 and §5).

Every function returns one value per response token, (B, T); masking and averaging are the caller's.
Reductions are float32, or float64 where the logits are.
"""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

KL = Literal["forward_kl", "reverse_kl"]


def log_softmax(logits: Tensor) -> Tensor:
    """log-probabilities (…, V), in float32 at least."""
    wide = torch.promote_types(logits.dtype, torch.float32)
    return torch.log_softmax(logits.to(wide), dim=-1)


def token_log_prob(log_probs: Tensor, tokens: Tensor) -> Tensor:
    """log-probability of each token.

    Args:
        log_probs: (B, T, V).
        tokens: (B, T).
    """
    return log_probs.gather(-1, tokens[..., None]).squeeze(-1)


def forward_kl(student_log_probs: Tensor, teacher_log_probs: Tensor) -> Tensor:
    """KL[p ‖ q] at each position, an exact sum over the vocabulary: word-level KD's loss (method.md §5)."""
    return _kl(teacher_log_probs, student_log_probs)


def reverse_kl(student_log_probs: Tensor, teacher_log_probs: Tensor) -> Tensor:
    """KL[q ‖ p] at each position, an exact sum over the vocabulary: the single-step term (paper §2.2)."""
    return _kl(student_log_probs, teacher_log_probs)


def _kl(of: Tensor, against: Tensor) -> Tensor:
    return (of.exp() * (of - against)).sum(dim=-1)


DIVERGENCES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"forward_kl": forward_kl, "reverse_kl": reverse_kl}


def fixed_text_loss(
    student_logits: Tensor,
    tokens: Tensor,
    teacher_logits: Tensor | None = None,
    divergence: KL | None = None,
    weight: float = 1.0,
) -> Tensor:
    """(1−k)·cross-entropy + k·divergence on given text: SFT, SeqKD (no divergence) and KD (method.md §5).

    Args:
        student_logits: (B, T, V).
        tokens: (B, T) text to learn.
        teacher_logits: (B, T, V), needed for a divergence; no gradient flows into it.
        divergence: None for plain cross-entropy.
        weight: k.

    Returns:
        (B, T) loss per token.
    """
    student = log_softmax(student_logits)
    cross_entropy = -token_log_prob(student, tokens)
    if divergence is None:
        return cross_entropy
    if teacher_logits is None:
        raise ValueError(f"divergence {divergence} compares with the teacher: pass teacher_logits")
    teacher = log_softmax(teacher_logits.detach())
    return (1 - weight) * cross_entropy + weight * DIVERGENCES[divergence](student, teacher)
