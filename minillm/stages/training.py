"""Stages that train models, or make the teacher's responses that one kind of training reads."""

from typing import ClassVar, Literal

from minillm.config import Method, Training
from minillm.stages.base import Stage


class Train(Stage):
    """Train one model by one method.

    `weights` is the initial model, unless there is an `architecture`; `teacher` is there if the method compares with
    it, `responses` (the teacher's) for `text: teacher` and `pairs`, `rejected` (the student's) for `pairs`,
    `plain_text` if its loss has a weight.
    """

    kind: ClassVar[str] = "train"
    module: ClassVar[str] = "minillm.training.trainer"
    inputs: ClassVar[tuple[str, ...]] = (
        "tokenizer",
        "examples",
        "weights?",
        "teacher?",
        "responses?",
        "rejected?",
        "plain_text?",
    )
    shown: ClassVar[tuple[str, ...]] = ("collapse",)
    shares_work: ClassVar[bool] = True
    role: str
    """Name of the trained model in logs and tables: teacher, initial, sft, minillm …"""
    method: Method
    architecture: dict | None
    """Architecture of a model to initialise at random; None if `weights` is an input."""
    max_tokens: int
    validation_prompts: int
    seed: int


class Respond(Stage):
    """Generate a model's responses to the training prompts (SeqKD, DPKD)."""

    kind: ClassVar[str] = "respond"
    module: ClassVar[str] = "minillm.generation.responding"
    inputs: ClassVar[tuple[str, ...]] = (
        "model",
        "tokenizer",
        "examples",
    )
    shares_work: ClassVar[bool] = True
    role: Literal["teacher", "student"]
    max_tokens: int
    precision: Literal["float32", "bfloat16"]
    seed: int


def training_only(training: Training) -> Method:
    """Return the method of plain fine-tuning on D, for the teacher and the initial student."""
    return Method(text="dataset", divergence="cross_entropy", training=training)
