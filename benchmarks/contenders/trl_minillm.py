"""TRL's MiniLLM trainer (1.14.2, the last version that has it): generation, loss, backward and optimizer, no mixing."""

from collections.abc import Callable
from typing import Any

from benchmarks.contenders.trl import arguments, make_trainer, on_batches
from benchmarks.protocol import serve


def make_step(settings: dict[str, Any]) -> Callable[[], dict[str, float]]:
    """Return the step, which takes one batch of prompts after another."""
    from trl.experimental.minillm import MiniLLMConfig, MiniLLMTrainer

    args = MiniLLMConfig(
        **arguments(settings),
        gradient_accumulation_steps=1,
        num_generations=1,
        max_completion_length=settings["new_tokens"],
        generation_kwargs={"min_new_tokens": settings["new_tokens"]},
        gamma=1.0,
    )
    return on_batches(make_trainer(MiniLLMTrainer, args, settings))


if __name__ == "__main__":
    serve(make_step)
