"""TRL's trainers under the cases of benchmarks/conformance: their own `train`, with given responses as its samples."""

import copy
import importlib
import inspect
import tempfile
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from datasets import Dataset
from transformers import PreTrainedModel, TrainerCallback

from benchmarks.conformance.cases import Gradient, NotApplicableError, Step
from benchmarks.conformance.models import END, Pair, Row, text
from benchmarks.conformance.suite import serve_cases

KINDS: dict[str, dict[str, Any]] = {
    "trl_gkd_text": {"module": "trl.experimental.gkd", "name": "GKD", "beta": 0.5, "options": {"lmbda": 0.0}},
    "trl_gkd_sampled": {"module": "trl.experimental.gkd", "name": "GKD", "beta": 0.5, "options": {"lmbda": 1.0}},
    "trl_distillation": {"module": "trl", "name": "Distillation", "beta": 1.0, "temperatures": ("temperature",)},
    "trl_minillm": {
        "module": "trl.experimental.minillm",
        "name": "MiniLLM",
        "beta": None,
        "temperatures": ("temperature", "kd_temperature"),
        "options": {"num_generations": 1},
    },
}
"""Place, β of the objective at the defaults, temperatures and options of each trainer."""
NO_SINGLE_STEP = {"single_step_decomposition": False}
PAPER = {"gamma": 1.0, "length_normalization": False}
MENDS: dict[str, dict[str, list[dict[str, Any]]]] = {
    "trl_distillation": {"resume": [{"shuffle_dataset": False}]},
    "trl_minillm": {
        "micro_batches": [NO_SINGLE_STEP],
        "padding_rotary": [NO_SINGLE_STEP],
        "padding_is_the_end": [NO_SINGLE_STEP],
        "equal_models": [{"rkl_advantage": False}],
        "exact": [PAPER, PAPER | NO_SINGLE_STEP],
        "resume": [{"shuffle_dataset": False}],
    },
}
"""Options to try where a case fails, by trainer and case."""
PLAIN = {
    "use_cpu": True,
    "bf16": False,
    "gradient_checkpointing": False,
    "report_to": [],
    "save_strategy": "no",
    "logging_steps": 1,
    "max_grad_norm": 0.0,
    "disable_tqdm": True,
}
"""One process in float32 that does not clip, so that the gradient is seen."""


class Trl:
    """One of TRL's trainers with its options at their defaults but for those given."""

    def __init__(self, kind: str, **options: Any) -> None:
        self.kind = KINDS[kind]
        self.beta, self.teacher_mix = self.kind["beta"], 0.0
        self.options = {**PLAIN, **self.kind.get("options", {}), **options}

    def step(self, pair: Pair, rows: Sequence[Row], micro_batch: int, temperature: float = 1.0) -> Step:
        """Take one step of `train` and catch the gradient as it reaches the optimizer."""
        options = {}
        if temperature != 1.0:
            if "temperatures" not in self.kind:
                raise NotApplicableError("`temperature` is documented as that of sampling alone")
            options = dict.fromkeys(self.kind["temperatures"], temperature)
        student = copy.deepcopy(pair.student)
        student.generate = _answers(rows, pair.pad)  # type: ignore[method-assign]
        optimizer = torch.optim.SGD(student.parameters(), lr=0.0)
        found: Gradient = {}

        def catch(*_: Any) -> None:
            found.update({name: of.grad.clone() for name, of in student.named_parameters() if of.grad is not None})

        optimizer.register_step_pre_hook(catch)
        accumulated = len(rows) // micro_batch
        with tempfile.TemporaryDirectory() as folder:
            sizes = {"per_device_train_batch_size": micro_batch, "gradient_accumulation_steps": accumulated}
            trainer = self._trainer(student, pair, rows, folder, max_steps=1, **sizes, **options)
            trainer.optimizer = optimizer
            trainer.train()
        return Step(trainer.state.log_history[0]["loss"], found)

    def weights(self, pair: Pair, rows: Sequence[Row], interrupted: bool) -> Gradient:
        """Train with samples of its own; interrupted, stop after the third step and continue in a new trainer."""
        student = pair.student
        with tempfile.TemporaryDirectory() as folder:
            for stop in (3, 4) if interrupted else (4,):
                student = copy.deepcopy(pair.student)
                sizes = {"per_device_train_batch_size": 2, "save_strategy": "steps", "save_steps": 3}
                trainer = self._trainer(student, pair, rows, folder, max_steps=4, learning_rate=1e-2, **sizes)
                trainer.add_callback(_StopAfter(stop))
                trainer.train(resume_from_checkpoint=interrupted and stop == 4)
        return {name: of.detach() for name, of in student.named_parameters()}

    def _trainer(self, student: PreTrainedModel, pair: Pair, rows: Sequence[Row], folder: str, **options: Any) -> Any:
        module = importlib.import_module(self.kind["module"])
        config, trainer = (getattr(module, self.kind["name"] + part) for part in ("Config", "Trainer"))
        longest = max(len(row.response) for row in rows)
        known = inspect.signature(config).parameters
        limit = "max_new_tokens" if "max_new_tokens" in known else "max_completion_length"
        return trainer(
            model=student,
            teacher_model=copy.deepcopy(pair.teacher),
            args=config(output_dir=folder, **{limit: longest, **self.options, **options}),
            train_dataset=_dataset(rows, self.options.get("lmbda")),
            processing_class=pair.tokenizer(),
        )


class _StopAfter(TrainerCallback):
    def __init__(self, steps: int) -> None:
        self.steps = steps

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        control.should_training_stop = state.global_step >= self.steps


def _dataset(rows: Sequence[Row], on_policy: float | None) -> Dataset:
    """Return prompts or, for GKD, which alone has a share of samples, chats; where it samples, with other answers."""
    if on_policy is None:
        return Dataset.from_dict({"prompt": [text(row.prompt) for row in rows]})
    chats = [
        [
            {"role": "user", "content": text(row.prompt)},
            {"role": "assistant", "content": text((1, END) if on_policy else row.response)},
        ]
        for row in rows
    ]
    return Dataset.from_dict({"messages": chats})


def _answers(rows: Sequence[Row], pad: int) -> Callable[..., Any]:
    """Return the student's `generate`, which samples the response of the row with the same prompt."""
    given = {row.prompt: row.response for row in rows}

    def generate(
        input_ids: torch.Tensor, attention_mask: torch.Tensor, return_dict_in_generate: bool = False, **_: Any
    ) -> Any:
        asked = [tuple(ids[mask.bool()].tolist()) for ids, mask in zip(input_ids, attention_mask, strict=True)]
        longest = max(len(given[prompt]) for prompt in asked)
        filled = [[*given[prompt], *[pad] * (longest - len(given[prompt]))] for prompt in asked]
        sequences = torch.cat([input_ids, torch.tensor(filled)], dim=1)
        return SimpleNamespace(sequences=sequences) if return_dict_in_generate else sequences

    return generate


if __name__ == "__main__":
    serve_cases(Trl, MENDS, "trl")
