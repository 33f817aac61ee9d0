"""Our trainer under the cases of benchmarks/conformance, from files on; given responses take the place of samples."""

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from benchmarks.conformance.cases import Gradient, NotApplicableError, Step
from benchmarks.conformance.models import Pair, Row
from benchmarks.conformance.suite import serve_cases
from minillm.config import Method, Policy, Runtime
from minillm.data.encoding import LearntTurn
from minillm.generation.slots import Response
from minillm.stages.base import Job
from minillm.stages.training import Train
from minillm.training.trainer import Trainer, make_trainer
from minillm.worker.processes import process_group

METHODS: dict[str, dict[str, Any]] = {
    "ours_kd": {"text": "dataset", "divergence": "forward_kl"},
    "ours_minillm": {"text": "rollouts", "divergence": "reverse_kl"},
}
MENDS = {"ours_minillm": {"exact": [{"teacher_mix": 0.0}, {"teacher_mix": 0.0, "length_normalization": False}]}}
"""Options of the policy to try where a case fails, by method and case."""


class Ours:
    """One of our methods with its policy at the defaults but for the options given, and without plain text."""

    def __init__(self, method: str, **options: Any) -> None:
        self.method = METHODS[method]
        self.samples = self.method["text"] == "rollouts"
        self.beta = None if self.samples else 0.0
        self.teacher_mix = options.get("teacher_mix", Policy().teacher_mix) if self.samples else 0.0
        self.options = options

    def step(self, pair: Pair, rows: Sequence[Row], micro_batch: int, temperature: float = 1.0) -> Step:
        """Take the trainer's first step and catch the gradient as it reaches the optimizer."""
        if temperature != 1.0 and not self.samples:
            raise NotApplicableError("text that is given has no temperature")
        with tempfile.TemporaryDirectory() as folder:
            trainer = self._trainer(Path(folder), pair, rows, len(rows), micro_batch, temperature)
            given = {row.prompt: row.response for row in rows}
            if self.samples:  # its log-probabilities are only looked at, never learnt from
                trainer.feed._sample = lambda index, prompts: [  # type: ignore[attr-defined]
                    Response(list(given[tuple(prompt)]), False, torch.zeros(len(given[tuple(prompt)])))
                    for prompt in prompts
                ]
            found: Gradient = {}
            model = trainer.engine.module.model

            def catch(*_: Any) -> None:
                found.update({name: of.grad.clone() for name, of in model.named_parameters() if of.grad is not None})

            trainer.engine.basic_optimizer.register_step_pre_hook(catch)
            return Step(trainer.step(0)["train/loss"], found)

    def weights(self, pair: Pair, rows: Sequence[Row], interrupted: bool) -> Gradient:
        """Train with samples of its own; interrupted, write a checkpoint after three steps and continue from it."""
        with tempfile.TemporaryDirectory() as folder:
            if interrupted:
                trainer = self._trainer(Path(folder), pair, rows, 2, 2)
                for step in range(3):
                    trainer.step(step)
                trainer.checkpoint(3)
            trainer = self._trainer(Path(folder), pair, rows, 2, 2)
            trainer.train()
            return {name: of.detach().clone() for name, of in trainer.engine.module.model.named_parameters()}

    def _trainer(
        self, folder: Path, pair: Pair, rows: Sequence[Row], batch: int, micro_batch: int, temperature: float = 1.0
    ) -> Trainer:
        policy = {"rollouts": batch, "plain_text_coefficient": 0.0, "temperature": temperature, **self.options}
        training = {"learning_rate": 1e-2, "batch_size": batch, "steps": 4, "evaluate_every": 4, "gradient_clip": 1e9}
        fields = {**self.method, "training": training, "policy": policy if self.samples else None}
        settings = Train(
            role="student",
            method=Method.model_validate(fields),
            architecture=None,
            max_tokens=max(len(row.prompt) + len(row.response) for row in rows),
            validation_prompts=1,
            seed=1,
        )
        names = ("tokenizer", "weights", "teacher", "examples")
        inputs = {name: folder / name for name in names}
        for name, of in zip(names, (pair.tokenizer(), pair.student, pair.teacher), strict=False):
            of.save_pretrained(inputs[name])
        inputs["examples"].mkdir(exist_ok=True)
        for part in ("train", "validation"):
            _examples(rows).to_parquet(inputs["examples"] / f"{part}.parquet")
        runtime = Runtime(threads=1, micro_batch_size=micro_batch)
        job = Job(
            kind=settings.kind, settings=settings, inputs=inputs, output=folder / "output", work=folder, runtime=runtime
        )
        job.output.mkdir(exist_ok=True)
        return make_trainer(job, settings)


def _examples(rows: Sequence[Row]) -> pd.DataFrame:
    """Return the rows as the stage `filter` writes them."""
    return pd.DataFrame(
        {
            "row": range(len(rows)),
            "category": "",
            "prompt": "",
            "prompt_ids": [list(row.prompt) for row in rows],
            "response_ids": [list(row.response) for row in rows],
            "turns": [[LearntTurn(0, len(row.response), "")._asdict()] for row in rows],
        }
    )


if __name__ == "__main__":
    os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    with process_group():
        serve_cases(Ours, MENDS, "deepspeed")
