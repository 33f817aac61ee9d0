"""TRL's MiniLLM trainer (1.9.2, the last version that had it): generation, loss, backward and optimizer, no mixing."""

import tempfile
from collections.abc import Callable
from typing import Any

from benchmarks.contenders.models import student_and_teacher
from benchmarks.contenders.words import tokenizer_of_words
from benchmarks.protocol import serve


def make_step(settings: dict[str, Any]) -> Callable[[], dict[str, float]]:
    """The step: what `train` does for one optimizer step."""
    from datasets import Dataset
    from trl.experimental.minillm import MiniLLMConfig, MiniLLMTrainer

    student, teacher = student_and_teacher(settings)
    tokenizer, texts = tokenizer_of_words(settings)
    rows = settings["batch_size"]
    args = MiniLLMConfig(
        output_dir=tempfile.mkdtemp(),
        per_device_train_batch_size=rows,
        gradient_accumulation_steps=1,
        num_generations=1,
        max_completion_length=settings["new_tokens"],
        generation_kwargs={"min_new_tokens": settings["new_tokens"]},
        gamma=1.0,
        learning_rate=1e-5,
        max_steps=10**6,
        bf16=settings["dtype"] == "bfloat16",
        gradient_checkpointing=False,
        use_cpu=True,
        report_to=[],
        save_strategy="no",
        logging_strategy="no",
    )
    trainer = MiniLLMTrainer(
        model=student,
        teacher_model=teacher,
        args=args,
        train_dataset=Dataset.from_dict({"prompt": texts}),
        processing_class=tokenizer,
    )
    trainer.create_optimizer_and_scheduler(10**6)
    trainer.current_gradient_accumulation_steps = 1  # what train() would have set
    batches = iter(trainer.get_train_dataloader())

    def step() -> dict[str, float]:
        nonlocal batches
        try:
            inputs = next(batches)
        except StopIteration:
            batches = iter(trainer.get_train_dataloader())
            inputs = next(batches)
        trainer.model.train()
        trainer.training_step(trainer.model, inputs, None)
        trainer.accelerator.clip_grad_norm_(trainer.model.parameters(), 1.0)
        trainer.optimizer.step()
        trainer.lr_scheduler.step()
        trainer.model.zero_grad()
        return {}

    return step


if __name__ == "__main__":
    serve(make_step)
