"""Returns, weights and clipping on a few tokens, checkable by eye."""

import math

import pytest
import torch

from minillm.objectives.policy import clipped_policy_loss, credited_return, importance_weight, token_reward, whitened

REWARD = torch.tensor([[1.0, 2.0, 4.0, 99.0]])
MASK = torch.tensor([[True, True, True, False]])  # T = 3, one padding column


@pytest.mark.parametrize(
    ("credit", "normalized", "discount", "expected"),
    [
        ("future", False, 1.0, [6.0, 4.0, 0.0, 0.0]),
        ("future", True, 1.0, [3.0, 4.0, 0.0, 0.0]),
        ("future", False, 0.5, [2.0 + 0.5 * 4.0, 4.0, 0.0, 0.0]),
        ("inclusive", False, 1.0, [7.0, 6.0, 4.0, 0.0]),
        ("inclusive", True, 1.0, [7 / 3, 3.0, 4.0, 0.0]),
        ("token", True, 1.0, [1.0, 2.0, 4.0, 0.0]),
        ("none", True, 1.0, [0.0, 0.0, 0.0, 0.0]),
    ],
)
def test_credited_return(credit, normalized, discount, expected):
    got = credited_return(REWARD, MASK, credit, normalized, discount)
    assert got[0].tolist() == pytest.approx(expected)


def test_a_single_token_response_is_credited_with_no_future():
    assert credited_return(torch.tensor([[5.0]]), torch.tensor([[True]])).tolist() == [[0.0]]


def test_importance_weight_is_the_ratio_to_the_mixture():
    student, teacher = torch.tensor([[math.log(0.5)]]), torch.tensor([[math.log(0.1)]])
    assert importance_weight(student, teacher, 0.2).item() == pytest.approx(0.5 / (0.2 * 0.1 + 0.8 * 0.5))
    assert importance_weight(student, teacher, 0.0).item() == 1.0


def test_importance_weight_stays_finite_and_below_its_bound():
    student, teacher = torch.tensor([[-1e4, -1.0, -1e4]]), torch.tensor([[-1.0, -1e4, -1e4]])
    weight = importance_weight(student, teacher, 0.2)
    assert weight.isfinite().all()
    assert weight[0].tolist() == pytest.approx([0.0, 1 / 0.8, 1.0], rel=1e-3)


def test_token_reward_scales_then_clips():
    student, teacher = torch.tensor([[-1.0, -1.0]]), torch.tensor([[-2.0, -200.0]])
    assert token_reward(student, teacher)[0].tolist() == [-1.0, -199.0]
    assert token_reward(student, teacher, scale=0.5, clip=100.0)[0].tolist() == [-2.0, -100.0]


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "gradient"),
    [
        (1.0, 3.0, -3.0, -3.0),
        (1.5, 3.0, -1.2 * 3.0, 0.0),  # already pushed up enough
        (0.5, 3.0, -0.5 * 3.0, -3.0),
        (1.5, -3.0, 1.5 * 3.0, 3.0),
        (0.5, -3.0, 0.8 * 3.0, 0.0),  # already pushed down enough
    ],
)
def test_clipped_policy_loss(ratio, advantage, loss, gradient):
    rho = torch.tensor(ratio, requires_grad=True)
    value = clipped_policy_loss(rho, torch.tensor(advantage), 0.2)
    value.backward()
    assert value.item() == pytest.approx(loss)
    assert rho.grad is not None
    assert rho.grad.item() == pytest.approx(gradient)


def test_no_gradient_flows_through_the_advantage():
    advantage = torch.tensor(2.0, requires_grad=True)
    clipped_policy_loss(torch.tensor(1.0, requires_grad=True), advantage, 0.2).backward()
    assert advantage.grad is None


def test_whitening_never_sees_padding():
    values, mask = torch.tensor([[1.0, 3.0, 1e6]]), torch.tensor([[True, True, False]])
    assert whitened(values, mask)[0].tolist() == pytest.approx([-1.0, 1.0, 0.0], abs=1e-6)
