"""The estimator of ∇KL[q ‖ p] against autograd through every response (method.md §2), in float64 without noise."""

import itertools

import pytest
import torch
from torch import Tensor

from minillm.config import Policy
from minillm.models import output_head
from minillm.objectives import fused_head
from minillm.objectives.divergences import reverse_kl
from minillm.objectives.experience import Experience
from minillm.objectives.terms import Teacher, TokenTerms
from minillm.objectives.vocabulary import head_loss
from minillm.training.rounds import policy_experience, policy_loss
from tests.minillm.tiny import EOS, LIMIT, VOCABULARY, PrefixModel, every_response

TOKENS, MASK = every_response()
STUDENT, TEACHER = PrefixModel(1), PrefixModel(2)


def log_probs_of(model: PrefixModel) -> Tensor:
    return torch.log_softmax(model.logits(TOKENS), dim=-1).gather(-1, TOKENS[..., None]).squeeze(-1) * MASK


def exact_gradient(student: PrefixModel) -> list[Tensor]:
    student_log_prob = log_probs_of(student).sum(dim=1)
    teacher_log_prob = log_probs_of(TEACHER).sum(dim=1).detach()
    kl = (student_log_prob.exp() * (student_log_prob - teacher_log_prob)).sum()
    return list(torch.autograd.grad(kl, list(student.parameters())))


def behaviour_probability(policy: Policy) -> Tensor:
    """Return the probability of every response under p̃, mixed token by token."""
    alpha = policy.teacher_mix
    mixed = alpha * log_probs_of(TEACHER).exp() + (1 - alpha) * log_probs_of(STUDENT).exp()
    return torch.where(MASK, mixed, torch.ones_like(mixed)).prod(dim=1).detach()


def experience_of(policy: Policy) -> Experience:
    responses = [row[: int(n)].tolist() for row, n in zip(TOKENS, MASK.sum(dim=1), strict=True)]
    return policy_experience(log_probs_of(STUDENT).detach(), log_probs_of(TEACHER).detach(), responses, policy)


def estimator_gradient(policy: Policy, experience: Experience, student: PrefixModel = STUDENT) -> list[Tensor]:
    """Return the expectation over p̃ of the gradient of the training loss, through the head in chunks."""
    real = experience.of(range(len(TOKENS)), torch.device("cpu"))
    probability = behaviour_probability(policy)[:, None].expand_as(MASK)[MASK]

    def per_token(terms: TokenTerms, part: slice) -> Tensor:
        loss = policy_loss(terms, real.part(part), policy)
        return probability[part] * (loss.single_step + loss.long_term)

    teacher = Teacher(TEACHER.hidden(TOKENS)[MASK].detach(), TEACHER.output_head())
    loss, _ = head_loss(
        student.hidden(TOKENS)[MASK], student.output_head(), TOKENS[MASK], per_token, reverse_kl, teacher
    )
    return list(torch.autograd.grad(loss, list(student.parameters())))


@pytest.fixture(autouse=True)
def several_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused_head, "CHUNK_ENTRIES", 7 * VOCABULARY)
    monkeypatch.setattr(output_head, "CPU_BLOCK", 7 * 2)


def relative_error(got: list[Tensor], want: list[Tensor]) -> float:
    difference = torch.cat([(g - w).flatten() for g, w in zip(got, want, strict=True)])
    return float(difference.norm() / torch.cat([w.flatten() for w in want]).norm())


def unclipped(**switches: object) -> Policy:
    unread = {"none": ("clip_range", "length_normalization"), "token": ("length_normalization",)}
    free = {"clip_range": 1e9, "length_normalization": False}
    for name in unread.get(str(switches.get("credit")), ()):
        del free[name]
    return Policy.model_validate({**free, **switches})


def test_responses_cover_the_whole_distribution() -> None:
    lengths = MASK.sum(dim=1)
    assert len(TOKENS) == 1 + 2 + 4 * 3  # EOS at once; one word then EOS; two words then anything
    assert {int(n) for n in lengths} == {1, 2, 3}
    assert ((TOKENS == EOS) & MASK).any(dim=1).sum() < len(TOKENS)  # some are cut, not ended
    for model in (STUDENT, TEACHER):
        assert float(log_probs_of(model).detach().sum(dim=1).exp().sum()) == pytest.approx(1.0, abs=1e-12)


