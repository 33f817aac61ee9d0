"""Stages of pre-training on a teacher's corpus: text to train the teacher on, the corpus, and the page."""

from typing import ClassVar, Literal

from minillm.config import PretrainedStudent
from minillm.stages.base import Stage


class TextRows(Stage):
    """Cut plain text into rows to train a language model on. Output: `train.parquet`, `validation.parquet`."""

    kind: ClassVar[str] = "text_rows"
    module: ClassVar[str] = "minillm.pretraining.text_rows"
    inputs: ClassVar[tuple[str, ...]] = (
        "plain_text",
        "tokenizer",
    )
    reads_only: ClassVar[bool] = True
    block_tokens: int
    validation_size: int
    """Last blocks, to validate on."""


class SampleCorpus(Stage):
    """Let a model write text, as rows that trainings read. Output: `responses.parquet`, `validation.parquet`."""

    kind: ClassVar[str] = "corpus"
    module: ClassVar[str] = "minillm.pretraining.corpus"
    inputs: ClassVar[tuple[str, ...]] = (
        "model",
        "tokenizer",
    )
    shares_work: ClassVar[bool] = True
    sequences: int
    validation_size: int
    """Further sequences, to validate on."""
    max_tokens: int
    """Tokens of a sequence."""
    temperature: float
    precision: Literal["float32", "bfloat16"]
    seed: int


class PretrainReport(Stage):
    """Compare perplexity by method and share of the corpus.

    Inputs are named `held_out/teacher`, `held_out/STUDENT` and `train/STUDENT`, a student being a training's name.
    """

    kind: ClassVar[str] = "pretrain"
    module: ClassVar[str] = "minillm.pretraining.report"
    inputs: ClassVar[tuple[str, ...]] = (
        "corpus",
        "held_out/*",
        "train/*",
    )
    is_page: ClassVar[bool] = True
    shown: ClassVar[tuple[str, ...]] = ("perplexity", "verdict")
    runs_model: ClassVar[bool] = False
    name: str
    students: tuple[PretrainedStudent, ...]
    steps: tuple[int, ...]
    """Optimizer steps of a training on each share."""
    batch_size: int
    """Sequences per optimizer step."""
