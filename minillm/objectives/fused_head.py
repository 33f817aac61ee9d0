"""Read this only to make it faster: values and gradients of losses over the vocabulary, chunk by chunk.

The logits of a chunk of tokens are made, used for value and gradient at once, and their memory is used again by the
next chunk. A chunk goes over the vocabulary three times (logits and normalisers; divergence; gradient and its two
products), each time block by block, so that on a CPU a block is still in cache for what is done with it next.

N is the number of tokens, n that of a chunk; V the vocabulary, r the entries of a block; H the width. Tensors over the
vocabulary lie in memory as (V, n), entries first: few tokens and many entries multiply and sum faster that way around.

Why not let autograd differentiate a plain loss of each chunk? The single-step loss and its gradients then take 2.7 s
instead of 1.9 s, and 4.1 s under torch.utils.checkpoint (512 tokens × 50,257 entries, H = 768, teacher 1024, float32,
one CPU thread).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from minillm.models.output_head import OutputHead
from minillm.objectives.divergences import UNDIVIDED, Functional, over_vocabulary
from minillm.objectives.sparse import SparseDivergence, SparseTeacher, forward_kl
from minillm.objectives.terms import PerTokenLoss, Teacher, TokenTerms

CHUNK_ENTRIES = 1 << 24
"""Logits of a chunk: 64 MB in float32. Larger chunks were little faster and take their multiple in memory."""
CHUNK_TOKENS = 1024
"""Most tokens of a chunk, so that a block of a small vocabulary has more than a few entries."""
MULTIPLE = 16
"""Tokens of a chunk are a multiple of this: vector registers are, and products of other sizes are far slower."""


def fused_head_loss(
    hidden: Tensor,
    head: OutputHead,
    tokens: Tensor,
    loss: PerTokenLoss,
    functional: Functional | None,
    teacher: Teacher | SparseTeacher | None,
    temperature: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the summed loss (a scalar, with gradient), log q(y_t) and D_t (N,); arguments as in `head_loss`."""
    work = _Work(hidden.detach(), head, tokens, loss, functional, teacher, temperature)
    return _HeadLoss.apply(hidden, head.weight, head.bias, work)  # type: ignore[no-untyped-call]


