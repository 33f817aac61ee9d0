"""Comparison of two next-token distributions: the entropy of each, and how many of the likeliest tokens they share."""

import torch
from torch import Tensor
from torch.distributions import Categorical

from minillm.models.output_head import OutputHead

TOP = 5
"""k of the top-k overlap."""
CHUNK_TOKENS = 64
"""Tokens whose logits of both models exist at once: 2 · 39 MB with the 152 K entries of Qwen2.5."""


@torch.no_grad()
def agreement(
    student_hidden: Tensor,
    student_head: OutputHead,
    teacher_hidden: Tensor,
    teacher_head: OutputHead,
    temperature: float,
) -> Tensor:
    """Return H(q), H(p) and the top-k overlap at N tokens, (N, 3) in float32.

    Args:
        student_hidden: (N, H), last hidden states that predict the tokens.
        student_head: The student's output head.
        teacher_hidden: (N, H_teacher).
        teacher_head: The teacher's output head.
        temperature: Divides the logits of both.
    """
    parts = [torch.empty(0, 3, device=student_hidden.device)]
    for start in range(0, len(student_hidden), CHUNK_TOKENS):
        part = slice(start, start + CHUNK_TOKENS)
        student = student_head.logits(student_hidden[part], temperature).contiguous()  # (n, V)
        teacher = teacher_head.logits(teacher_hidden[part], temperature).contiguous()  # (n, V)
        parts.append(torch.stack([entropy(student), entropy(teacher), top_overlap(student, teacher)], dim=1))
    return torch.cat(parts).float()


@torch.no_grad()
def entropies(hidden: Tensor, head: OutputHead) -> Tensor:
    """Return H(q) at N tokens, (N,) in float32, from last hidden states (N, H) and their head."""
    parts = hidden.split(CHUNK_TOKENS)
    return torch.cat([entropy(head.logits(part).contiguous()) for part in parts]).float()


def entropy(logits: Tensor) -> Tensor:
    """H = −Σ q·log q in nats, (N,), of q = softmax(logits), (N, V)."""
    return Categorical(logits=logits, validate_args=False).entropy()


def top_overlap(student_logits: Tensor, teacher_logits: Tensor, k: int = TOP) -> Tensor:
    """|top-k(q) ∩ top-k(p)| / k, (N,); k is at most the number of entries of the vocabulary."""
    k = min(k, student_logits.shape[-1])
    student, teacher = (logits.topk(k, dim=-1).indices for logits in (student_logits, teacher_logits))  # (N, k) each
    return (student[:, :, None] == teacher[:, None, :]).sum(dim=(1, 2)) / k
