"""Losses over the vocabulary, taken through the output head in chunks of tokens.

A tensor of tokens × vocabulary never exists: the logits of a chunk are made, used for value and gradient at once, and
their memory used again by the next. What leaves is per token; gradients leave as those of hidden states and head.

A chunk goes over the vocabulary three times (logits and normalisers, divergence, gradient and its two products), each
time block by block, so that on a CPU a block is still in cache for what is done with it next.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from minillm.models.output_head import OutputHead
from minillm.objectives.divergences import Functional, over_vocabulary

CHUNK_ENTRIES = 1 << 24
"""Logits of a chunk: 64 MB in float32; larger ones were little faster and take their multiple in memory."""
CHUNK_TOKENS = 1024
"""Tokens of a chunk at most, so that a block of a small vocabulary has more than a few entries."""
EVEN = 16
"""Tokens of a chunk are a multiple of this: vectors of processors are, and products of other sizes far slower."""


@dataclass(frozen=True)
class Teacher:
    """What the update needs from the teacher for N tokens: its hidden states, not its logits."""

    hidden: Tensor
    """(N, H_teacher)."""
    head: OutputHead
    log_normalizer: Tensor | None = None
    """log Σ exp(logits) (N,) where it is known since the rollout, which spares its exponentials."""


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
    chosen, _, log_normalizer = _token_logits(hidden, head, tokens, temperature)
    return chosen - log_normalizer, log_normalizer


@torch.no_grad()
def likeliest_log_probs(hidden: Tensor, head: OutputHead, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """log-probability of each token and of the likeliest one in its place, (N,) each; no gradient.

    The two are equal, bit by bit, where the token is the likeliest. Arguments as in `token_log_probs`.
    """
    chosen, highest, log_normalizer = _token_logits(hidden, head, tokens, 1.0)
    return chosen - log_normalizer, highest - log_normalizer


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
                torch.zeros_like(weight, dtype=wide) if ctx.needs_input_grad[1] else None,
                torch.zeros_like(bias, dtype=wide) if bias is not None and ctx.needs_input_grad[2] else None,
            )
        wholes = 1 + (work.functional is not None) + (work.head.soft_cap is not None)
        room = _Room(hidden, work.head, len(work.tokens), wholes, buffers=1)
        parts = [_Chunk(work, part, room).losses(gradients) for part in _chunks(len(work.tokens), work.head.vocabulary)]
        total, log_prob, divergence = (torch.cat(values) for values in zip(*parts, strict=True))
        if gradients is not None:
            of_weight = None if gradients.weight is None else gradients.weight.to(weight.dtype)
            ctx.save_for_backward(gradients.hidden, of_weight, gradients.bias)
        ctx.mark_non_differentiable(log_prob, divergence)
        return total.sum(), log_prob, divergence

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        scale = upstream[0]
        return *(None if kept is None else kept.mul_(scale.to(kept.dtype)) for kept in ctx.saved_tensors), None


@dataclass(frozen=True)
class _Gradients:
    """Of hidden states (N, H), head weight (R, H) and bias (R,); the latter two add up over chunks in float32.

    A frozen head has none.
    """

    hidden: Tensor
    weight: Tensor | None
    bias: Tensor | None


class _Room:
    """Memory for what a chunk has over the vocabulary, used again by every chunk."""

    def __init__(self, hidden: Tensor, head: OutputHead, tokens: int, wholes: int, buffers: int) -> None:
        tokens = min(tokens, _chunk_tokens(head.vocabulary))
        self.dtype = torch.promote_types(hidden.dtype, torch.float32)
        self.blocks = head.blocks(tokens)
        self._wholes = hidden.new_empty(wholes, head.vocabulary * tokens, dtype=self.dtype)
        self._buffers = hidden.new_empty(buffers, self.blocks[0].stop * tokens, dtype=self.dtype)

    def wholes(self, part: slice) -> list[Tensor]:
        """Over the whole vocabulary, (V, n) each, for a chunk of n tokens."""
        tokens = part.stop - part.start
        entries = self.blocks[-1].stop * tokens
        return [memory[:entries].view(-1, tokens) for memory in self._wholes]

    def buffers(self, part: slice, rows: slice) -> list[Tensor]:
        """Over r entries, (r, n) each."""
        tokens = part.stop - part.start
        return [memory[: (rows.stop - rows.start) * tokens].view(-1, tokens) for memory in self._buffers]


class _Chunk:
    """The n tokens of a slice of the work."""

    def __init__(self, work: _Work, part: slice, room: _Room) -> None:
        self.work, self.part, self.room = work, part, room
        self.hidden, self.tokens = work.hidden[part], work.tokens[part]
        wholes = room.wholes(part)
        self.student = wholes.pop()
        """(V, n): logits, and with a divergence then probabilities."""
        self.compared = None if work.functional is None else wholes.pop()
        """(V, n): the teacher's logits, then h."""
        self.slope = None if work.head.soft_cap is None else wholes.pop()
        """(V, n): derivative of the soft cap."""

    def losses(self, gradients: _Gradients | None) -> tuple[Tensor, Tensor, Tensor]:
        """Loss, log q(y_t) and divergence (n,); the gradients are added to `gradients`."""
        student_normalizer, teacher_normalizer = self._logits()
        log_prob = _at(self.student.t(), self.tokens) - student_normalizer
        divergence, h_sum = self._divergence(student_normalizer, teacher_normalizer)
        loss, c, w = _slopes(self.work.loss, self.part, log_prob, divergence, gradients is not None)
        if gradients is not None:
            self._gradient(gradients, student_normalizer, c, w, h_sum)
        return loss, log_prob, divergence

    def _logits(self) -> tuple[Tensor, Tensor | None]:
        """First time over the vocabulary: logits of both; their log-normalisers (n,)."""
        work, head, teacher = self.work, self.work.head, self.work.teacher
        student_normalizer, teacher_normalizer = _Normalizer(), _Normalizer()
        for rows in self.room.blocks:
            (buffer,) = self.room.buffers(self.part, rows)
            logits = head.block(self.hidden, rows, work.temperature, self.student[rows])
            if self.slope is not None and head.soft_cap is not None:
                scaled = torch.mul(logits.t(), work.temperature / head.soft_cap, out=self.slope[rows])
                scaled.square_().neg_().add_(1)
            student_normalizer.add(logits, buffer)
            if teacher is not None and self.compared is not None:
                logits = teacher.head.block(teacher.hidden[self.part], rows, work.temperature, self.compared[rows])
                if teacher.log_normalizer is None:
                    teacher_normalizer.add(logits, buffer)
        if teacher is None:
            return student_normalizer.log(), None
        known = teacher.log_normalizer
        return student_normalizer.log(), teacher_normalizer.log() if known is None else known[self.part]

    def _divergence(self, student_normalizer: Tensor, teacher_normalizer: Tensor | None) -> tuple[Tensor, Tensor]:
        """Second time: from logits to probabilities and h; D and Σh (n,)."""
        divergence, h_sum = torch.zeros(2, len(self.tokens), dtype=self.room.dtype, device=self.tokens.device)
        if self.work.functional is None or self.compared is None:
            return divergence, h_sum
        for rows in self.room.blocks:
            (buffer,) = self.room.buffers(self.part, rows)
            logits, teacher_log = self.student[rows].t(), self.compared[rows].t()
            student_log = torch.sub(logits, student_normalizer[:, None], out=buffer.t())
            student = torch.exp(student_log, out=logits)
            if teacher_normalizer is not None:
                teacher_log.sub_(teacher_normalizer[:, None])
            value, h = self.work.functional(student, student_log, teacher_log)
            divergence += value
            h_sum += over_vocabulary(torch.sum, h)
            if h.data_ptr() != teacher_log.data_ptr():
                teacher_log.copy_(h)
        return divergence, h_sum

    def _gradient(self, gradients: _Gradients, normalizer: Tensor, c: Tensor, w: Tensor, h_sum: Tensor) -> None:
        """Third time: gradients of the logits, and what they mean for hidden states, head and bias."""
        work, hidden = self.work, self.hidden
        weight = work.head.weight.detach()
        of_hidden = torch.zeros_like(hidden, dtype=self.room.dtype)
        for rows in self.room.blocks:
            gradient = self.student[rows].t()
            if self.compared is None:
                gradient.sub_(normalizer[:, None]).exp_().mul_(-c[:, None])
            else:
                gradient.mul_(-(c + w * h_sum)[:, None]).addcmul_(self.compared[rows].t(), w[:, None])
            inside, entry = _inside(self.tokens, rows)
            gradient.scatter_add_(1, entry[:, None], torch.where(inside, c, 0)[:, None])
            if work.temperature != 1.0:
                gradient.div_(work.temperature)
            if self.slope is not None:
                gradient.mul_(self.slope[rows].t())
            if gradients.bias is not None:
                gradients.bias[rows] += gradient.sum(dim=0)
            narrow = gradient.to(hidden.dtype)
            _add_product(of_hidden, narrow, weight[rows])
            if gradients.weight is not None:
                _add_product(gradients.weight[rows], narrow.t(), hidden)
        gradients.hidden[self.part] = of_hidden


