"""Arguments, construction and one optimizer step of TRL's trainers."""

import itertools
import tempfile
from collections.abc import Callable
from typing import Any

from benchmarks.contenders.models import clock, peak, student_and_teacher
from benchmarks.contenders.words import tokenizer_of_words


def arguments(settings: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments that all trainers share: the same batch, precision and rate, nothing saved or logged."""
    return {
        "output_dir": tempfile.mkdtemp(),
        "per_device_train_batch_size": settings["batch_size"],
        "learning_rate": 1e-5,
        "max_steps": 10**6,
        "bf16": settings["dtype"] == "bfloat16",
        "gradient_checkpointing": False,
        "use_cpu": settings.get("device", "cpu") == "cpu",
        "report_to": [],
        "save_strategy": "no",
        "logging_strategy": "no",
    }


def make_trainer(kind: Callable[..., Any], args: Any, settings: dict[str, Any]) -> Any:
    """Make a trainer of the shared models and prompts, in the state that `train` sets up before its first step.

    Args:
        kind: Class of the trainer.
        args: Instance of the trainer's own configuration class.
        settings: Settings of the benchmark.
    """
    from datasets import Dataset

    student, teacher = student_and_teacher(settings)
    tokenizer, texts = tokenizer_of_words(settings)
    prompts = Dataset.from_dict({"prompt": texts})
    trainer = kind(model=student, teacher_model=teacher, args=args, train_dataset=prompts, processing_class=tokenizer)
    trainer.create_optimizer_and_scheduler(10**6)
    trainer.current_gradient_accumulation_steps = 1
    return trainer


def on_batches(trainer: Any) -> Callable[[], dict[str, float]]:
    """Return the step, which takes one batch of prompts after another."""
    batches = itertools.chain.from_iterable(trainer.get_train_dataloader() for _ in itertools.count())
    return lambda: optimizer_step(trainer, next(batches))


def optimizer_step(trainer: Any, inputs: dict[str, Any]) -> dict[str, float]:
    """Do what `train` does for one optimizer step."""
    trainer.model.train()
    trainer.training_step(trainer.model, inputs, None)
    trainer.accelerator.clip_grad_norm_(trainer.model.parameters(), 1.0)
    trainer.optimizer.step()
    trainer.lr_scheduler.step()
    trainer.model.zero_grad()
    device = trainer.model.device.type
    clock(device)
    return peak(device)
