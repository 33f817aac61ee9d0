"""Losses computed through the head in chunks, against plain autograd over whole logits."""

from typing import get_args

import pytest
import torch

from minillm.config import Divergence
from minillm.models import output_head
from minillm.models.output_head import OutputHead
from minillm.objectives import fused_head
from minillm.objectives.divergences import entropy, functional, reverse_kl
from minillm.objectives.terms import Teacher
from minillm.objectives.vocabulary import head_loss, likeliest_log_probs, token_log_probs

TOKENS, WIDTH, TEACHER_WIDTH, VOCABULARY, PADDED_ROWS = 23, 6, 9, 17, 20
SKEW, BETA, HEAD = 0.3, 0.7, 0.6
PARAMETERS = {
    "skewed_forward_kl": {"skew": SKEW},
    "skewed_reverse_kl": {"skew": SKEW},
    "jensen_shannon": {"beta": BETA},
    "adaptive_kl": {"head": HEAD},
}
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}


def kl(left, right):
    return (left * (left.log() - right.log())).sum(dim=-1)


def adaptive_kl(q, p):
    shares = []
    for student, teacher in zip(q.detach(), p, strict=True):
        order, head = teacher.argsort(descending=True).tolist(), []
        while teacher[head].sum() < HEAD:
            head.append(order.pop(0))
        gap = (teacher - student).abs()
        shares.append(gap[head].sum() / gap.sum())
    share = torch.stack(shares)
    return share * kl(p, q) + (1 - share) * kl(q, p)


# The definitions, written with probabilities and differentiated by autograd: q the student's, p the teacher's.
DEFINITIONS = {
    "forward_kl": lambda q, p: kl(p, q),
    "reverse_kl": lambda q, p: kl(q, p),
    "skewed_forward_kl": lambda q, p: kl(p, SKEW * p + (1 - SKEW) * q),
    "skewed_reverse_kl": lambda q, p: kl(q, SKEW * q + (1 - SKEW) * p),
    "jensen_shannon": lambda q, p: (
        BETA * kl(p, BETA * p + (1 - BETA) * q) + (1 - BETA) * kl(q, BETA * p + (1 - BETA) * q)
    ),
    "total_variation": lambda q, p: (p - q).abs().sum(dim=-1) / 2,
    "adaptive_kl": adaptive_kl,
    "entropy": lambda q, p: -(q * q.log()).sum(dim=-1),
    "cross_entropy": None,
}


def random_head(generator, width, dtype, bias, soft_cap, rows=PADDED_ROWS):
    weight = torch.randn(rows, width, generator=generator, dtype=dtype).requires_grad_()
    added = torch.randn(rows, generator=generator, dtype=dtype).requires_grad_() if bias else None
    return OutputHead(weight, added, VOCABULARY, soft_cap)


def plain_logits(hidden, head):
    logits = hidden @ head.weight.t()
    if head.bias is not None:
        logits = logits + head.bias
    if head.soft_cap is not None:
        logits = head.soft_cap * torch.tanh(logits / head.soft_cap)
    return logits[:, :VOCABULARY]


@pytest.fixture(autouse=True)
def several_chunks(monkeypatch):
    monkeypatch.setattr(fused_head, "CHUNK_ENTRIES", 5 * VOCABULARY)  # chunks of five tokens, the last of three
    monkeypatch.setattr(output_head, "CPU_BLOCK", 5 * 4)  # blocks of four entries, the last of one


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("bias", "soft_cap", "temperature"), [(False, None, 1.0), (True, 2.0, 0.7)])
@pytest.mark.parametrize("name", [*sorted({*get_args(Divergence)} - {"preference"}), "entropy"])
def test_values_and_gradients_are_those_of_autograd(name, bias, soft_cap, temperature, dtype):
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(TOKENS, WIDTH, generator=generator, dtype=dtype).requires_grad_()
    head = random_head(generator, WIDTH, dtype, bias, soft_cap)
    teacher_head = random_head(generator, TEACHER_WIDTH, dtype, bias, None, rows=VOCABULARY + 1)
    teacher_hidden = torch.randn(TOKENS, TEACHER_WIDTH, generator=generator, dtype=dtype)
    tokens = torch.randint(VOCABULARY, (TOKENS,), generator=generator)
    weights = torch.rand(2, TOKENS, generator=generator, dtype=dtype)

    def loss(log_prob, divergence, part):
        return weights[0, part] * divergence - weights[1, part] * torch.tanh(log_prob) * log_prob

    teacher_logits = plain_logits(teacher_hidden, teacher_head).detach() / temperature
    teacher = Teacher(teacher_hidden, teacher_head, torch.logsumexp(teacher_logits, dim=-1))
    without_teacher = {"entropy": entropy, "cross_entropy": None}
    got, terms = head_loss(
        hidden,
        head,
        tokens,
        lambda terms, part: loss(terms.log_prob, terms.divergence, part),
        without_teacher[name] if name in without_teacher else functional(name, **PARAMETERS.get(name, {})),
        None if name in without_teacher else teacher,
        temperature,
    )

    student = torch.log_softmax(plain_logits(hidden, head) / temperature, dim=-1)
    log_prob = student.gather(1, tokens[:, None]).squeeze(1)
    definition = DEFINITIONS[name]
    divergence = definition(student.exp(), teacher_logits.softmax(dim=-1)) if definition else torch.zeros_like(log_prob)
    want = loss(log_prob, divergence, slice(None)).sum()

    def assert_close(got, want):
        torch.testing.assert_close(got, want, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])

    assert_close(terms.log_prob, log_prob)
    assert_close(terms.divergence, divergence)
    assert_close(got, want)
    learnt = [hidden, head.weight] if head.bias is None else [hidden, head.weight, head.bias]
    wanted_gradients = torch.autograd.grad(3 * want, learnt)
    for gradient, wanted in zip(torch.autograd.grad(3 * got, learnt), wanted_gradients, strict=True):
        assert_close(gradient, wanted)
    assert (wanted_gradients[1][VOCABULARY:] == 0).all()


