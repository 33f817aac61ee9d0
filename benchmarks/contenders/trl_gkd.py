"""TRL's GKD trainer: one on-policy step with the reverse KL (λ = 1, β = 1)."""

from collections.abc import Callable
from typing import Any

import torch

from benchmarks.contenders.models import prompts
from benchmarks.contenders.trl import arguments, make_trainer, optimizer_step
from benchmarks.protocol import serve


def make_step(settings: dict[str, Any]) -> Callable[[], dict[str, float]]:
    """Return the step, always on the same prompts."""
    from trl.experimental.gkd import GKDConfig, GKDTrainer

    args = GKDConfig(
        **arguments(settings),
        lmbda=1.0,
        beta=1.0,
        temperature=1.0,
        max_new_tokens=settings["new_tokens"],
        max_length=settings["prompt_tokens"] + settings["new_tokens"],
    )
    trainer = make_trainer(GKDTrainer, args, settings)
    trainer.generation_config.eos_token_id = None  # every response has the full length, as with the others
    prompt = torch.tensor(prompts(settings), device=settings.get("device", "cpu"))
    mask = torch.ones_like(prompt)

    def step() -> dict[str, float]:
        # As its collator, which takes only chats, would make it; the step puts sampled responses over the last three.
        given = {"input_ids": prompt, "attention_mask": mask, "labels": prompt}
        return optimizer_step(trainer, {"prompts": prompt, "prompt_attention_mask": mask, **given})

    return step


if __name__ == "__main__":
    serve(make_step)
