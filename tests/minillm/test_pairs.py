"""DPKD: the loss on pairs by hand, its gradient by autograd, and a training that prefers the teacher's responses."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from minillm.config import Method, Runtime
from minillm.models.batches import Limit
from minillm.models.output_head import HeadedModel
from minillm.objectives.preference import preference_loss
from minillm.stages.training import Respond
from minillm.training.engine import make_engine
from minillm.training.feeds import Models
from minillm.training.pairs import Pairs
from tests.minillm.direct import group_of_one
from tests.minillm.jobs import run_worker, write_job
from tests.minillm.models_in_small import small_model
from tests.minillm.trainings import read_metrics, settings, text_inputs

VOCABULARY, BETA = 101, 0.7
PROMPTS = [[1], [2, 3], [4, 5, 6], [7]]
PREFERRED = [[8, 9, 0], [10, 0], [11, 12, 13, 14, 0], [0]]
REJECTED = [[15, 0], [16, 17, 18, 0], [19, 0], [20, 21, 0]]
TRAINING = {"learning_rate": 1e-3, "batch_size": 4, "steps": 1, "evaluate_every": 1}


def test_the_loss_and_its_slope_by_hand():
    log_ratio = torch.tensor([0.4, 0.2, -1.0, 0.5], requires_grad=True)  # responses of 2, 1 and 1 tokens
    found = preference_loss(torch.cat([log_ratio, torch.zeros(1)]), [2, 1, 1, 1], beta=2.0)
    # the first pair: 2 · ((0.4 + 0.2)/2 − 0.5) = −0.4; the second: 2 · (−1 − 0) = −2
    assert found.margin.tolist() == pytest.approx([-0.4, -2.0])
    assert found.loss.tolist() == pytest.approx([math.log1p(math.exp(0.4)), math.log1p(math.exp(2.0))])
    slopes = [-2 / (1 + math.exp(-0.4)), -2 / (1 + math.exp(-2.0))]
    assert found.slope.tolist() == pytest.approx([slopes[0] / 2, slopes[0] / 2, slopes[1], -slopes[0], -slopes[1]])
    (gradient,) = torch.autograd.grad(found.loss.sum(), log_ratio)
    torch.testing.assert_close(gradient, found.slope[:4].detach())


@pytest.fixture
def group() -> Iterator[None]:
    with group_of_one():
        yield


def plain_loss(student: Any, teacher: Any) -> torch.Tensor:
    """Compute the mean loss pair by pair, from whole logits."""

    def mean_log_ratio(prompt: list[int], response: list[int]) -> torch.Tensor:
        row, chosen = torch.tensor([[*prompt, *response]]), torch.tensor(response)[:, None]
        logits = [model(row).logits[0, len(prompt) - 1 : -1] for model in (student, teacher)]  # (T, V) each
        of_student, of_teacher = (of.log_softmax(-1).gather(1, chosen) for of in logits)
        return (of_student - of_teacher.detach()).mean()

    losses = [
        -torch.nn.functional.logsigmoid(BETA * (mean_log_ratio(prompt, better) - mean_log_ratio(prompt, worse)))
        for prompt, better, worse in zip(PROMPTS, PREFERRED, REJECTED, strict=True)
    ]
    return torch.stack(losses).mean()


@pytest.mark.parametrize("limit", [Limit(rows=8), Limit(rows=2), Limit(rows=1), Limit(tokens=20)])
def test_batches_of_pairs_have_the_gradient_of_the_definition(limit: Limit, group: None):
    student, teacher = (small_model("llama", VOCABULARY, seed=seed, spread=0.3) for seed in (1, 2))
    want = plain_loss(student, teacher)
    gradients = torch.autograd.grad(want, list(student.parameters()))
    method = Method.model_validate(
        {"text": "pairs", "divergence": "preference", "beta": BETA, "start": "initial", "training": TRAINING}
    )
    engine = make_engine(HeadedModel(student, VOCABULARY), method.training, 1, Runtime())
    examples = pd.DataFrame({"prompt_ids": PROMPTS, "response_ids": PREFERRED, "rejected_ids": REJECTED})
    feed = Pairs(Models(engine, teacher.eval(), VOCABULARY, (0,)), method, examples, seed=1)
    total = 0.0
    engine.set_gradient_accumulation_boundary(False)
    for compute in feed.losses(0, limit):
        losses = compute()
        engine.backward(losses["loss"])
        total += float(losses["preference"])
    assert total == pytest.approx(float(want), rel=1e-5)
    for parameter, gradient in zip(student.parameters(), gradients, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-4, atol=1e-6)


def test_a_training_comes_to_prefer_the_teachers_responses(teacher: Path, inputs: dict[str, Path], tmp_path: Path):
    """Through both stages of responses and the trainer, as real workers."""
    start = tmp_path / "initial"
    assert run_worker(write_job(start, settings("sft", steps=2), text_inputs(inputs))).returncode == 0
    models = {"teacher": teacher, "student": start / "output"}
    for role, model in models.items():
        stage = Respond(role=role, max_tokens=16, precision="float32", seed=1)  # type: ignore[arg-type]
        done = run_worker(write_job(tmp_path / role, stage, {**text_inputs(inputs), "model": model}))
        assert done.returncode == 0, done.stdout
    texts = [pd.read_parquet(tmp_path / role / "output" / "responses.parquet")["response_ids"] for role in models]
    assert any(list(a) != list(b) for a, b in zip(*texts, strict=True))
    responses = {"responses": tmp_path / "teacher" / "output", "rejected": tmp_path / "student" / "output"}
    given = {**text_inputs(inputs), "weights": start / "output", "teacher": teacher, **responses}
    stage = settings("dpkd", None, steps=60, learning_rate=3e-3)
    done = run_worker(write_job(tmp_path / "dpkd", stage, given))
    assert done.returncode == 0, done.stdout
    metrics = list(read_metrics(tmp_path / "dpkd" / "output" / "metrics.jsonl"))
    loss, preferred = ([v for _, name, v in metrics if name == f"train/{of}"] for of in ("loss", "preferred"))
    assert loss[-1] < loss[0]
    assert preferred[-1] > 0.7