def test_estimator_is_the_exact_gradient_without_mixing() -> None:
    policy = unclipped(teacher_mix=0.0)
    assert relative_error(estimator_gradient(policy, experience_of(policy)), exact_gradient(STUDENT)) < 1e-6


def test_sampled_reward_to_go_is_also_exact_without_the_single_step_term() -> None:
    # Crediting token t with its own reward and all later ones is plain REINFORCE, which is unbiased too.
    policy = unclipped(teacher_mix=0.0, single_step=False, credit="inclusive")
    assert relative_error(estimator_gradient(policy, experience_of(policy)), exact_gradient(STUDENT)) < 1e-6


def test_reference_code_counts_the_own_reward_twice() -> None:
    policy = unclipped(teacher_mix=0.0, credit="inclusive")
    assert relative_error(estimator_gradient(policy, experience_of(policy)), exact_gradient(STUDENT)) > 0.1


@pytest.mark.parametrize("alpha", [0.2, 0.5])
def test_full_products_of_weights_make_mixing_exact(alpha: float) -> None:
    policy = unclipped(teacher_mix=alpha)
    experience = experience_of(policy)
    weight = torch.where(MASK, experience.importance_weight, torch.ones_like(experience.importance_weight))
    up_to = weight.cumprod(dim=1)  # Π_{t'≤t}
    before = up_to / weight  # Π_{t'<t}
    reward = (experience.teacher_log_prob - experience.student_log_prob) * MASK
    future = torch.stack([(up_to * reward)[:, t + 1 :].sum(dim=1) for t in range(LIMIT)], dim=1)
    exact = Experience(experience.student_log_prob, experience.teacher_log_prob, before, future / before, MASK)
    assert relative_error(estimator_gradient(policy, exact), exact_gradient(STUDENT)) < 1e-6


def test_per_token_weights_are_biased_with_mixing_and_by_how_much() -> None:
    policy = unclipped(teacher_mix=0.2)
    bias = relative_error(estimator_gradient(policy, experience_of(policy)), exact_gradient(STUDENT))
    print(f"relative bias of the gradient with per-token weights at α = 0.2: {bias:.3f}")
    assert 0.01 < bias < 0.5


