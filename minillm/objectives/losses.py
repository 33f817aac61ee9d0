"""Losses per token, made of log q(y_t) and a divergence D_t (paper eq. 8, Algorithm 1; method.md §2 and §5).

Pure arithmetic on (N,) tensors; sums over the vocabulary are in `minillm.objectives.vocabulary`.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from minillm.objectives.experience import Experience
from minillm.objectives.policy import clipped_policy_loss
from minillm.objectives.vocabulary import TokenTerms


def fixed_text_loss(terms: TokenTerms, divergence_weight: float | Tensor) -> Tensor:
    """Return (1−k)·cross-entropy + k·divergence on given text: SFT and SeqKD (k = 0), KD (method.md §5).

    Args:
        terms: Terms at N tokens.
        divergence_weight: k, from 0 to 1, of all tokens or of each (N,).

    Returns:
        (N,) loss per token.
    """
    return divergence_weight * terms.divergence - (1 - divergence_weight) * terms.log_prob


def confidence_weight(student_log_prob: Tensor, teacher_log_prob: Tensor, even: float) -> Tensor:
    """Return k_t = k·p(y_t) / (k·p(y_t) + (1−k)·q(y_t)), the weight of the divergence at each token (method.md §5).

    SLIM's public description says that the surer model of the two has the larger weight. This formula is ours.

    Args:
        student_log_prob: log q(y_t), (N,); no gradient flows through the weight.
        teacher_log_prob: log p(y_t), (N,).
        even: k, the weight where both are equally sure; between 0 and 1.
    """
    return torch.sigmoid(teacher_log_prob - student_log_prob.detach() + math.log(even / (1 - even)))


@dataclass(frozen=True)
class RolloutLoss:
    """Terms of the loss on rollouts at N tokens, (N,) each."""

    single_step: Tensor
    long_term: Tensor
    policy_ratio: Tensor
    """ρ_t, for the log."""


def rollout_loss(
    terms: TokenTerms,
    experience: Experience,
    *,
    clip_range: float,
    clip_importance: bool,
    single_step: bool,
    weight_single_step: bool,
) -> RolloutLoss:
    """Return both terms of MiniLLM's loss on rollouts (method.md §2).

    The single-step term is w_t·D_t with D_t = KL[q(·|y_<t) ‖ p(·|y_<t)], exact over the vocabulary; the long-term term
    is −min(ρ_t A_t, clip(ρ_t) A_t) with A_t = w_t·R_t as credited. Differentiating their sum over tokens gives the
    estimator of ∇KL[q ‖ p] that the enumeration tests compare with autograd.

    Args:
        terms: Terms at N sampled tokens, under the current student.
        experience: Values of the same tokens under the student that sampled them, (N,) each.
        clip_range: ε of the clip.
        clip_importance: Clip ρ·w instead of ρ (the reference code's choice, method.md §4).
        single_step: Add the single-step term; without it, it is zero.
        weight_single_step: Weight the single-step term by w_t.
    """
    weight = experience.importance_weight  # (N,)
    ratio = (terms.log_prob - experience.student_log_prob).exp()  # (N,), 1 before the first update of a round
    if clip_importance:  # where w ≠ 1 this clips at the first step already
        long_term = clipped_policy_loss(ratio * weight, experience.credited_return, clip_range)
    else:
        long_term = clipped_policy_loss(ratio, weight * experience.credited_return, clip_range)
    if not single_step:
        return RolloutLoss(torch.zeros_like(long_term), long_term, ratio)
    return RolloutLoss(terms.divergence * (weight if weight_single_step else 1.0), long_term, ratio)
