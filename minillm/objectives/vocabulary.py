"""Losses over the vocabulary, taken through the output head in chunks of tokens.

A tensor of tokens × vocabulary never exists: the logits of a chunk are made, used for value and gradient at once, and
their memory used again by the next. What leaves is per token; gradients leave as those of hidden states and head.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from minillm.models.output_head import OutputHead
from minillm.objectives.divergences import Functional, over_vocabulary

CHUNK_ENTRIES = 1 << 23
"""Logits of a chunk: 32 MB in float32; larger ones were little faster and take their multiple in memory."""


@dataclass(frozen=True)
class Teacher:
    """What the update needs from the teacher for N tokens: its hidden states, not its logits."""

    hidden: Tensor
    """(N, H_teacher)."""
    head: OutputHead
    log_normalizer: Tensor | None = None
    """log Σ exp(logits) (N,) where it is known since the rollout, which spares a pass over the logits."""


@dataclass(frozen=True)
class TokenTerms:
    """What a loss is made of, for N tokens; no gradient flows through these."""

    log_prob: Tensor
    """log q(y_t) (N,)."""
    divergence: Tensor
    """D_t (N,); zero where no divergence is asked for."""


PerTokenLoss = Callable[[TokenTerms, slice], Tensor]
"""The loss (n,) of the tokens of a slice, from their terms: plain differentiable arithmetic on n numbers."""


@torch.no_grad()
def token_log_probs(
    hidden: Tensor, head: OutputHead, tokens: Tensor, temperature: float = 1.0
) -> tuple[Tensor, Tensor]:
    """log-probability of each token and the log-normaliser it was taken with, (N,) each; no gradient.

    Args:
        hidden: (N, H), that predict the tokens.
        head: Of the same model.
        tokens: (N,).
        temperature: Divides the logits.
    """
    log_prob, log_normalizer = [], []
    scratch = _Scratch(hidden, head.vocabulary, len(tokens), 2)
    for part in _chunks(len(tokens), head.vocabulary):
        room, other = scratch.of(part)
        logits = head.logits(hidden[part], temperature, room)
        log_normalizer.append(exponentials(logits, other.t())[2])
        log_prob.append(_at(logits, tokens[part]) - log_normalizer[-1])
    return torch.cat(log_prob), torch.cat(log_normalizer)


def exponentials(logits: Tensor, out: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """exp(logits − max) of each row (N, V), its sum (N,), and log Σ exp(logits) (N,)."""
    highest = over_vocabulary(torch.amax, logits)
    mass = torch.sub(logits, highest[:, None], out=out).exp_()
    total = over_vocabulary(torch.sum, mass)
    return mass, total, total.log() + highest


def head_loss(
    hidden: Tensor,
    head: OutputHead,
    tokens: Tensor,
    loss: PerTokenLoss,
    functional: Functional | None = None,
    teacher: Teacher | None = None,
    temperature: float = 1.0,
) -> tuple[Tensor, TokenTerms]:
    """Σ over tokens of any loss made of log q(y_t) and a divergence D_t, with gradient to hidden states and head.

    The two partial derivatives of `loss` per token, c = ∂/∂log q and w = ∂/∂D, are all that the vocabulary's gradient
    needs: ∂/∂z = w·h + c·onehot(y) − q·(w·Σh + c) with h of `minillm.objectives.divergences`.

    Args:
        hidden: Student's (N, H).
        head: Student's.
        tokens: y (N,).
        loss: From the terms of a slice of the tokens to a loss for each of them.
        functional: D; None where the loss needs log q(y_t) alone.
        teacher: Compared with; None where D needs none.
        temperature: Divides the logits of both.

    Returns:
        The loss, a scalar, and the terms of all tokens.
    """
    work = _Work(hidden.detach(), head, tokens, loss, functional, teacher, temperature)
    total, log_prob, divergence = _HeadLoss.apply(hidden, head.weight, head.bias, work)  # type: ignore[no-untyped-call]
    return total, TokenTerms(log_prob, divergence)


@dataclass(frozen=True)
class _Work:
    hidden: Tensor
    head: OutputHead
    tokens: Tensor
    loss: PerTokenLoss
    functional: Functional | None
    teacher: Teacher | None
    temperature: float


class _HeadLoss(torch.autograd.Function):
    """Values and gradients in one pass over the chunks; backward only scales what is there."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, work: _Work) -> tuple[Tensor, ...]:
        wide = torch.promote_types(hidden.dtype, torch.float32)
        gradients = None
        if any(ctx.needs_input_grad):
            gradients = _Gradients(
                torch.empty_like(hidden),
                torch.zeros_like(weight, dtype=wide),
                None if bias is None else torch.zeros_like(bias, dtype=wide),
            )
        scratch = _Scratch(hidden, work.head.vocabulary, len(work.tokens), 2 if work.teacher is None else 3)
        parts = [
            _chunk(work, part, scratch.of(part), gradients) for part in _chunks(len(work.tokens), work.head.vocabulary)
        ]
        total, log_prob, divergence = (torch.cat(values) for values in zip(*parts, strict=True))
        if gradients is not None:
            kept = gradients.hidden, gradients.weight.to(weight.dtype), gradients.bias
            ctx.save_for_backward(*kept)
        ctx.mark_non_differentiable(log_prob, divergence)
        return total.sum(), log_prob, divergence

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        scale = upstream[0]
        return *(None if kept is None else kept.mul_(scale.to(kept.dtype)) for kept in ctx.saved_tensors), None


