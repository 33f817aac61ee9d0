"""The policy gradient of MiniLLM as pure functions of per-token tensors (method.md §2).

All tensors are (B, T) over response tokens, with the mask passed in; nothing is deduced from token ids.
"""

from typing import Literal

import torch
from torch import Tensor

Credit = Literal["future", "inclusive", "token", "none"]


def importance_weight(student_log_prob: Tensor, teacher_log_prob: Tensor, teacher_mix: float) -> Tensor:
    """w_t = q(y_t)/p̃(y_t), p̃ = α·p + (1−α)·q: the per-token weight of paper eq. (6).

    Exactly 1 without mixing, and never above 1/(1−α).
    """
    if teacher_mix == 0.0:
        return torch.ones_like(student_log_prob)
    alpha = student_log_prob.new_tensor(teacher_mix)  # (), in the precision of the log-probabilities
    behaviour = torch.logaddexp(alpha.log() + teacher_log_prob, (1 - alpha).log() + student_log_prob)  # (B, T) log p̃
    return (student_log_prob - behaviour).exp()


def token_reward(
    student_log_prob: Tensor,
    teacher_log_prob: Tensor,
    scale: float = 1.0,
    clip: float | None = None,
) -> Tensor:
    """r_t = log p(y_t) − log q(y_t) (paper eq. 2).

    Args:
        student_log_prob: log q(y_t).
        teacher_log_prob: log p(y_t).
        scale: Divides the reward; 1 in the paper, 0.5 in the reference code.
        clip: Bound on its size after scaling; none in the paper, 100 in the reference code.
    """
    reward = (teacher_log_prob - student_log_prob) / scale
    return reward if clip is None else reward.clamp(-clip, clip)


def credited_return(
    reward: Tensor,
    mask: Tensor,
    credit: Credit = "future",
    length_normalization: bool = True,
    discount: float = 1.0,
) -> Tensor:
    """Return the rewards credited to each token, (B, T), zero where masked.

    future: R_{t+1} = Σ_{t'>t} γ^{t'−t−1} r_t', normalised R_{t+1}/(T−t−1) (paper eq. 7; zero at the last token).
    inclusive: R_t = Σ_{t'≥t} γ^{t'−t} r_t', normalised by the T−t tokens it sums (reference code).
    token: r_t alone (sampled-token on-policy distillation). none: zero (single-step only).
    """
    real = mask.to(reward.dtype)  # (B, T), 1 at real tokens
    reward = reward * real
    if credit == "none":
        return torch.zeros_like(reward)
    if credit == "token":
        return reward
    total, count = torch.zeros_like(reward), torch.zeros_like(reward)  # (B, T) each: the return, and how many it sums
    # Walk from the last token to the first, carrying what lies ahead; padding adds zero to both.
    ahead, ahead_count = torch.zeros_like(reward[:, 0]), torch.zeros_like(reward[:, 0])  # (B,) each
    for t in reversed(range(reward.shape[1])):
        if credit == "future":
            total[:, t], count[:, t] = ahead, ahead_count
        ahead = reward[:, t] + discount * ahead
        ahead_count = real[:, t] + ahead_count
        if credit == "inclusive":
            total[:, t], count[:, t] = ahead, ahead_count
    if length_normalization:
        total = total / count.clamp(min=1)  # nothing follows the last token: 0 / 1
    return total * real


def whitened(values: Tensor, mask: Tensor) -> Tensor:
    """Shift and scale to mean 0 and variance 1 over real tokens; zero where masked (a deviation, off by default)."""
    real = mask.to(values.dtype)
    count = real.sum()
    mean = (values * real).sum() / count  # (), over all rows together
    variance = ((values - mean).square() * real).sum() / count
    return (values - mean) * torch.rsqrt(variance + 1e-8) * real


def clipped_policy_loss(ratio: Tensor, advantage: Tensor, clip_range: float) -> Tensor:
    """−min(ρ·A, clip(ρ, 1−ε, 1+ε)·A) per token (PPO; method.md §2). No gradient flows into the advantage."""
    advantage = advantage.detach()
    return -torch.minimum(ratio * advantage, ratio.clamp(1 - clip_range, 1 + clip_range) * advantage)