def _token_logits(
    hidden: Tensor, head: OutputHead, tokens: Tensor, temperature: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Each token's logit, the highest logit in its place, and the log-normaliser, (N,) each."""
    parts = []
    room = _Room(hidden, head, len(tokens), wholes=0, buffers=2)
    for part in _chunks(len(tokens), head.vocabulary):
        chosen = torch.empty_like(tokens[part], dtype=room.dtype)
        normalizer = _Normalizer()
        for rows in room.blocks:
            buffers = room.buffers(part, rows)
            logits = head.block(hidden[part], rows, temperature, buffers[0])
            normalizer.add(logits, buffers[1])
            inside, entry = _inside(tokens[part], rows)
            chosen = torch.where(inside, _at(logits, entry), chosen)
        parts.append((chosen, normalizer.highest, normalizer.log()))
    chosen, highest, log_normalizer = (torch.cat(values) for values in zip(*parts, strict=True))
    return chosen, highest, log_normalizer


class _Normalizer:
    """log Σ exp(logits) of n tokens, added up over blocks of the vocabulary."""

    def __init__(self) -> None:
        self._highest: Tensor | None = None
        self._total: Tensor | None = None

    @property
    def highest(self) -> Tensor:
        """The highest logit (n,); at least one block has been added."""
        assert self._highest is not None
        return self._highest

    def add(self, logits: Tensor, buffer: Tensor) -> None:
        """Add a block's logits (n, r); `buffer` (r, n) is written over."""
        highest = over_vocabulary(torch.amax, logits)
        if self._highest is not None:
            highest = torch.maximum(highest, self._highest)
        total = over_vocabulary(torch.sum, torch.sub(logits, highest[:, None], out=buffer.t()).exp_())
        if self._highest is not None and self._total is not None:
            total += self._total * (self._highest - highest).exp()
        self._highest, self._total = highest, total

    def log(self) -> Tensor:
        """The log-normaliser (n,); at least one block has been added."""
        assert self._total is not None
        return self._total.log() + self.highest


def _add_product(target: Tensor, left: Tensor, right: Tensor) -> None:
    """Add left @ right, summed in the target's precision."""
    if left.dtype == target.dtype:
        target.addmm_(left, right)
    else:
        target += left @ right


@torch.enable_grad()
def _slopes(
    loss: PerTokenLoss, part: slice, log_prob: Tensor, divergence: Tensor, wanted: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The loss of each token and its two partial derivatives c and w."""
    terms = TokenTerms(log_prob.detach().requires_grad_(wanted), divergence.detach().requires_grad_(wanted))
    values = loss(terms, part)
    if not wanted:
        return values, log_prob, divergence
    log_prob_slope, divergence_slope = torch.autograd.grad(
        values.sum(), (terms.log_prob, terms.divergence), allow_unused=True, materialize_grads=True
    )
    return values.detach(), log_prob_slope, divergence_slope


def _inside(tokens: Tensor, rows: slice) -> tuple[Tensor, Tensor]:
    """Which tokens (n,) are among the entries of a block, and where in it; those that are not, anywhere."""
    entry = tokens - rows.start
    last = rows.stop - rows.start - 1
    return (entry >= 0) & (entry <= last), entry.clamp(0, last)


def _at(values: Tensor, tokens: Tensor) -> Tensor:
    return values.gather(-1, tokens[:, None]).squeeze(-1)


def _chunk_tokens(vocabulary: int) -> int:
    tokens = max(1, min(CHUNK_TOKENS, CHUNK_ENTRIES // vocabulary))
    return tokens // EVEN * EVEN or tokens


def _chunks(tokens: int, vocabulary: int) -> Iterator[slice]:
    size = _chunk_tokens(vocabulary)
    for start in range(0, tokens, size):
        yield slice(start, min(start + size, tokens))