def test_clip_does_nothing_at_the_first_inner_step_and_binds_later() -> None:
    clipped, free = unclipped(teacher_mix=0.0, clip_range=0.2), unclipped(teacher_mix=0.0)
    first = estimator_gradient(clipped, experience_of(clipped))
    assert relative_error(first, estimator_gradient(free, experience_of(free))) < 1e-12
    moved = PrefixModel(1)
    with torch.no_grad():
        moved.head.add_(
            0.5 * torch.randn(moved.head.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
        )
    later = estimator_gradient(clipped, experience_of(clipped), moved)
    assert relative_error(later, estimator_gradient(free, experience_of(free), moved)) > 1e-3


def test_reference_clip_binds_at_the_first_step_where_weights_differ_from_one() -> None:
    paper = Policy(teacher_mix=0.5, clip_range=0.2)
    reference = paper.model_copy(update={"clip_importance": True})
    experience = experience_of(paper)
    assert float((experience.importance_weight[MASK] - 1).abs().max()) > 0.2
    difference = relative_error(estimator_gradient(reference, experience), estimator_gradient(paper, experience))
    assert difference > 1e-3


def test_gkd_with_reverse_kl_is_the_single_step_term_alone() -> None:
    policy = unclipped(teacher_mix=0.0, credit="none")
    student, teacher = (torch.log_softmax(m.logits(TOKENS), dim=-1) for m in (STUDENT, TEACHER))
    teacher = teacher.detach()
    closed_form = ((student.exp() * (student - teacher)).sum(dim=-1) * MASK).sum(dim=1)
    want = torch.autograd.grad((behaviour_probability(policy) * closed_form).sum(), list(STUDENT.parameters()))
    assert relative_error(estimator_gradient(policy, experience_of(policy)), list(want)) < 1e-12


def test_sampled_token_distillation_is_reinforce_on_its_own_log_ratio() -> None:
    policy = unclipped(teacher_mix=0.0, single_step=False, credit="token")
    reward = (log_probs_of(TEACHER) - log_probs_of(STUDENT)).detach() * MASK
    closed_form = -(reward * log_probs_of(STUDENT)).sum(dim=1)
    want = torch.autograd.grad((behaviour_probability(policy) * closed_form).sum(), list(STUDENT.parameters()))
    assert relative_error(estimator_gradient(policy, experience_of(policy)), list(want)) < 1e-12


def defined_gradient(policy: Policy, student: PrefixModel) -> list[Tensor]:
    """Compute the estimator's expectation from its definition (method.md §2), response by response, token by token."""
    q, q_old, p = (torch.log_softmax(m.logits(TOKENS), dim=-1) for m in (student, STUDENT, TEACHER))
    q_old, p, alpha = q_old.detach(), p.detach(), policy.teacher_mix
    total = torch.zeros((), dtype=torch.float64)
    for i, row in enumerate(TOKENS.tolist()):
        length = int(MASK[i].sum())
        mixture = [
            float(alpha * p[i, t, row[t]].exp() + (1 - alpha) * q_old[i, t, row[t]].exp()) for t in range(length)
        ]
        probability = torch.tensor(mixture).prod()
        for t in range(length):
            weight = float(q_old[i, t, row[t]].exp()) / mixture[t]
            ahead = range(t + 1, length)
            future = sum(policy.discount ** (s - t - 1) * float(p[i, s, row[s]] - q_old[i, s, row[s]]) for s in ahead)
            if policy.length_normalization and len(ahead):
                future /= len(ahead)
            ratio = (q[i, t, row[t]] - q_old[i, t, row[t]]).exp()
            low, high = 1 - policy.clip_range, 1 + policy.clip_range
            loss = -torch.minimum(ratio * weight * future, ratio.clamp(low, high) * weight * future)
            if policy.single_step:
                loss = loss + weight * (q[i, t].exp() * (q[i, t] - p[i, t])).sum()
            total = total + probability * loss
    return list(torch.autograd.grad(total, list(student.parameters())))


@pytest.mark.parametrize("inner_epoch", [1, 2])
@pytest.mark.parametrize(
    ("alpha", "normalised", "single_step", "discount"),
    list(itertools.product([0.0, 0.2], [False, True], [False, True], [1.0, 0.8])),
)
def test_every_combination_is_what_it_is_defined_to_be(
    alpha: float, normalised: bool, single_step: bool, discount: float, inner_epoch: int
) -> None:
    """Responses are enumerated in float64, for every mix of the estimator's options, before and after an update."""
    policy = Policy(
        teacher_mix=alpha, length_normalization=normalised, single_step=single_step, discount=discount, clip_range=0.1
    )
    student = PrefixModel(1)
    if inner_epoch == 2:
        noise = torch.Generator().manual_seed(5)
        with torch.no_grad():
            student.head.add_(0.3 * torch.randn(student.head.shape, generator=noise, dtype=torch.float64))
    got = estimator_gradient(policy, experience_of(policy), student)
    assert relative_error(got, defined_gradient(policy, student)) < 1e-6


def test_no_gradient_reaches_the_teacher() -> None:
    hidden, head = TEACHER.hidden(TOKENS)[MASK], TEACHER.output_head()
    loss, _ = head_loss(
        STUDENT.hidden(TOKENS)[MASK],
        STUDENT.output_head(),
        TOKENS[MASK],
        lambda terms, part: terms.divergence,
        reverse_kl,
        Teacher(hidden, head),
    )
    gradient = torch.autograd.grad(loss, list(TEACHER.parameters()), allow_unused=True)
    assert all(g is None for g in gradient)
