"""Our step: a round of rollouts and the optimizer steps on it, by the code that training runs."""

import itertools
import os
from collections.abc import Callable
from typing import Any

import pandas as pd
from transformers import PreTrainedModel

from benchmarks.contenders.models import clock, machine_rate, peak, prompts, student_and_teacher
from benchmarks.protocol import serve
from minillm.config import Method, Policy, Runtime, Training
from minillm.models.batches import Limit
from minillm.models.output_head import HeadedModel
from minillm.planning.work import forward_operations
from minillm.preparation.model_checks import inspect_model
from minillm.training.engine import in_turn, make_engine, take_step
from minillm.training.feeds import Models
from minillm.training.on_policy import Rollouts
from minillm.worker.processes import process_group


def make_step(settings: dict[str, Any]) -> Callable[[], dict[str, float]]:
    """Return the step: one round of rollouts and its inner epochs.

    It reports the seconds of the round alone, the tokens drawn, and useful operations as a share of the device's rate.
    """
    device = settings.get("device", "cpu")
    student, teacher = student_and_teacher(settings)
    rows = settings["batch_size"]
    limit = Limit(rows=settings.get("micro_batch_size", rows))
    policy = Policy(
        teacher_mix=settings["teacher_mix"],
        rollouts=rows,
        inner_epochs=settings["inner_epochs"],
        credit=settings.get("credit", "future"),
        plain_text_coefficient=0.0,
    )
    training = Training(
        learning_rate=1e-5, batch_size=rows, steps=10**6, evaluate_every=10**6, precision=settings["dtype"]
    )
    method = Method(text="rollouts", divergence="reverse_kl", policy=policy, training=training)
    engine = make_engine(HeadedModel(student, settings["vocabulary"]), training, 10**6, Runtime())
    asked = prompts(settings)
    examples = pd.DataFrame({"prompt_ids": asked, "response_ids": [[0] * settings["new_tokens"]] * len(asked)})
    models = Models(engine, teacher, settings["vocabulary"], ())
    longest = settings["prompt_tokens"] + settings["new_tokens"]
    feed = Rollouts(models, policy, method, examples, None, longest, Runtime(generation_batch_size=rows), 1)
    steps = itertools.count()
    state = _state_bytes(student, teacher, rows * longest, policy) / 2**30
    useful, rate = _operations(settings, policy, student, teacher), machine_rate(settings["dtype"], device)

    def step() -> dict[str, float]:
        began = round_seconds = clock(device)
        for number in itertools.islice(steps, policy.inner_epochs):
            feed.prepare(number, limit)
            if number % policy.inner_epochs == 0:
                round_seconds = clock(device) - began
            engine.train()
            for losses in in_turn(engine, feed.losses(number, limit)):
                engine.backward(losses["loss"])
            take_step(engine)
        share = useful / (clock(device) - began) / rate
        drawn = rows * settings["new_tokens"]
        return {"state_gib": state, "round_seconds": round_seconds, "drawn": drawn, "share": share, **peak(device)}

    return step


def _operations(settings: dict[str, Any], policy: Policy, student: PreTrainedModel, teacher: PreTrainedModel) -> float:
    """Return what a step has to compute: sampling, scoring by both models, and forward and backward passes."""
    shape = settings["batch_size"], settings["prompt_tokens"], settings["new_tokens"]
    once, of_teacher = (
        forward_operations(inspect_model("model", of.config, of, settings["vocabulary"]), *shape)
        for of in (student, teacher)
    )
    return once * (2 + 3 * policy.inner_epochs) + of_teacher * (2 if policy.teacher_mix else 1)


def _state_bytes(student: PreTrainedModel, teacher: PreTrainedModel, tokens: int, policy: Policy) -> int:
    """Return the unavoidable bytes: weights, gradients, AdamW's moments and the caches of keys and values."""
    caches = [student, teacher] if policy.teacher_mix else [student]
    cached = sum(2 * m.config.num_hidden_layers * m.config.hidden_size * tokens for m in caches)
    return 4 * (4 * student.num_parameters() + teacher.num_parameters() + cached)


if __name__ == "__main__":
    os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    with process_group():
        serve(make_step)
