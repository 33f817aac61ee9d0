"""TRL's GKD trainer: one on-policy step with the reverse KL (λ = 1, β = 1)."""

from collections.abc import Callable
from typing import Any

import torch

from benchmarks.contenders.models import student_and_teacher
from benchmarks.contenders.trl import arguments, optimizer_step, prepare
from benchmarks.contenders.words import tokenizer_of_words
from benchmarks.protocol import serve


def make_step(settings: dict[str, Any]) -> Callable[[], dict[str, float]]:
    """The step, always on the same prompts."""
    from datasets import Dataset
    from trl.experimental.gkd import GKDConfig, GKDTrainer

    student, teacher = student_and_teacher(settings)
    tokenizer, texts = tokenizer_of_words(settings)
    args = GKDConfig(
        **arguments(settings),
        lmbda=1.0,
        beta=1.0,
        temperature=1.0,
        max_new_tokens=settings["new_tokens"],
        max_length=settings["prompt_tokens"] + settings["new_tokens"],
        remove_unused_columns=False,
    )
    dataset = Dataset.from_dict({"prompt": texts, "completion": [" w1"] * len(texts)})
    trainer = GKDTrainer(
        model=student, teacher_model=teacher, args=args, train_dataset=dataset, processing_class=tokenizer
    )
    prepare(trainer)
    batch = next(iter(trainer.get_train_dataloader()))

    def step() -> dict[str, float]:
        inputs = {name: value.clone() for name, value in batch.items() if isinstance(value, torch.Tensor)}
        return optimizer_step(trainer, inputs)

    return step


if __name__ == "__main__":
    serve(make_step)
