"""Stages that ask a teacher behind an endpoint instead of running it.

Settings of asking (timeouts, budget) are part of each stage, as in `Judging`: another value computes it again, from the
answers already paid for.
"""

from typing import ClassVar

from minillm.config import ServedTeacher, Template
from minillm.config.data import RowFields
from minillm.stages.base import Stage
from minillm.stages.measuring import Generate

SERVED = "teacher.json"
"""File of a teacher that runs elsewhere, in the place of a model's."""


class CheckTeacher(Stage):
    """Ask a served teacher for a few tokens, to see that it gives what the methods read.

    Output: `teacher.json`, which names the model and stands for it where other teachers have their files.
    """

    kind: ClassVar[str] = "served_teacher"
    module: ClassVar[str] = "minillm.served.check"
    inputs: ClassVar[tuple[str, ...]] = ("tokenizer",)
    reads_only: ClassVar[bool] = True
    endpoint: ServedTeacher
    template: Template
    log_probs: int | None
    """Likeliest tokens that must be told of given text; None if only text is asked for."""
    by_ids: bool = False
    """Whether texts must be taken as token ids."""


class AskResponses(Stage):
    """Ask a served teacher to answer the training prompts (SeqKD); filter and tokenise what it writes.

    Output: `responses.parquet` as the stage `respond` writes it, and `dropped.csv`.
    """

    kind: ClassVar[str] = "asked_responses"
    module: ClassVar[str] = "minillm.served.responding"
    inputs: ClassVar[tuple[str, ...]] = (
        "model",
        "tokenizer",
        "examples",
        "instructions",
    )
    runs_model: ClassVar[bool] = False
    endpoint: ServedTeacher
    template: Template
    fields: RowFields = RowFields()
    """Names of the fields in the training rows."""
    max_tokens: int
    """Longest prompt with its response, in tokens."""
    seed: int


class AskKnowledge(Stage):
    """Ask a served teacher for its likeliest tokens of the training text. Output: as of the stage `knowledge`."""

    kind: ClassVar[str] = "asked_knowledge"
    module: ClassVar[str] = "minillm.served.knowledge"
    inputs: ClassVar[tuple[str, ...]] = (
        "model",
        "tokenizer",
        "examples?",
        "responses?",
    )
    runs_model: ClassVar[bool] = False
    endpoint: ServedTeacher
    k: int
    """Likeliest entries that are kept of each token."""


class AskAnswers(Stage):
    """Ask a served teacher to answer every benchmark, once per seed. Output: as of the stage `generate`."""

    kind: ClassVar[str] = "asked_answers"
    module: ClassVar[str] = "minillm.served.answering"
    inputs: ClassVar[tuple[str, ...]] = (
        "model",
        "tokenizer",
        "benchmarks",
        "prompts",
    )
    runs_model: ClassVar[bool] = False
    endpoint: ServedTeacher
    system: str | None
    """Message of the system for conversations that have none."""
    generate: Generate
    """How responses are sampled, and how long they may be."""
