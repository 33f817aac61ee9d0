"""Fine-tuning on rows of given lengths, by the code that training runs, in micro-batches of rows or of tokens."""

import itertools
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd

from benchmarks.contenders.models import random_model
from benchmarks.protocol import serve
from minillm.config import Method, Runtime, Training
from minillm.models.batches import Limit
from minillm.models.output_head import HeadedModel
from minillm.training.engine import in_turn, make_engine, take_step
from minillm.training.feeds import Models
from minillm.training.fixed_text import FixedText
from minillm.worker.processes import process_group


def make_step(settings: dict[str, Any]) -> Callable[[], dict[str, float]]:
    """Return the step: one optimizer step on a batch of the rows. It reports the number of its micro-batches."""
    lengths = json.loads(Path(settings["lengths"]).read_text(encoding="utf-8"))
    vocabulary = settings["vocabulary"]
    student = random_model(settings["student"], vocabulary, max(map(sum, lengths)), seed=0, dtype=settings["dtype"])
    training = Training(
        learning_rate=1e-5,
        batch_size=settings["batch_size"],
        steps=10**6,
        evaluate_every=10**6,
        precision=settings["dtype"],
    )
    runtime = Runtime.model_validate({name: value for name, value in settings.items() if name in Runtime.model_fields})
    engine = make_engine(HeadedModel(student, vocabulary), training, 10**6, runtime)
    rows = [
        ([1 + n] * prompt, [2 + n] * response, [{"start": 0, "end": response}])
        for n, (prompt, response) in enumerate(lengths)
    ]
    examples = pd.DataFrame(rows, columns=["prompt_ids", "response_ids", "turns"])
    method = Method(text="dataset", divergence="cross_entropy", training=training)
    feed = FixedText(Models(engine, None, vocabulary, ()), method, examples, seed=1)
    steps = itertools.count()

    def step() -> dict[str, float]:
        micros = feed.losses(next(steps), Limit.of(runtime))
        engine.train()
        for losses in in_turn(engine, micros):
            engine.backward(losses["loss"])
        take_step(engine)
        return {"micro_batches": len(micros)}

    return step


if __name__ == "__main__":
    os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    with process_group():
        serve(make_step)
