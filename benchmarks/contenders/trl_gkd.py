"""TRL's GKD trainer: one on-policy step with the reverse KL (λ = 1, β = 1)."""

import tempfile
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.contenders.models import student_and_teacher
from benchmarks.contenders.words import tokenizer_of_words
from benchmarks.protocol import serve


def make_step(settings: dict[str, Any]) -> Callable[[], dict[str, float]]:
    """The step: what `train` does for one optimizer step."""
    from datasets import Dataset
    from trl.experimental.gkd import GKDConfig, GKDTrainer

    student, teacher = student_and_teacher(settings)
    tokenizer, texts = tokenizer_of_words(settings)
    rows = settings["batch_size"]
    args = GKDConfig(
        output_dir=tempfile.mkdtemp(),
        per_device_train_batch_size=rows,
        lmbda=1.0,
        beta=1.0,
        temperature=1.0,
        max_new_tokens=settings["new_tokens"],
        max_length=settings["prompt_tokens"] + settings["new_tokens"],
        learning_rate=1e-5,
        max_steps=10**6,
        bf16=settings["dtype"] == "bfloat16",
        gradient_checkpointing=False,
        use_cpu=True,
        report_to=[],
        save_strategy="no",
        logging_strategy="no",
        remove_unused_columns=False,
    )
    trainer = GKDTrainer(
        model=student,
        teacher_model=teacher,
        args=args,
        train_dataset=Dataset.from_dict({"prompt": texts, "completion": [" w1"] * len(texts)}),
        processing_class=tokenizer,
    )
    trainer.create_optimizer_and_scheduler(10**6)
    trainer.current_gradient_accumulation_steps = 1  # what train() would have set
    batch = next(iter(trainer.get_train_dataloader()))

    def step() -> dict[str, float]:
        trainer.model.train()
        inputs = {name: value.clone() for name, value in batch.items() if isinstance(value, torch.Tensor)}
        trainer.training_step(trainer.model, inputs, None)
        trainer.accelerator.clip_grad_norm_(trainer.model.parameters(), 1.0)
        trainer.optimizer.step()
        trainer.lr_scheduler.step()
        trainer.model.zero_grad()
        return {}

    return step


if __name__ == "__main__":
    serve(make_step)
