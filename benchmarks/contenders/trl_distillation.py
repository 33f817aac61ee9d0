"""TRL's DistillationTrainer, where its GKD now lives: one on-policy step with the reverse KL, loss in chunks."""

import itertools
from collections.abc import Callable
from typing import Any

from benchmarks.contenders.models import student_and_teacher
from benchmarks.contenders.trl import arguments, optimizer_step, prepare
from benchmarks.contenders.words import tokenizer_of_words
from benchmarks.protocol import serve


def make_step(settings: dict[str, Any]) -> Callable[[], dict[str, float]]:
    """The step, on one batch of prompts after the other."""
    from datasets import Dataset
    from trl import DistillationConfig, DistillationTrainer

    student, teacher = student_and_teacher(settings)
    tokenizer, texts = tokenizer_of_words(settings)
    args = DistillationConfig(
        **arguments(settings),
        gradient_accumulation_steps=1,
        beta=1.0,
        max_completion_length=settings["new_tokens"],
        generation_kwargs={"min_new_tokens": settings["new_tokens"]},
    )
    trainer = DistillationTrainer(
        model=student,
        teacher_model=teacher,
        args=args,
        train_dataset=Dataset.from_dict({"prompt": texts}),
        processing_class=tokenizer,
    )
    prepare(trainer)
    batches = itertools.chain.from_iterable(trainer.get_train_dataloader() for _ in itertools.count())
    return lambda: optimizer_step(trainer, next(batches))


if __name__ == "__main__":
    serve(make_step)
