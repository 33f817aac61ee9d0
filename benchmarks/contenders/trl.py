"""What both of TRL's trainers are given, and one optimizer step of either."""

import tempfile
from typing import Any


def arguments(settings: dict[str, Any]) -> dict[str, Any]:
    """Training arguments that the two share: the same batch, precision and rate, nothing saved or logged."""
    return {
        "output_dir": tempfile.mkdtemp(),
        "per_device_train_batch_size": settings["batch_size"],
        "learning_rate": 1e-5,
        "max_steps": 10**6,
        "bf16": settings["dtype"] == "bfloat16",
        "gradient_checkpointing": False,
        "use_cpu": True,
        "report_to": [],
        "save_strategy": "no",
        "logging_strategy": "no",
    }


def prepare(trainer: Any) -> None:
    """Set what `train` would have set before its first step."""
    trainer.create_optimizer_and_scheduler(10**6)
    trainer.current_gradient_accumulation_steps = 1


def optimizer_step(trainer: Any, inputs: dict[str, Any]) -> dict[str, float]:
    """What `train` does for one optimizer step."""
    trainer.model.train()
    trainer.training_step(trainer.model, inputs, None)
    trainer.accelerator.clip_grad_norm_(trainer.model.parameters(), 1.0)
    trainer.optimizer.step()
    trainer.lr_scheduler.step()
    trainer.model.zero_grad()
    return {}
