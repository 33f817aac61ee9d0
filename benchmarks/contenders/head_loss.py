"""The loss through the head alone: the gradients in closed form, or those that autograd makes of a plain loss."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear
from torch.utils.checkpoint import checkpoint

from benchmarks.protocol import serve
from minillm.models.output_head import OutputHead
from minillm.objectives.divergences import reverse_kl
from minillm.objectives.terms import Teacher
from minillm.objectives.vocabulary import head_loss, token_log_probs

CHUNK = 256
"""Tokens of a chunk where autograd takes the gradients: as many logits as fit into a few 100 MB."""


def make_step(settings: dict[str, Any]) -> Callable[[], dict[str, float]]:
    """Return the step: loss and gradients of hidden states and head, by `settings["by"]`."""
    generator = torch.Generator().manual_seed(1)
    dtype, vocabulary, tokens = getattr(torch, settings["dtype"]), settings["vocabulary"], settings["tokens"]

    def normal(*shape: int, scale: float) -> Tensor:
        return (scale * torch.randn(shape, generator=generator)).to(dtype)

    student, teacher = settings["width"], settings["teacher_width"]
    hidden = normal(tokens, student, scale=1.0).requires_grad_()  # (N, H)
    weight = normal(vocabulary, student, scale=student**-0.5).requires_grad_()  # (V, H)
    teacher_hidden, teacher_weight = (
        normal(tokens, teacher, scale=1.0),
        normal(vocabulary, teacher, scale=teacher**-0.5),
    )
    chosen = torch.randint(vocabulary, (tokens,), generator=generator)
    teacher_head = OutputHead(teacher_weight, None, vocabulary)
    compared = Teacher(teacher_hidden, teacher_head, token_log_probs(teacher_hidden, teacher_head, chosen)[1])

    def plain(part: slice) -> Tensor:
        student_log = linear(hidden[part], weight).float().log_softmax(-1)  # (n, V)
        teacher_log = linear(teacher_hidden[part], teacher_weight).float().log_softmax(-1)
        divergence = (student_log.exp() * (student_log - teacher_log)).sum(-1)
        return (divergence - student_log.gather(-1, chosen[part, None])[:, 0]).sum()

    def step() -> dict[str, float]:
        if settings["by"] == "closed form":
            head = OutputHead(weight, None, vocabulary)
            loss, _ = head_loss(
                hidden, head, chosen, lambda terms, part: terms.divergence - terms.log_prob, reverse_kl, compared
            )
            loss.backward()
            value = loss.item()
        else:
            value = 0.0
            for start in range(0, tokens, CHUNK):
                part = slice(start, start + CHUNK)
                loss = checkpoint(plain, part, use_reentrant=False) if settings["by"] == "checkpoint" else plain(part)
                loss.backward()
                value += loss.item()
        norm = weight.grad.float().norm().item() + hidden.grad.float().norm().item()  # type: ignore[union-attr]
        hidden.grad = weight.grad = None
        return {"loss": value, "gradient_norm": norm}

    return step


if __name__ == "__main__":
    serve(make_step)
