"""Functionals of the next-token distributions: what each is, and its gradient in closed form (method.md §2, §5).

A functional D(q) of the student's probabilities q = softmax(z) has ∂D/∂z = h − q·Σh with h = q ⊙ ∂D/∂q. Each function
here gives D and h, so the pass that computes a loss also has its gradient, and no graph over the vocabulary is kept.
A constant in ∂D/∂q adds a multiple of q to h, which that formula cancels, and is left out.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

Functional = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
"""(student probabilities, student log-probabilities, teacher log-probabilities), (N, V) each, to (D (N,), h (N, V)).

The log-probabilities may be written over.
"""


def forward_kl(student: Tensor, student_log: Tensor, teacher_log: Tensor) -> tuple[Tensor, Tensor]:
    """KL[p ‖ q]: the loss of word-level KD (method.md §5). h = −p."""
    teacher = teacher_log.exp()
    return _dot(teacher, teacher_log - student_log), teacher.neg_()


def reverse_kl(student: Tensor, student_log: Tensor, teacher_log: Tensor) -> tuple[Tensor, Tensor]:
    """KL[q ‖ p]: the single-step term (paper §2.2). h = q·(log q − log p)."""
    h = torch.sub(student_log, teacher_log, out=teacher_log).mul_(student)
    return over_vocabulary(torch.sum, h), h


def skewed_forward_kl(skew: float) -> Functional:
    """KL[p ‖ λp + (1−λ)q], λ the skew (DistiLLM, arXiv 2402.03898, eq. 3). h = −(1−λ)·q·p/m."""

    def divergence(student: Tensor, student_log: Tensor, teacher_log: Tensor) -> tuple[Tensor, Tensor]:
        mixture_log = _log_mixture(teacher_log, student_log, skew)
        teacher = teacher_log.exp()
        h = (teacher_log - mixture_log).exp_().mul_(student).mul_(skew - 1)
        return _dot(teacher, teacher_log - mixture_log), h

    return divergence


def skewed_reverse_kl(skew: float) -> Functional:
    """KL[q ‖ λq + (1−λ)p], λ the skew (DistiLLM, arXiv 2402.03898, eq. 4). h = q·(log q − log m − λ·q/m)."""

    def divergence(student: Tensor, student_log: Tensor, teacher_log: Tensor) -> tuple[Tensor, Tensor]:
        ratio_log = student_log - _log_mixture(student_log, teacher_log, skew)
        return _dot(student, ratio_log), (ratio_log - skew * ratio_log.exp()).mul_(student)

    return divergence


def jensen_shannon(beta: float) -> Functional:
    """β·KL[p ‖ m] + (1−β)·KL[q ‖ m], m = βp + (1−β)q (GKD, arXiv 2306.13649, eq. 1). h = (1−β)·q·(log q − log m)."""

    def divergence(student: Tensor, student_log: Tensor, teacher_log: Tensor) -> tuple[Tensor, Tensor]:
        mixture_log = _log_mixture(teacher_log, student_log, beta)
        h = (student_log - mixture_log).mul_(student).mul_(1 - beta)
        return beta * _dot(teacher_log.exp(), teacher_log - mixture_log) + over_vocabulary(torch.sum, h), h

    return divergence


def entropy(student: Tensor, student_log: Tensor, teacher_log: Tensor) -> tuple[Tensor, Tensor]:
    """−Σ q·log q; no teacher enters. h = −q·log q."""
    h = (student * student_log).neg_()
    return over_vocabulary(torch.sum, h), h


def functional(name: str, skew: float, beta: float) -> Functional:
    """A divergence by its name in the configuration.

    Args:
        name: One of the functions of this module.
        skew: λ of the skewed ones.
        beta: β of jensen_shannon.

    Raises:
        KeyError: No such name.
    """
    return {
        "forward_kl": forward_kl,
        "reverse_kl": reverse_kl,
        "skewed_forward_kl": skewed_forward_kl(skew),
        "skewed_reverse_kl": skewed_reverse_kl(skew),
        "jensen_shannon": jensen_shannon(beta),
    }[name]


def over_vocabulary(operation: Callable[[Tensor, int], Tensor], values: Tensor) -> Tensor:
    """Reduce (N, V), laid out as (V, N), to (N,): first many entries side by side, which torch does far faster."""
    columns = values.t()
    side_by_side = 64
    whole = len(columns) // side_by_side * side_by_side
    if not whole:
        return operation(columns, 0)
    folded = operation(columns[:whole].reshape(-1, side_by_side * len(values)), 0).view(-1, len(values))
    return operation(torch.cat([folded, columns[whole:]]), 0)


def _dot(left: Tensor, right: Tensor) -> Tensor:
    return over_vocabulary(torch.sum, left * right)


def _log_mixture(first_log: Tensor, second_log: Tensor, share: float) -> Tensor:
    """log(share·first + (1 − share)·second)."""
    return torch.logaddexp(first_log + math.log(share), second_log + math.log1p(-share))
