"""Forward KL to a teacher known at some entries, through the head in chunks, against its definition and autograd."""

import pytest
import torch

from minillm.models import output_head
from minillm.models.output_head import OutputHead
from minillm.objectives import fused_head
from minillm.objectives.sparse import SparseTeacher
from minillm.objectives.vocabulary import head_loss
from tests.minillm.test_vocabulary import TOKENS, TOLERANCE, VOCABULARY, WIDTH, plain_logits, random_head


@pytest.fixture(autouse=True)
def several_chunks(monkeypatch):
    monkeypatch.setattr(fused_head, "CHUNK_ENTRIES", 5 * VOCABULARY)  # chunks of five tokens, the last of three
    monkeypatch.setattr(output_head, "CPU_BLOCK", 5 * 4)  # blocks of four entries, the last of one


def ragged(teacher, counts):
    """Keep the likeliest entries of (N, V) probabilities, another number of them at each token."""
    probability, entries = teacher.sort(dim=1, descending=True)
    width = int(counts.max())
    kept = torch.arange(width) < counts[:, None]
    entries = torch.where(kept, entries[:, :width], entries[:, :1])
    probability = probability[:, :width].masked_fill(~kept, 0)
    tail = (1 - probability.sum(dim=1)).clamp(min=0).masked_fill(counts == VOCABULARY, 0)
    entropy = -(torch.xlogy(probability, probability).sum(dim=1) + torch.xlogy(tail, tail))
    return SparseTeacher(entries, kept, probability, tail, entropy, torch.zeros(len(teacher)))


def bucketed(student, sparse):
    """D by its definition, from all of the student's probabilities (N, V)."""
    value = -sparse.entropy
    for place in range(sparse.entries.shape[1]):
        at = student.gather(1, sparse.entries[:, place : place + 1]).squeeze(1)
        value = value - sparse.probability[:, place] * at.log()
    inside = torch.zeros_like(student).scatter(1, sparse.entries, 1.0).detach()
    tail = (student * (1 - inside)).sum(dim=1)
    return value - torch.where(sparse.tail > 0, sparse.tail * tail.clamp(min=1e-30).log(), 0.0)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("bias", "soft_cap", "temperature"), [(False, None, 1.0), (True, 2.0, 0.7)])
def test_values_and_gradients_are_those_of_autograd(bias, soft_cap, temperature, dtype):
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(TOKENS, WIDTH, generator=generator, dtype=dtype).requires_grad_()
    head = random_head(generator, WIDTH, dtype, bias, soft_cap)
    tokens = torch.randint(VOCABULARY, (TOKENS,), generator=generator)
    weights = torch.rand(2, TOKENS, generator=generator, dtype=dtype)
    teacher = torch.randn(TOKENS, VOCABULARY, generator=generator, dtype=dtype).softmax(dim=-1)
    sparse = ragged(teacher, 1 + torch.arange(TOKENS) % VOCABULARY)  # from one entry to all of them

    def loss(log_prob, divergence, part):
        return weights[0, part] * divergence - weights[1, part] * torch.tanh(log_prob) * log_prob

    got, terms = head_loss(
        hidden,
        head,
        tokens,
        lambda terms, part: loss(terms.log_prob, terms.divergence, part),
        teacher=sparse,
        temperature=temperature,
    )
    student = torch.log_softmax(plain_logits(hidden, head) / temperature, dim=-1)
    log_prob = student.gather(1, tokens[:, None]).squeeze(1)
    divergence = bucketed(student.exp(), sparse)
    want = loss(log_prob, divergence, slice(None)).sum()

    def assert_close(got, want):
        torch.testing.assert_close(got, want, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])

    whole = sparse.kept.all(dim=1)
    full = (teacher * (teacher.log() - student)).sum(dim=1)
    assert whole.any()
    assert_close(divergence[whole], full[whole])
    assert (divergence[~whole] <= full[~whole] + TOLERANCE[dtype]).all(), "joining entries to a bucket loses divergence"
    assert_close(terms.log_prob, log_prob)
    assert_close(terms.divergence, divergence)
    assert_close(got, want)
    learnt = [hidden, head.weight] if head.bias is None else [hidden, head.weight, head.bias]
    for gradient, wanted in zip(
        torch.autograd.grad(3 * got, learnt), torch.autograd.grad(3 * want, learnt), strict=True
    ):
        assert_close(gradient, wanted)


def test_a_student_without_a_tail_gets_finite_gradients():
    """In float32 a sure student's probabilities of the tail are all zero, whatever the teacher's are."""
    weight = torch.zeros(VOCABULARY, 1)
    weight[0] = 200.0
    hidden = torch.ones(1, 1, requires_grad=True)
    teacher = ragged(torch.full((1, VOCABULARY), 1 / VOCABULARY), torch.tensor([1]))
    head = OutputHead(weight.requires_grad_(), None, VOCABULARY)
    loss, _ = head_loss(hidden, head, torch.zeros(1, dtype=torch.long), lambda t, part: t.divergence, teacher=teacher)
    assert torch.isfinite(torch.stack([loss, *(g.sum() for g in torch.autograd.grad(loss, [hidden, weight]))])).all()
