"""Rollouts of small models with a real engine, as the trainer uses them."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pandas as pd
from transformers import PreTrainedModel

from minillm.config import Method, Runtime
from minillm.models.output_head import HeadedModel
from minillm.training.engine import make_engine
from minillm.training.feeds import Models
from minillm.training.on_policy import Rollouts
from tests.minillm.direct import group_of_one


@contextmanager
def rollout_feed(
    student: PreTrainedModel,
    teacher: PreTrainedModel,
    prompts: Sequence[list[int]],
    response_tokens: int,
    policy: dict[str, Any],
    runtime: dict[str, Any] | None = None,
    divergence: dict[str, Any] | None = None,
    **training: Any,
) -> Iterator[Rollouts]:
    """Make a feed whose responses have up to `response_tokens` tokens after the longest prompt; token 0 ends them."""
    vocabulary = student.config.vocab_size
    common = {"learning_rate": 1e-3, "batch_size": 8, "steps": 1, "evaluate_every": 1}
    method = Method.model_validate(
        {
            "text": "rollouts",
            **(divergence or {"divergence": "reverse_kl"}),
            "start": "initial",
            "policy": {"rollouts": 16, "inner_epochs": 2, "plain_text_coefficient": 0.0, **policy},
            "training": {**common, **training},
        }
    )
    assert method.policy is not None
    limits = Runtime(**{"micro_batch_size": 4, "generation_batch_size": 16, **(runtime or {})})
    with group_of_one():
        engine = make_engine(HeadedModel(student, vocabulary), method.training, 1, limits)
        yield Rollouts(
            models=Models(engine, teacher.eval().requires_grad_(False), vocabulary, (0,)),
            policy=method.policy,
            method=method,
            examples=pd.DataFrame({"prompt_ids": list(prompts), "response_ids": [[1, 2, 0]] * len(prompts)}),
            plain_text=None,
            max_tokens=max(map(len, prompts)) + response_tokens,
            runtime=limits,
            seed=1,
        )
