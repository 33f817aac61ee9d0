"""Trainings of every divergence and weighting: loss and gradient against the definitions, from whole logits."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, get_args

import pandas as pd
import pytest
import torch
from torch import Tensor

from minillm.config import Divergence, Method, Runtime
from minillm.models.batches import Limit
from minillm.models.output_head import HeadedModel
from minillm.training.engine import make_engine
from minillm.training.feeds import Feed, Models
from minillm.training.fixed_text import FixedText
from tests.minillm.direct import group_of_one
from tests.minillm.models_in_small import small_model
from tests.minillm.on_policy import rollout_feed

VOCABULARY, SKEW, BETA, HEAD, SHARE = 101, 0.3, 0.2, 0.6, 0.4
PROMPTS = [[1], [2, 3], [4, 5, 6], [7]]
ANSWERS = [[8, 9, 0], [10, 0], [11, 12, 13, 14, 0], [0]]
TRAINING = {"learning_rate": 1e-3, "batch_size": 4, "steps": 1, "evaluate_every": 1}
PARAMETERS = {
    "skewed_forward_kl": {"skew": SKEW},
    "skewed_reverse_kl": {"skew": SKEW},
    "jensen_shannon": {"beta": BETA},
    "adaptive_kl": {"head": HEAD},
}


def kl(left: Tensor, right: Tensor) -> Tensor:
    return (left * (left.log() - right.log())).sum(-1)


def adaptive(p: Tensor, q: Tensor) -> Tensor:
    """Blend both KLs of each token by the share of the gap on the likeliest tokens, one token at a time."""
    found = []
    for of_teacher, of_student in zip(p, q, strict=True):
        gap, head, mass = (of_teacher - of_student).abs().detach(), [], 0.0
        for token in of_teacher.argsort(descending=True).tolist():
            head.append(token)
            mass += float(of_teacher[token])
            if mass >= HEAD:
                break
        share = gap[head].sum() / gap.sum()
        found.append(share * kl(of_teacher, of_student) + (1 - share) * kl(of_student, of_teacher))
    return torch.stack(found)


DEFINITIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "forward_kl": kl,
    "reverse_kl": lambda p, q: kl(q, p),
    "skewed_forward_kl": lambda p, q: kl(p, SKEW * p + (1 - SKEW) * q),
    "skewed_reverse_kl": lambda p, q: kl(q, SKEW * q + (1 - SKEW) * p),
    "jensen_shannon": lambda p, q: (
        BETA * kl(p, BETA * p + (1 - BETA) * q) + (1 - BETA) * kl(q, BETA * p + (1 - BETA) * q)
    ),
    "total_variation": lambda p, q: (p - q).abs().sum(-1) / 2,
    "adaptive_kl": adaptive,
}
"""Functions of the teacher's and the student's probabilities, (T, V) each."""


def mean_per_token(student: Any, teacher: Any, loss: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Tensor:
    """Mean over all answers' tokens of a function of p (T, V), q (T, V) and the tokens (T,)."""
    losses = []
    for prompt, answer in zip(PROMPTS, ANSWERS, strict=True):
        row = torch.tensor([[*prompt, *answer]])
        p, q = (model(row).logits[0, len(prompt) - 1 : -1].softmax(-1) for model in (teacher, student))
        losses.append(loss(p.detach(), q, torch.tensor(answer)))
    return torch.cat(losses).mean()


def pair() -> tuple[Any, Any]:
    student, teacher = (small_model("llama", VOCABULARY, seed=seed, spread=0.3) for seed in (1, 2))
    return student, teacher


def require_same(feed: Feed, engine: Any, student: Any, want: Tensor) -> None:
    """Compare a feed's loss and gradient over all its micro-batches with a loss from whole logits."""
    gradients = torch.autograd.grad(want, list(student.parameters()))
    engine.set_gradient_accumulation_boundary(False)
    total = 0.0
    for compute in feed.losses(0, Limit(rows=2)):
        losses = compute()
        engine.backward(losses["loss"])
        total += float(losses["loss"].detach())
    assert total == pytest.approx(float(want.detach()), rel=1e-4)
    for parameter, gradient in zip(student.parameters(), gradients, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-3, atol=1e-6)


@contextmanager
def text_feed(student: Any, teacher: Any, **method: Any) -> Iterator[FixedText]:
    whole = Method.model_validate({"text": "dataset", "training": TRAINING, **method})
    turns = [[{"start": 0, "end": len(answer)}] for answer in ANSWERS]
    examples = pd.DataFrame({"prompt_ids": PROMPTS, "response_ids": ANSWERS, "turns": turns})
    with group_of_one():
        engine = make_engine(HeadedModel(student, VOCABULARY), whole.training, 1, Runtime())
        yield FixedText(Models(engine, teacher.eval(), VOCABULARY, (0,)), whole, examples, seed=1)


def test_every_divergence_has_its_definition_here():
    assert set(DEFINITIONS) == set(get_args(Divergence)) - {"cross_entropy", "preference"}


@pytest.mark.parametrize("name", DEFINITIONS)
def test_a_round_is_learnt_from_by_the_divergence_of_the_method(name: str):
    student, teacher = pair()
    want = mean_per_token(student, teacher, lambda p, q, tokens: DEFINITIONS[name](p, q))
    policy = {"teacher_mix": 0.0, "credit": "none", "rollouts": 4, "inner_epochs": 1, "student_share": 0.0}
    divergence = {"divergence": name, **PARAMETERS.get(name, {})}
    with rollout_feed(student, teacher, PROMPTS, 8, policy, divergence=divergence, batch_size=4) as feed:
        feed.examples = pd.DataFrame({"prompt_ids": PROMPTS, "response_ids": ANSWERS})
        feed.prepare(0, Limit(rows=2))
        require_same(feed, feed.models.student, student, want)


@pytest.mark.parametrize("name", DEFINITIONS)
def test_fixed_text_is_learnt_from_by_cross_entropy_and_the_divergence(name: str):
    student, teacher = pair()

    def loss(p: Tensor, q: Tensor, tokens: Tensor) -> Tensor:
        own = q.gather(1, tokens[:, None])[:, 0]
        return -(1 - SHARE) * own.log() + SHARE * DEFINITIONS[name](p, q)

    want = mean_per_token(student, teacher, loss)
    divergence = {"divergence": name, "divergence_weight": SHARE, **PARAMETERS.get(name, {})}
    with text_feed(student, teacher, **divergence) as feed:
        require_same(feed, feed.models.student, student, want)


def test_slim_weighs_each_token_by_who_is_surer_of_it():
    student, teacher = pair()

    def loss(p: Tensor, q: Tensor, tokens: Tensor) -> Tensor:
        of_teacher, own = (of.gather(1, tokens[:, None])[:, 0] for of in (p, q))
        weight = (SHARE * of_teacher / (SHARE * of_teacher + (1 - SHARE) * own)).detach()
        return -(1 - weight) * own.log() + weight * kl(p, q)

    want = mean_per_token(student, teacher, loss)
    weighted = {"divergence": "forward_kl", "divergence_weight": SHARE, "weighting": "confidence"}
    with text_feed(student, teacher, **weighted) as feed:
        require_same(feed, feed.models.student, student, want)
