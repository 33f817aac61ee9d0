"""Rounds of on-policy rollouts: responses from p̃ with reward, weight and return computed once (Algorithm 1)."""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from minillm.config import Policy
from minillm.models.batches import Batch, make_batch
from minillm.models.causal_lm import response_logits
from minillm.objectives.divergences import log_softmax, token_log_prob
from minillm.objectives.policy import credited_return, importance_weight, token_reward, whiten


@dataclass(frozen=True)
class Experience:
    """Per-token values of rollouts under the student that sampled them, (N, T), zero at padding."""

    student_log_prob: Tensor
    teacher_log_prob: Tensor
    importance_weight: Tensor
    credited_return: Tensor
    mask: Tensor

    def rows(self, chosen: Sequence[int], width: int, device: torch.device) -> "Experience":
        """Some rows, cut to the width of their own batch."""
        return Experience(*(getattr(self, f.name)[list(chosen), :width].to(device) for f in fields(self)))


@torch.no_grad()
def token_log_probs(model: torch.nn.Module, batch: Batch, vocabulary: int, temperature: float) -> Tensor:
    """The log-probability of each response token (B, T) from one full forward pass, zero at padding."""
    log_probs = log_softmax(response_logits(model, batch, vocabulary) / temperature)
    return token_log_prob(log_probs, batch.response) * batch.response_mask


def score_rollouts(
    student: torch.nn.Module,
    teacher: torch.nn.Module,
    prompts: Sequence[Sequence[int]],
    responses: Sequence[Sequence[int]],
    vocabulary: int,
    temperature: float,
    micro_batch_size: int,
) -> tuple[Tensor, Tensor]:
    """The log-probabilities log q(y_t) and log p(y_t) of sampled responses, each (N, T) on the CPU, zero at padding.

    Args:
        student: The model that sampled, before any update.
        teacher: The frozen teacher.
        prompts: N token lists.
        responses: N token lists.
        vocabulary: Entries of the tokenizer.
        temperature: Of sampling.
        micro_batch_size: Rows per forward pass.
    """
    width = max(len(r) for r in responses)
    weights = next(student.parameters())
    dtype, device = torch.promote_types(weights.dtype, torch.float32), weights.device
    student_log_prob, teacher_log_prob = torch.zeros(2, len(responses), width, dtype=dtype)
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]) + len(responses[i]))
    for start in range(0, len(order), micro_batch_size):
        rows = order[start : start + micro_batch_size]
        batch = make_batch([prompts[i] for i in rows], [responses[i] for i in rows]).to(device)
        columns = batch.response.shape[1]
        student_log_prob[rows, :columns] = token_log_probs(student, batch, vocabulary, temperature).cpu()
        teacher_log_prob[rows, :columns] = token_log_probs(teacher, batch, vocabulary, temperature).cpu()
    return student_log_prob, teacher_log_prob


def make_experience(
    student_log_prob: Tensor, teacher_log_prob: Tensor, responses: Sequence[Sequence[int]], policy: Policy
) -> Experience:
    """Reward, importance weight and credited return of a round, once, before its inner epochs (Algorithm 1).

    Args:
        student_log_prob: log q(y_t) under the sampling student, (N, T).
        teacher_log_prob: log p(y_t), (N, T).
        responses: N token lists, which give the mask.
        policy: The switches of method.md §4.
    """
    lengths = torch.tensor([len(r) for r in responses])
    mask = torch.arange(student_log_prob.shape[1]) < lengths[:, None]
    reward = token_reward(student_log_prob, teacher_log_prob, policy.reward_scale, policy.reward_clip) * mask
    returns = credited_return(reward, mask, policy.credit, policy.length_normalization, policy.discount)
    if policy.whiten_advantages:
        returns = whiten(returns, mask)
    weight = importance_weight(student_log_prob, teacher_log_prob, policy.teacher_mix) * mask
    return Experience(student_log_prob, teacher_log_prob, weight, returns, mask)
