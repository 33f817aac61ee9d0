"""Forward KL to a teacher of which some entries are known, as value and gradient in closed form (method.md §5)."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class SparseTeacher:
    """The teacher at N tokens: probabilities of at most K entries each, and that of all other entries together."""

    entries: Tensor  # (N, K) int64
    """Different entries; places beyond a token's number of them repeat its first."""
    kept: Tensor  # (N, K) bool
    """False at places beyond a token's number of entries."""
    probability: Tensor  # (N, K)
    """p at the entries, or an estimate that adds up to 1; zero where nothing is kept."""
    tail: Tensor  # (N,)
    """p of all other entries together; 0 where the probabilities are estimates."""
    entropy: Tensor  # (N,)
    """H in KL = cross-entropy − H: that of entries and tail or, for estimates, the teacher's own."""
    token_log_prob: Tensor  # (N,)
    """log p(y_t) of the token that follows in the text."""

    def part(self, part: slice) -> "SparseTeacher":
        """Return the teacher at some of the tokens."""
        return SparseTeacher(*(values[part] for values in vars(self).values()))


@dataclass(frozen=True)
class SparseDivergence:
    """D = −H − Σ p·log q − p_tail·log q_tail at n tokens, and what its gradient needs.

    With h = q ⊙ ∂D/∂q as in `minillm.objectives.divergences`: h = −p at the entries, and h = −(p_tail/q_tail)·q
    elsewhere, since the tail is one bucket.
    """

    value: Tensor  # (n,)
    student: Tensor  # (n, K), q at the entries
    h: Tensor  # (n, K), at the entries
    h_sum: Tensor  # (n,), over the whole vocabulary
    tail_ratio: Tensor  # (n,), p_tail/q_tail


def forward_kl(teacher: SparseTeacher, student_log: Tensor, student_tail: Tensor) -> SparseDivergence:
    """KL[p ‖ q] over the entries and one bucket for the rest; for estimates of p, an unbiased estimate of it.

    Args:
        teacher: At n tokens.
        student_log: log q at the teacher's entries, (n, K).
        student_tail: q of all other entries together, (n,).
    """
    probability, tail = (values.to(student_log.dtype) for values in (teacher.probability, teacher.tail))
    # A tail too small for its precision counts as the smallest number, so that its logarithm is finite.
    student_tail = student_tail.clamp(min=torch.finfo(student_tail.dtype).tiny)
    cross_entropy = -(probability * student_log).sum(dim=1) - tail * student_tail.log()
    return SparseDivergence(
        value=cross_entropy - teacher.entropy,
        student=student_log.exp(),
        h=-probability,
        h_sum=-(probability.sum(dim=1) + tail),
        tail_ratio=tail / student_tail,
    )