@dataclass(frozen=True)
class _Gradients:
    """Of hidden states (N, H), head weight (R, H) and bias (R,); the latter two add up over chunks in float32."""

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None


class _Scratch:
    """Memory for a few tensors of vocabulary × tokens of a chunk, used again by every chunk."""

    def __init__(self, hidden: Tensor, vocabulary: int, tokens: int, tensors: int) -> None:
        size = min(tokens, _chunk_tokens(vocabulary))
        wide = torch.promote_types(hidden.dtype, torch.float32)
        self._memory = torch.empty(tensors, vocabulary * size, dtype=wide, device=hidden.device)
        self._vocabulary = vocabulary

    def of(self, part: slice) -> list[Tensor]:
        """The tensors (V, n) of a chunk of n tokens."""
        tokens = part.stop - part.start
        return [row[: self._vocabulary * tokens].view(self._vocabulary, tokens) for row in self._memory]


def _chunk(
    work: _Work, part: slice, scratch: list[Tensor], gradients: _Gradients | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Losses and terms (n,) of a chunk of n tokens; its gradients are added to `gradients`."""
    hidden, head, tokens = work.hidden[part], work.head, work.tokens[part]
    student_log = head.logits(hidden, work.temperature, scratch[0])
    slope = None if head.soft_cap is None else 1 - (student_log * (work.temperature / head.soft_cap)).square_()
    student, total, log_normalizer = exponentials(student_log, scratch[1].t())
    student.mul_(total.reciprocal()[:, None])
    student_log.sub_(log_normalizer[:, None])
    log_prob = _at(student_log, tokens)
    if work.functional is None:
        divergence, h = torch.zeros_like(log_prob), None
    else:
        teacher_log = student_log if work.teacher is None else _teacher_log(work.teacher, part, work, scratch[2])
        divergence, h = work.functional(student, student_log, teacher_log)
    loss, log_prob_slope, divergence_slope = _slopes(work.loss, part, log_prob, divergence, gradients is not None)
    if gradients is not None:
        gradient = student  # ∂loss/∂z (n, V), written over the probabilities
        if h is None:
            gradient.mul_(-log_prob_slope[:, None])
        else:
            gradient.mul_(-(log_prob_slope + divergence_slope * over_vocabulary(torch.sum, h))[:, None])
            gradient.addcmul_(h, divergence_slope[:, None])
        gradient[torch.arange(len(tokens)), tokens] += log_prob_slope
        if work.temperature != 1.0:
            gradient.div_(work.temperature)
        _add(gradients, part, gradient if slope is None else gradient.mul_(slope), hidden, head)
    return loss, log_prob, divergence


def _add(gradients: _Gradients, part: slice, gradient: Tensor, hidden: Tensor, head: OutputHead) -> None:
    """Add the gradients of a chunk whose logits have the gradient (n, V)."""
    rows = head.vocabulary
    if gradients.bias is not None:
        gradients.bias[:rows] += gradient.sum(dim=0)
    gradient = gradient.to(hidden.dtype)
    torch.mm(gradient, head.weight.detach()[:rows], out=gradients.hidden[part])
    if hidden.dtype == gradients.weight.dtype:
        gradients.weight[:rows].addmm_(gradient.t(), hidden)
    else:
        gradients.weight[:rows] += gradient.t() @ hidden


def _teacher_log(teacher: Teacher, part: slice, work: _Work, out: Tensor) -> Tensor:
    """The teacher's log-probabilities (n, V)."""
    logits = teacher.head.logits(teacher.hidden[part], work.temperature, out)
    normalizer = exponentials(logits)[2] if teacher.log_normalizer is None else teacher.log_normalizer[part]
    return logits.sub_(normalizer[:, None])


@torch.enable_grad()
def _slopes(
    loss: PerTokenLoss, part: slice, log_prob: Tensor, divergence: Tensor, wanted: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The loss of each token and its two partial derivatives."""
    terms = TokenTerms(log_prob.detach().requires_grad_(wanted), divergence.detach().requires_grad_(wanted))
    values = loss(terms, part)
    if not wanted:
        return values, log_prob, divergence
    log_prob_slope, divergence_slope = torch.autograd.grad(
        values.sum(), (terms.log_prob, terms.divergence), allow_unused=True, materialize_grads=True
    )
    return values.detach(), log_prob_slope, divergence_slope


def _at(values: Tensor, tokens: Tensor) -> Tensor:
    return values.gather(-1, tokens[:, None]).squeeze(-1)


def _chunk_tokens(vocabulary: int) -> int:
    return max(1, CHUNK_ENTRIES // vocabulary)


def _chunks(tokens: int, vocabulary: int) -> Iterator[slice]:
    size = _chunk_tokens(vocabulary)
    for start in range(0, tokens, size):
        yield slice(start, min(start + size, tokens))
