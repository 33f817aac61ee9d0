"""Values computed once per round of rollouts: reward, importance weight and credited return (Algorithm 1)."""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from minillm.objectives.policy import Credit, credited_return, importance_weight, token_reward, whitened


@dataclass(frozen=True)
class Experience:
    """Per-token values of rollouts under the student that sampled them, (N, T), zero at padding."""

    student_log_prob: Tensor  # log q(y_t)
    teacher_log_prob: Tensor  # log p(y_t)
    importance_weight: Tensor  # w_t
    credited_return: Tensor  # R_t, as credited
    mask: Tensor  # bool, True at real tokens

    def of(self, rows: Sequence[int], device: torch.device) -> "Experience":
        """Return the values of the n real tokens of some rows, row after row, (n,) each."""
        chosen = list(rows)
        real = self.mask[chosen]  # (rows, T)
        return Experience(*(getattr(self, f.name)[chosen][real].to(device) for f in fields(self)))

    def part(self, chosen: slice) -> "Experience":
        """Return a slice along the first dimension."""
        return Experience(*(getattr(self, f.name)[chosen] for f in fields(self)))


def make_experience(
    student_log_prob: Tensor,
    teacher_log_prob: Tensor,
    responses: Sequence[Sequence[int]],
    *,
    teacher_mix: float,
    credit: Credit,
    discount: float,
    length_normalization: bool,
    reward_scale: float,
    reward_clip: float | None,
    whiten: bool,
) -> Experience:
    """Compute importance weight and credited return of a round, once, before its inner epochs (Algorithm 1).

    Args:
        student_log_prob: log q(y_t) under the sampling student, (N, T).
        teacher_log_prob: log p(y_t), (N, T).
        responses: N lists of token ids; their lengths give the mask.
        teacher_mix: α, share of the teacher in the distribution that the tokens were sampled from.
        credit: Which rewards a token is credited with (see `credited_return`).
        discount: γ of the return.
        length_normalization: Divide the return by the number of rewards that it sums.
        reward_scale: Divides the reward.
        reward_clip: Bound on the size of a scaled reward; None for no bound.
        whiten: Shift and scale the returns to mean 0 and variance 1 over all tokens.
    """
    lengths = torch.tensor([len(r) for r in responses])  # (N,)
    mask = torch.arange(student_log_prob.shape[1]) < lengths[:, None]  # (N, T)
    reward = token_reward(student_log_prob, teacher_log_prob, reward_scale, reward_clip) * mask
    returns = credited_return(reward, mask, credit, length_normalization, discount)
    if whiten:
        returns = whitened(returns, mask)
    weight = importance_weight(student_log_prob, teacher_log_prob, teacher_mix) * mask
    return Experience(student_log_prob, teacher_log_prob, weight, returns, mask)