def token_logits(hidden: Tensor, head: OutputHead, tokens: Tensor, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return each token's logit, the highest logit in its place, and the log-normaliser, (N,) each."""
    parts = []
    workspace = _Workspace(hidden, head, len(tokens), vocabulary=0, block=2)
    for part in _chunks(len(tokens), head.vocabulary):
        chosen = torch.empty_like(tokens[part], dtype=workspace.dtype)  # (n,), filled by the block that has the token
        normalizer = _Normalizer()
        for rows in workspace.blocks:
            out, scratch = workspace.block(part, rows)  # (r, n) each
            logits = head.block(hidden[part], rows, temperature, out)  # (n, r), a view of `out`
            normalizer.add(logits, scratch)
            inside, entry = _inside(tokens[part], rows)
            chosen = torch.where(inside, _at(logits, entry), chosen)
        parts.append((chosen, normalizer.highest, normalizer.log()))
    chosen, highest, log_normalizer = (torch.cat(values) for values in zip(*parts, strict=True))
    return chosen, highest, log_normalizer


@dataclass(frozen=True)
class _Work:
    """Arguments of `head_loss`, past autograd, which would look for tensors among them."""

    hidden: Tensor  # (N, H), detached
    head: OutputHead
    tokens: Tensor  # (N,)
    loss: PerTokenLoss
    functional: Functional | None
    teacher: Teacher | SparseTeacher | None
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
        needed = 1 + (work.functional is not None) + (work.head.soft_cap is not None)
        workspace = _Workspace(hidden, work.head, len(work.tokens), vocabulary=needed, block=1)
        chunks = _chunks(len(work.tokens), work.head.vocabulary)
        parts = [_TokenChunk(work, part, workspace).losses(gradients) for part in chunks]
        total, log_prob, divergence = (torch.cat(values) for values in zip(*parts, strict=True))  # (N,) each
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
    """Gradients of one head; None for a frozen weight or bias. Those of weight and bias add up over chunks."""

    hidden: Tensor  # (N, H), in the model's precision
    weight: Tensor | None  # (R, H), R ≥ V, in float32 at least
    bias: Tensor | None  # (R,), in float32 at least


class _Workspace:
    """Memory for a chunk's tensors over the vocabulary, used again by every chunk."""

    def __init__(self, hidden: Tensor, head: OutputHead, tokens: int, vocabulary: int, block: int) -> None:
        """Allocate `vocabulary` tensors of a whole vocabulary and `block` tensors of one block."""
        tokens = min(tokens, _chunk_tokens(head.vocabulary))
        self.dtype = torch.promote_types(hidden.dtype, torch.float32)
        self.blocks = head.blocks(tokens)
        self._vocabulary = hidden.new_empty(vocabulary, head.vocabulary * tokens, dtype=self.dtype)
        self._block = hidden.new_empty(block, self.blocks[0].stop * tokens, dtype=self.dtype)

    def vocabulary(self, part: slice) -> list[Tensor]:
        """Tensors (V, n) for the n tokens of a chunk."""
        tokens = part.stop - part.start
        entries = self.blocks[-1].stop * tokens
        return [memory[:entries].view(-1, tokens) for memory in self._vocabulary]

    def block(self, part: slice, rows: slice) -> list[Tensor]:
        """Tensors (r, n) for the n tokens of a chunk and the r entries of a block."""
        tokens = part.stop - part.start
        return [memory[: (rows.stop - rows.start) * tokens].view(-1, tokens) for memory in self._block]


class _TokenChunk:
    """The n tokens of a slice of the work."""

    def __init__(self, work: _Work, part: slice, workspace: _Workspace) -> None:
        self.work, self.part, self.workspace = work, part, workspace
        self.hidden, self.tokens = work.hidden[part], work.tokens[part]  # (n, H), (n,)
        free = workspace.vocabulary(part)
        self.student = free.pop()
        """(V, n): logits, then with a divergence probabilities."""
        self.compared = None if work.functional is None else free.pop()
        """(V, n): the teacher's logits, then h."""
        self.slope = None if work.head.soft_cap is None else free.pop()
        """(V, n): derivative of the soft cap."""
        self.sparse = work.teacher.part(part) if isinstance(work.teacher, SparseTeacher) else None

    def losses(self, gradients: _Gradients | None) -> tuple[Tensor, Tensor, Tensor]:
        """Return loss, log q(y_t) and divergence, (n,) each; write this chunk's gradients into `gradients`."""
        student_normalizer, teacher_normalizer = self._logits()
        log_prob = _at(self.student.t(), self.tokens) - student_normalizer  # before logits become probabilities
        sparse = None if self.sparse is None else self._sparse_divergence(self.sparse, student_normalizer)
        if sparse is None:
            divergence, h_sum = self._divergence(student_normalizer, teacher_normalizer)
        else:
            divergence, h_sum = sparse.value, sparse.h_sum
        loss, c, w = _slopes(self.work.loss, self.part, log_prob, divergence, gradients is not None)
        if gradients is not None:
            if self.sparse is not None and sparse is not None:
                self._sparse_gradient(self.sparse, sparse, c, w)
            self._gradient(gradients, student_normalizer, c, w, h_sum)
        return loss, log_prob, divergence

    def _logits(self) -> tuple[Tensor, Tensor | None]:
        """First time over the vocabulary: make the logits of both models; return their log-normalisers (n,)."""
        work, head, teacher = self.work, self.work.head, self.work.teacher
        student_normalizer, teacher_normalizer = _Normalizer(), _Normalizer()
        for rows in self.workspace.blocks:
            (scratch,) = self.workspace.block(self.part, rows)  # (r, n)
            logits = head.block(self.hidden, rows, work.temperature, self.student[rows])  # (n, r)
            if self.slope is not None and head.soft_cap is not None:
                # d/dx c·tanh(x/c) = 1 − tanh², and tanh is the capped logit over c.
                scaled = torch.mul(logits.t(), work.temperature / head.soft_cap, out=self.slope[rows])
                scaled.square_().neg_().add_(1)
            student_normalizer.add(logits, scratch)
            if isinstance(teacher, Teacher) and self.compared is not None:
                logits = teacher.head.block(teacher.hidden[self.part], rows, work.temperature, self.compared[rows])
                if teacher.log_normalizer is None:
                    teacher_normalizer.add(logits, scratch)
        if not isinstance(teacher, Teacher):
            return student_normalizer.log(), None
        known = teacher.log_normalizer
        return student_normalizer.log(), teacher_normalizer.log() if known is None else known[self.part]

    def _divergence(self, student_normalizer: Tensor, teacher_normalizer: Tensor | None) -> tuple[Tensor, Tensor]:
        """Second time: turn logits into probabilities and h; return D and Σh, (n,) each."""
        divergence, h_sum = torch.zeros(2, len(self.tokens), dtype=self.workspace.dtype, device=self.tokens.device)
        if self.work.functional is None or self.compared is None:
            return divergence, h_sum
        undivided = getattr(self.work.functional, "func", self.work.functional) in UNDIVIDED
        for rows in [slice(0, len(self.student))] if undivided else self.workspace.blocks:
            (scratch,) = [torch.empty_like(self.student)] if undivided else self.workspace.block(self.part, rows)
            logits, teacher_log = self.student[rows].t(), self.compared[rows].t()  # (n, r) each
            student_log = torch.sub(logits, student_normalizer[:, None], out=scratch.t())
            student = torch.exp(student_log, out=logits)  # in place: the logits are not needed again
            if teacher_normalizer is not None:
                teacher_log.sub_(teacher_normalizer[:, None])
            value, h = self.work.functional(student, student_log, teacher_log)  # (n,), (n, r)
            divergence += value
            h_sum += over_vocabulary(torch.sum, h)
            if h.data_ptr() != teacher_log.data_ptr():  # unless the functional wrote h over its argument
                teacher_log.copy_(h)
        return divergence, h_sum

    def _sparse_divergence(self, teacher: SparseTeacher, normalizer: Tensor) -> SparseDivergence:
        """Second time, of a teacher known at some entries: turn logits into probabilities, 0 at these entries."""
        logits = self.student.t()  # (n, V)
        student_log = logits.gather(1, teacher.entries) - normalizer[:, None]  # (n, K)
        logits.scatter_(1, teacher.entries, -torch.inf)
        tail = torch.zeros_like(normalizer)  # summed itself, as 1 − Σ q at the entries would be all rounding if small
        for rows in self.workspace.blocks:
            tail += over_vocabulary(torch.sum, self.student[rows].t().sub_(normalizer[:, None]).exp_())
        return forward_kl(teacher, student_log, tail)

    def _sparse_gradient(self, teacher: SparseTeacher, divergence: SparseDivergence, c: Tensor, w: Tensor) -> None:
        """Turn probabilities into the gradient of the logits, but for c·onehot(y); arguments as in `_gradient`."""
        shared = w * divergence.h_sum + c  # (n,)
        gradient = self.student.t().mul_(-(shared + w * divergence.tail_ratio)[:, None])  # (n, V), 0 at the entries
        at_entries = w[:, None] * divergence.h - divergence.student * shared[:, None]  # (n, K)
        gradient.scatter_add_(1, teacher.entries, at_entries.masked_fill(~teacher.kept, 0.0))

    def _gradient(self, gradients: _Gradients, normalizer: Tensor, c: Tensor, w: Tensor, h_sum: Tensor) -> None:
        """Third time: make the gradient of the logits, and from it those of hidden states, head and bias.

        Args:
            gradients: Added to; the rows of this chunk's hidden states are written.
            normalizer: Student's log-normaliser (n,).
            c: ∂loss/∂log q(y_t) (n,).
            w: ∂loss/∂D (n,).
            h_sum: Σh (n,).
        """
        work, hidden = self.work, self.hidden
        weight = work.head.weight.detach()  # (R, H)
        of_hidden = torch.zeros_like(hidden, dtype=self.workspace.dtype)  # (n, H)
        for rows in self.workspace.blocks:
            gradient = self.student[rows].t()  # (n, r), written over
            if self.sparse is not None:
                pass  # made for all entries at once, as a token's entries lie anywhere
            elif self.compared is None:  # still logits: −c·q
                gradient.sub_(normalizer[:, None]).exp_().mul_(-c[:, None])
            else:  # already q: w·h − q·(w·Σh + c)
                gradient.mul_(-(c + w * h_sum)[:, None]).addcmul_(self.compared[rows].t(), w[:, None])
            inside, entry = _inside(self.tokens, rows)
            gradient.scatter_add_(1, entry[:, None], torch.where(inside, c, 0)[:, None])  # + c·onehot(y)
            if work.temperature != 1.0:
                gradient.div_(work.temperature)
            if self.slope is not None:
                gradient.mul_(self.slope[rows].t())
            if gradients.bias is not None:
                gradients.bias[rows] += gradient.sum(dim=0)
            narrow = gradient.to(hidden.dtype)  # products in the model's precision, sums in float32
            _add_product(of_hidden, narrow, weight[rows])
            if gradients.weight is not None:
                _add_product(gradients.weight[rows], narrow.t(), hidden)
        gradients.hidden[self.part] = of_hidden


class _Normalizer:
    """log Σ exp(logits) of n tokens, added up over blocks of the vocabulary."""

    def __init__(self) -> None:
        self._highest: Tensor | None = None  # (n,)
        self._total: Tensor | None = None  # (n,), Σ exp(logits − highest)

    @property
    def highest(self) -> Tensor:
        """The highest logit (n,); at least one block has been added."""
        assert self._highest is not None
        return self._highest

    def add(self, logits: Tensor, scratch: Tensor) -> None:
        """Add a block's logits (n, r); `scratch` (r, n) is written over."""
        highest = over_vocabulary(torch.amax, logits)
        if self._highest is not None:
            highest = torch.maximum(highest, self._highest)
        total = over_vocabulary(torch.sum, torch.sub(logits, highest[:, None], out=scratch.t()).exp_())
        if self._highest is not None and self._total is not None:
            total += self._total * (self._highest - highest).exp()  # the blocks before, measured from the new highest
        self._highest, self._total = highest, total

    def log(self) -> Tensor:
        """Return the log-normaliser (n,); at least one block has been added."""
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
    """Return the loss of each token and its partial derivatives c and w, (n,) each; without `wanted` no derivatives."""
    terms = TokenTerms(log_prob.detach().requires_grad_(wanted), divergence.detach().requires_grad_(wanted))
    values = loss(terms, part)
    if not wanted:
        return values, log_prob, divergence
    # Each loss depends on its own token's terms alone, so the gradient of the sum has every token's derivatives.
    log_prob_slope, divergence_slope = torch.autograd.grad(
        values.sum(), (terms.log_prob, terms.divergence), allow_unused=True, materialize_grads=True
    )
    return values.detach(), log_prob_slope, divergence_slope


def _inside(tokens: Tensor, rows: slice) -> tuple[Tensor, Tensor]:
    """Return a mask (n,) of the tokens in a block, and their places in it (n,); of other tokens any valid place."""
    entry = tokens - rows.start
    last = rows.stop - rows.start - 1
    return (entry >= 0) & (entry <= last), entry.clamp(0, last)


def _at(values: Tensor, tokens: Tensor) -> Tensor:
    """Return the entry of each token (n,) in its row of (n, r)."""
    return values.gather(-1, tokens[:, None]).squeeze(-1)


def _chunk_tokens(vocabulary: int) -> int:
    tokens = max(1, min(CHUNK_TOKENS, CHUNK_ENTRIES // vocabulary))
    return tokens // MULTIPLE * MULTIPLE or tokens


def _chunks(tokens: int, vocabulary: int) -> Iterator[slice]:
    size = _chunk_tokens(vocabulary)
    for start in range(0, tokens, size):
        yield slice(start, min(start + size, tokens))
