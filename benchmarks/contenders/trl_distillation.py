"""TRL's DistillationTrainer, which now contains GKD: one on-policy step with the reverse KL, loss in chunks."""

from collections.abc import Callable
from typing import Any

from benchmarks.contenders.trl import arguments, make_trainer, on_batches
from benchmarks.protocol import serve


def make_step(settings: dict[str, Any]) -> Callable[[], dict[str, float]]:
    """Return the step, which takes one batch of prompts after another."""
    from trl import DistillationConfig, DistillationTrainer

    args = DistillationConfig(
        **arguments(settings),
        gradient_accumulation_steps=1,
        beta=1.0,
        max_completion_length=settings["new_tokens"],
        generation_kwargs={"min_new_tokens": settings["new_tokens"]},
    )
    return on_batches(make_trainer(DistillationTrainer, args, settings))


if __name__ == "__main__":
    serve(make_step)