def test_tied_embeddings_get_the_gradient_of_both_uses():
    generator = torch.Generator().manual_seed(2)
    weight = torch.randn(VOCABULARY, WIDTH, generator=generator, dtype=torch.float64).requires_grad_()
    tokens = torch.randint(VOCABULARY, (TOKENS,), generator=generator)
    head = OutputHead(weight, None, VOCABULARY)
    got, _ = head_loss(torch.tanh(weight[tokens.roll(1)]), head, tokens, lambda terms, part: -terms.log_prob)
    want = torch.nn.functional.cross_entropy(torch.tanh(weight[tokens.roll(1)]) @ weight.t(), tokens, reduction="sum")
    torch.testing.assert_close(*(torch.autograd.grad(loss, weight) for loss in (got, want)))


def test_log_probs_and_normaliser():
    generator = torch.Generator().manual_seed(3)
    head = random_head(generator, WIDTH, torch.float64, True, 3.0)
    hidden = torch.randn(TOKENS, WIDTH, generator=generator, dtype=torch.float64)
    tokens = torch.randint(VOCABULARY, (TOKENS,), generator=generator)
    log_prob, log_normalizer = token_log_probs(hidden, head, tokens, temperature=0.5)
    logits = plain_logits(hidden, head) / 0.5
    torch.testing.assert_close(log_normalizer, torch.logsumexp(logits, dim=-1))
    torch.testing.assert_close(log_prob, torch.log_softmax(logits, dim=-1).gather(1, tokens[:, None]).squeeze(1))


def test_the_likeliest_token_and_whether_it_is_the_given_one():
    generator = torch.Generator().manual_seed(6)
    head = random_head(generator, WIDTH, torch.float32, True, 3.0)
    hidden = torch.randn(TOKENS, WIDTH, generator=generator)
    want = torch.log_softmax(plain_logits(hidden, head), dim=-1)
    likeliest = want.argmax(dim=-1)
    tokens = torch.where(torch.arange(TOKENS) % 2 == 0, likeliest, torch.randint(VOCABULARY, (TOKENS,)))
    log_prob, highest = likeliest_log_probs(hidden, head, tokens)
    torch.testing.assert_close(log_prob, token_log_probs(hidden, head, tokens)[0], rtol=0, atol=0)
    torch.testing.assert_close(highest, want.amax(dim=-1))
    assert (log_prob == highest).tolist() == (tokens == likeliest).tolist()


def test_the_teacher_may_have_no_normaliser_at_hand():
    generator = torch.Generator().manual_seed(4)
    hidden = torch.randn(TOKENS, WIDTH, generator=generator, dtype=torch.float64).requires_grad_()
    head, teacher_head = (random_head(generator, width, torch.float64, False, None) for width in (WIDTH, TEACHER_WIDTH))
    teacher_hidden = torch.randn(TOKENS, TEACHER_WIDTH, generator=generator, dtype=torch.float64)
    tokens = torch.randint(VOCABULARY, (TOKENS,), generator=generator)
    normaliser = token_log_probs(teacher_hidden, teacher_head, tokens)[1]
    kept, made = (
        head_loss(
            hidden,
            head,
            tokens,
            lambda terms, part: terms.divergence,
            reverse_kl,
            Teacher(teacher_hidden, teacher_head, known),
        )[0]
        for known in (normaliser, None)
    )
    torch.testing.assert_close(kept, made)


def test_half_precision_is_close_and_sums_its_gradient_in_single():
    generator = torch.Generator().manual_seed(5)
    hidden = torch.randn(400, 32, generator=generator)
    weight = 0.1 * torch.randn(VOCABULARY, 32, generator=generator)
    tokens = torch.randint(VOCABULARY, (400,), generator=generator)
    gradients = []
    for dtype in (torch.bfloat16, torch.float32):
        states, rows = hidden.to(dtype).requires_grad_(), weight.to(dtype).requires_grad_()
        loss, terms = head_loss(states, OutputHead(rows, None, VOCABULARY), tokens, lambda terms, part: -terms.log_prob)
        assert terms.log_prob.dtype == torch.float32
        gradients.append(torch.autograd.grad(loss, rows)[0].float())
    relative = (gradients[0] - gradients[1]).norm() / gradients[1].norm()
    assert relative < 0.01


def test_no_gradient_is_made_where_none_is_wanted():
    head = OutputHead(torch.randn(VOCABULARY, WIDTH).requires_grad_(), None, VOCABULARY)
    with torch.no_grad():
        loss, _ = head_loss(torch.randn(4, WIDTH), head, torch.zeros(4, dtype=torch.long), lambda t, part: -t.log_prob)
    assert not loss.requires_grad
