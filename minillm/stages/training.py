"""Stages that train models, or make the teacher's responses that one kind of training reads."""

from typing import ClassVar, Literal

from minillm.config import Form, Method, Sampled, Top, Training
from minillm.stages.base import Stage


class Train(Stage):
    """Train one model by one method.

    `weights` is the initial model, unless there is an `architecture`; `teacher` is there if the method compares with
    it, `responses` (the teacher's) for `text: teacher` and `pairs`, `rejected` (the student's) for `pairs`,
    `plain_text` if its loss has a weight. With `knowledge`, the teacher's files are only compared with those that the
    knowledge is of.
    """

    kind: ClassVar[str] = "train"
    module: ClassVar[str] = "minillm.training.trainer"
    inputs: ClassVar[tuple[str, ...]] = (
        "tokenizer",
        "examples",
        "weights?",
        "teacher?",
        "knowledge?",
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
    rows: int | None = None
    """The first so many rows are trained on; None for all. Stored knowledge is of all rows either way."""


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


class StoreKnowledge(Stage):
    """Run the teacher once over the training text, and keep of it what students can learn from without it.

    `responses` is there for `text: teacher`, and `examples` for the data's own. Output: `index.json`,
    `shard-NUMBER.safetensors` for consecutive rows and, for hidden states, `head.safetensors`.
    """

    kind: ClassVar[str] = "knowledge"
    module: ClassVar[str] = "minillm.knowledge.writing"
    inputs: ClassVar[tuple[str, ...]] = (
        "model",
        "tokenizer",
        "examples?",
        "responses?",
    )
    shares_work: ClassVar[bool] = True
    top: Top | None = None
    """Likeliest entries. Of this and `sampled` at most one is given; without either, hidden states are kept."""
    sampled: Sampled | None = None
    precision: Literal["float32", "bfloat16"]
    seed: int | None = None
    """Seed of the draws; None without any."""

    @property
    def form(self) -> Form:
        """What is kept at a token."""
        return "top" if self.top is not None else "sampled" if self.sampled is not None else "hidden"


def training_only(training: Training) -> Method:
    """Return the method of plain fine-tuning on D, for the teacher and the initial student."""
    return Method(text="dataset", divergence="cross_entropy", training=training)
