"""The engine against AdamW written out: the same weights after some steps, however state is split over processes."""

import functools
import itertools
from typing import Any

import pytest
import torch
from deepspeed.utils import safe_get_full_fp32_param
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from minillm.config import Runtime, Training
from minillm.models.batches import make_batch
from minillm.models.output_head import HeadedModel
from minillm.objectives.losses import fixed_text_loss
from minillm.objectives.vocabulary import head_loss
from minillm.training.engine import gathered_weights, in_turn, make_engine, take_step
from tests.minillm.direct import group_of_one
from tests.minillm.models_in_small import ARCHITECTURES

VOCABULARY, STEPS = 23, 3
BATCHES = [make_batch([[1 + n, 2], [3]], [[4, 5 + n, 0], [6 + n, 7]]) for n in range(2 * STEPS)]
TRAINING = Training(
    learning_rate=1e-2, batch_size=4, steps=STEPS, evaluate_every=STEPS, warmup_steps=2, weight_decay=0.1,
    gradient_clip=0.5, precision="bfloat16",
)  # fmt: skip


def small(dtype: torch.dtype) -> PreTrainedModel:
    torch.manual_seed(1)
    config = AutoConfig.for_model(**ARCHITECTURES["llama"], vocab_size=VOCABULARY, initializer_range=0.2)
    return AutoModelForCausalLM.from_config(config, dtype=dtype)


def loss_of(hidden, head, batch) -> dict[str, Tensor]:
    tokens = batch.response[batch.response_mask]
    return {"loss": head_loss(hidden, head, tokens, lambda terms, _: fixed_text_loss(terms, 0.0) / 10)[0]}


def trained(sharing: dict[str, Any], precision: str) -> tuple[dict[str, Any], dict[str, Tensor], list[float]]:
    """Train a few steps; return master weights, the model's weights, and the learning rate of each step."""
    training = TRAINING.model_copy(update={"precision": precision})
    model = HeadedModel(small(getattr(torch, precision)), VOCABULARY)
    with group_of_one():
        engine = make_engine(model, training, STEPS, Runtime.model_validate(sharing))
        engine.train()
        rates = []
        for step in range(STEPS):
            rates.append(engine.get_lr()[0])
            parts = [
                functools.partial(engine, batch, functools.partial(loss_of, batch=batch))
                for batch in BATCHES[2 * step : 2 * step + 2]
            ]
            for losses in in_turn(engine, parts):
                engine.backward(losses["loss"])
            take_step(engine)
        named = list(engine.module.named_parameters())
        masters = {name: safe_get_full_fp32_param(p) for name, p in named} if precision == "bfloat16" else {}
        with gathered_weights(engine):
            return masters, {name: p.detach().clone() for name, p in named}, rates


@pytest.fixture(autouse=True)
def several_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("minillm.training.engine.GROUP_WEIGHTS", 400)


@pytest.fixture(scope="module")
def right() -> dict[str, dict[str, Tensor]]:
    """Compute the right master weights by precision: AdamW's, on gradients of the weights rounded to it."""
    return {precision: written_out(getattr(torch, precision)) for precision in ("float32", "bfloat16")}


def written_out(dtype: torch.dtype) -> dict[str, Tensor]:
    model = HeadedModel(small(dtype), VOCABULARY)
    low = dict(model.named_parameters())
    masters = {name: p.detach().float().clone().requires_grad_() for name, p in low.items()}
    decays = [p for p in masters.values() if p.dim() > 1], [p for p in masters.values() if p.dim() <= 1]
    groups = [{"params": decays[0], "weight_decay": 0.1}, {"params": decays[1], "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-2, betas=TRAINING.betas)
    for step, rate in enumerate((0.5e-2, 1e-2, 1e-2)):
        for group in optimizer.param_groups:
            group["lr"] = rate
        for batch in BATCHES[2 * step : 2 * step + 2]:
            model(batch, lambda hidden, head, batch=batch: loss_of(hidden, head, batch))["loss"].backward()
        for name, p in low.items():
            assert p.grad is not None
            masters[name].grad = p.grad.float()
            p.grad = None
        torch.nn.utils.clip_grad_norm_(masters.values(), 0.5)
        optimizer.step()
        for name, p in low.items():
            p.data.copy_(masters[name].data)
    return {name: p.detach() for name, p in masters.items()}


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize(("zero_stage", "offload"), [(0, False), *itertools.product((1, 2, 3), (False, True))])
def test_every_zero_stage_takes_the_steps_of_adamw(zero_stage, offload, precision, right):
    masters, weights, rates = trained({"zero_stage": zero_stage, "offload_optimizer": offload}, precision)
    assert rates == pytest.approx([0.5e-2, 1e-2, 1e-2])
    begun = small(torch.float32).state_dict()
    for name, want in right[precision].items():
        assert (want - begun[name.removeprefix("model.")]).abs().max() > 1e-2, name
        torch.testing.assert_close(weights[name].float(), want, rtol=2**-8 if precision == "bfloat16" else 0, atol=1e-5)
        if precision == "bfloat16":
            torch.testing.assert_close(masters[name], want, rtol=0, atol=1e-5)


def test_zero_joins_no_more_weights_than_a_group_has():
    model = HeadedModel(small(torch.bfloat16), VOCABULARY)
    weights = [p.numel() for p in model.parameters()]
    with group_of_one():
        joined = make_engine(model, TRAINING, STEPS, Runtime()).optimizer.single_partition_of_fp32_groups
    assert len(joined) > 2
    assert max(part.numel() for part in joined) <= max(400, *weights) + 1, "and what fills up to an even number"
    assert sum(weights) <= sum(part.numel() for part in joined) <= sum(weights) + len(joined)
