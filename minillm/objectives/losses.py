"""The distillation loss on rollouts: single-step term and clipped long-term term (paper eq. 8, Algorithm 1)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from minillm.config import Policy
from minillm.objectives.divergences import DIVERGENCES, KL, log_softmax, token_log_prob
from minillm.objectives.policy import clipped_policy_loss
from minillm.objectives.rollouts import Experience


@dataclass(frozen=True)
class RolloutLoss:
    """Per-token terms of the loss on rollouts, each (B, T); masking and averaging are the caller's."""

    single_step: Tensor
    long_term: Tensor
    divergence: Tensor
    """KL at each position without weights, for the log."""
    policy_ratio: Tensor
    """ρ_t, for the log."""


def rollout_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    tokens: Tensor,
    experience: Experience,
    policy: Policy,
    divergence: KL = "reverse_kl",
) -> RolloutLoss:
    """Both terms of MiniLLM's loss on a mini-batch of rollouts (method.md §2).

    The single-step term is w_t·KL[q(·|y_<t) ‖ p(·|y_<t)], exact over the vocabulary; the long-term term is
    −min(ρ_t A_t, clip(ρ_t) A_t) with A_t = w_t·R_t as credited. Differentiating their sum over tokens gives the
    estimator of ∇KL[q ‖ p] that the enumeration tests compare with autograd.

    Args:
        student_logits: (B, T, V), with gradient.
        teacher_logits: (B, T, V).
        tokens: Sampled tokens (B, T).
        experience: What was computed when they were sampled, (B, T) each.
        policy: The switches of method.md §4.
        divergence: Of the single-step term.
    """
    student = log_softmax(student_logits / policy.temperature)
    teacher = log_softmax(teacher_logits.detach() / policy.temperature)
    per_token = DIVERGENCES[divergence](student, teacher)
    weight = experience.importance_weight
    single_step = per_token * (weight if policy.weight_single_step else 1.0)
    ratio = (token_log_prob(student, tokens) - experience.student_log_prob).exp()
    if policy.clip_importance:
        long_term = clipped_policy_loss(ratio * weight, experience.credited_return, policy.clip_range)
    else:
        long_term = clipped_policy_loss(ratio, weight * experience.credited_return, policy.clip_range)
    if not policy.single_step:
        single_step = torch.zeros_like(single_step)
    return RolloutLoss(single_step, long_term, per_token.detach(), ratio.detach())
