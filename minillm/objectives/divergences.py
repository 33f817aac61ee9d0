"""Functionals of the next-token distributions: the value of each, and its gradient in closed form (method.md §2, §5).

A functional D(q) of the student's probabilities q = softmax(z) has ∂D/∂z = h − q·Σh with h = q ⊙ ∂D/∂q. Each function
here gives D and h, so the pass that computes a loss also has its gradient, and no graph over the vocabulary is kept.
A constant in ∂D/∂q adds a multiple of q to h, which that formula cancels, and is left out.

To add a divergence, write its function here and its name in `minillm.config.method.Divergence`; tests name the rest.
"""

import functools
import math
from collections.abc import Callable

import torch
from torch import Tensor

Functional = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
"""(student probabilities, student log-probabilities, teacher log-probabilities), (N, V) each, to (D (N,), h (N, V)).

The log-probabilities may be written over. V is the vocabulary, or a part of it (see `UNDIVIDED`).
"""


def forward_kl(student: Tensor, student_log: Tensor, teacher_log: Tensor) -> tuple[Tensor, Tensor]:
    """KL[p ‖ q]: the loss of word-level KD (method.md §5). h = −p."""
    teacher = teacher_log.exp()
    return _dot(teacher, teacher_log - student_log), teacher.neg_()


def reverse_kl(student: Tensor, student_log: Tensor, teacher_log: Tensor) -> tuple[Tensor, Tensor]:
    """KL[q ‖ p]: the single-step term (paper §2.2). h = q·(log q − log p)."""
    h = torch.sub(student_log, teacher_log, out=teacher_log).mul_(student)
    return over_vocabulary(torch.sum, h), h


def skewed_forward_kl(
    student: Tensor, student_log: Tensor, teacher_log: Tensor, *, skew: float
) -> tuple[Tensor, Tensor]:
    """KL[p ‖ m], m = λp + (1−λ)q, λ the skew (DistiLLM, arXiv 2402.03898, eq. 3). h = −(1−λ)·q·p/m."""
    mixture_log = _log_mixture(teacher_log, student_log, skew)
    teacher = teacher_log.exp()
    h = (teacher_log - mixture_log).exp_().mul_(student).mul_(skew - 1)
    return _dot(teacher, teacher_log - mixture_log), h


def skewed_reverse_kl(
    student: Tensor, student_log: Tensor, teacher_log: Tensor, *, skew: float
) -> tuple[Tensor, Tensor]:
    """KL[q ‖ m], m = λq + (1−λ)p, λ the skew (DistiLLM, arXiv 2402.03898, eq. 4). h = q·(log q − log m − λ·q/m)."""
    ratio_log = student_log - _log_mixture(student_log, teacher_log, skew)
    return _dot(student, ratio_log), (ratio_log - skew * ratio_log.exp()).mul_(student)


def jensen_shannon(student: Tensor, student_log: Tensor, teacher_log: Tensor, *, beta: float) -> tuple[Tensor, Tensor]:
    """β·KL[p ‖ m] + (1−β)·KL[q ‖ m], m = βp + (1−β)q (GKD, arXiv 2306.13649, eq. 1). h = (1−β)·q·(log q − log m)."""
    mixture_log = _log_mixture(teacher_log, student_log, beta)
    h = (student_log - mixture_log).mul_(student).mul_(1 - beta)
    return beta * _dot(teacher_log.exp(), teacher_log - mixture_log) + over_vocabulary(torch.sum, h), h


def total_variation(student: Tensor, student_log: Tensor, teacher_log: Tensor) -> tuple[Tensor, Tensor]:
    """½·Σ|p − q|. h = ½·q·sign(q − p)."""
    difference = student - teacher_log.exp()
    return 0.5 * over_vocabulary(torch.sum, difference.abs()), difference.sign_().mul_(student).mul_(0.5)


def adaptive_kl(student: Tensor, student_log: Tensor, teacher_log: Tensor, *, head: float) -> tuple[Tensor, Tensor]:
    """g·KL[p ‖ q] + (1 − g)·KL[q ‖ p] with g the share of Σ|p − q| that falls on the teacher's head (arXiv 2404.02657).

    The head is the smallest set of the likeliest tokens with a probability of at least μ (`head`). g is a constant to
    the gradient. h = −g·p + (1 − g)·q·(log q − log p).
    """
    teacher = teacher_log.exp()
    gap = (teacher - student).abs_()
    ordered, order = teacher.sort(dim=-1, descending=True)
    before = ordered.cumsum(dim=-1) - ordered  # probability of the likelier tokens
    in_head = torch.zeros_like(teacher, dtype=torch.bool).scatter_(-1, order, before < head)
    total = over_vocabulary(torch.sum, gap).clamp_min(torch.finfo(gap.dtype).tiny)  # (N,)
    share = over_vocabulary(torch.sum, gap * in_head) / total  # (N,)
    forward, forward_h = _dot(teacher, teacher_log - student_log), teacher.neg_()
    reverse, reverse_h = reverse_kl(student, student_log, teacher_log)
    rest = 1 - share
    return share * forward + rest * reverse, forward_h.mul_(share[:, None]).add_(reverse_h.mul_(rest[:, None]))


def entropy(student: Tensor, student_log: Tensor, teacher_log: Tensor) -> tuple[Tensor, Tensor]:
    """−Σ q·log q; no teacher enters. h = −q·log q."""
    h = (student * student_log).neg_()
    return over_vocabulary(torch.sum, h), h


UNDIVIDED = frozenset({adaptive_kl})
"""Functions that need the whole vocabulary at once; the others add up over any parts of it."""


def functional(name: str, **parameters: float) -> Functional:
    """Return the function of this module that a configuration names, with its parameters filled in.

    Args:
        name: One of the functions above.
        parameters: `skew` (λ), `beta` (β) or `head` (μ), where the function has it.

    Raises:
        KeyError: No such name.
    """
    return functools.partial(globals()[name], **parameters)


def over_vocabulary(operation: Callable[[Tensor, int], Tensor], values: Tensor) -> Tensor:
    """Reduce (N, V), laid out in memory as (V, N), to (N,)."""
    columns = values.t()  # (V, N)
    # Fold 64 entries into one row first: torch reduces few long rows far faster than many short ones.
    side_by_side = 64
    whole = len(columns) // side_by_side * side_by_side
    if not whole:
        return operation(columns, 0)
    folded = operation(columns[:whole].reshape(-1, side_by_side * len(values)), 0).view(-1, len(values))  # (64, N)
    return operation(torch.cat([folded, columns[whole:]]), 0)


def _dot(left: Tensor, right: Tensor) -> Tensor:
    return over_vocabulary(torch.sum, left * right)


def _log_mixture(first_log: Tensor, second_log: Tensor, share: float) -> Tensor:
    """log(share·first + (1 − share)·second)."""
    return torch.logaddexp(first_log + math.log(share), second_log + math.log1p(-share))
