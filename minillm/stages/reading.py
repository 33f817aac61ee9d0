"""Stages that read data and models, and check all of it before anything is trained."""

from typing import Any, ClassVar, Literal

from pydantic import Field

from minillm.config import Fields, Lora, Metric, MultipleChoice, Template, Tokenizer
from minillm.stages.base import Stage


class Prepare(Stage):
    """Train or load the tokenizer that models share; check that all fit it and the lengths asked for.

    Inputs: the directory of each model that has one, by its name in `models`; `tokenizer` (where given); to train
    one, `instructions`, `split`, `plain_text`. Output: the tokenizer's files and `models.json`.
    """

    kind: ClassVar[str] = "prepare"
    module: ClassVar[str] = "minillm.preparation.prepare"
    reads_only: ClassVar[bool] = True
    tokenizer: Tokenizer
    template: Template
    models: dict[str, dict[str, Any] | None]
    """By what errors call them, e.g. teacher.model: the architecture of one to initialise at random, or None. The
    first gives the tokenizer where no other is asked for."""
    max_tokens: int
    generation_tokens: int
    """Longest benchmark prompt with response, tokens."""
    adapters: dict[str, tuple[Lora, ...]] = Field(default_factory=dict)
    """That each model is to be trained with, by its name in `models`."""


class Benchmarks(Stage):
    """Read the benchmarks into one format. Inputs: `benchmark/NAME`. Output: `NAME.jsonl` each."""

    kind: ClassVar[str] = "benchmarks"
    module: ClassVar[str] = "minillm.data.benchmarks"
    reads_only: ClassVar[bool] = True
    for_evaluation: ClassVar[bool] = True
    fields: dict[str, Fields]
    """By the name of the benchmark."""
    topics: dict[str, tuple[str, ...]]
    """Of the benchmarks that are not whole."""
    metrics: dict[str, Metric] = Field(default_factory=dict)
    """By name of the benchmark, what is to see its references."""


class Questions(Stage):
    """Read multiple-choice sets into one format, with their tokens. Inputs: `tokenizer`, `calibration/NAME`."""

    kind: ClassVar[str] = "questions"
    module: ClassVar[str] = "minillm.data.questions"
    reads_only: ClassVar[bool] = True
    for_evaluation: ClassVar[bool] = True
    sets: dict[str, MultipleChoice]
    template: Template
    max_prompt_tokens: int
    long_prompts: Literal["refuse", "cut"]
    max_tokens: int
    """Longest prompt with a choice."""


class EncodedPrompts(Stage):
    """Tokenise the benchmarks' prompts. Inputs: `tokenizer`, `benchmarks`. Output: `NAME.parquet` each."""

    kind: ClassVar[str] = "prompts"
    module: ClassVar[str] = "minillm.data.benchmark_prompts"
    reads_only: ClassVar[bool] = True
    template: Template
    max_prompt_tokens: int
    long_prompts: Literal["refuse", "cut"]


class Filter(Stage):
    """Drop what must not be trained on, report it, split and tokenise the rest.

    Inputs: `instructions`, `split` (where given), `tokenizer`, `benchmarks`.
    """

    kind: ClassVar[str] = "filter"
    module: ClassVar[str] = "minillm.data.filtering"
    reads_only: ClassVar[bool] = True
    template: Template
    max_prompt_tokens: int
    max_tokens: int
    max_malformed_share: float
    validation_size: int | None
    test_size: int | None
    seed: int | None
    """The last three are None where a split is given."""
    selected_by: tuple[Metric, ...] = ()
    """Metrics that select weights on the validation rows, so that they must see these."""


class Pack(Stage):
    """Tokenise a plain-text corpus into one memory-mapped array. Inputs: `plain_text`, `tokenizer`."""

    kind: ClassVar[str] = "pack"
    module: ClassVar[str] = "minillm.data.packing"
    reads_only: ClassVar[bool] = True
    block_tokens: int


class HeldOutTexts(Stage):
    """Tokenise plain texts to measure the loss on. Inputs: `tokenizer`, `held_out/NAME`. Output: NAME/ each."""

    kind: ClassVar[str] = "held_out_texts"
    module: ClassVar[str] = "minillm.data.held_out_texts"
    reads_only: ClassVar[bool] = True
    for_evaluation: ClassVar[bool] = True
    texts: tuple[str, ...]
    block_tokens: int


class DownstreamTasks(Stage):
    """Find and check the harness's tasks, before anything is trained.

    Inputs: `prepared/…` (for the models' positions); `rows/NAME` and `examples/NAME` of tasks with local rows.
    Output: plan.json, and those rows by task.
    """

    kind: ClassVar[str] = "downstream_tasks"
    module: ClassVar[str] = "minillm.evaluation.downstream.tasks"
    reads_only: ClassVar[bool] = True
    for_evaluation: ClassVar[bool] = True
    harness: str
    """Version of lm-evaluation-harness, which defines the tasks."""
    tasks: tuple[str, ...]
    few_shot: int | None
    parts: dict[str, str]
    """By name of the task with local rows, as `changes`."""
    changes: dict[str, dict[str, Any]]
