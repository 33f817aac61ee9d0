"""Stages that read and check all data and models before anything is trained."""

from typing import Any, ClassVar, Literal

from pydantic import Field

from minillm.config import Fields, Lora, Metric, MultipleChoice, Scoring, Strict, Template
from minillm.config.data import RowFields, Turns
from minillm.stages.base import Stage

TOKENIZER = "tokenizer"
"""Folder of the artifact of `prepare` with the tokenizer alone, so that its readers do not depend on all models."""
SIZES = "sizes.json"
"""File of the artifact of `downstream_tasks` with a `TaskSize` for each task."""


class TakeLayers(Stage):
    """Make a student of some layers of its teacher. Output: `model/`, an ordinary model directory."""

    kind: ClassVar[str] = "layers"
    module: ClassVar[str] = "minillm.preparation.layers"
    inputs: ClassVar[tuple[str, ...]] = ("teacher",)
    reads_only: ClassVar[bool] = True
    layers: int | tuple[int, ...]
    """Number of layers, evenly spaced, or their numbers."""


class Prepare(Stage):
    """Train or load the tokenizer that models share, and check that all models fit it and the lengths asked for.

    Models that have a directory are inputs under their names in `models`, and so is a directory of a tokenizer;
    `instructions`, `split` and `plain_text` are there to train one. Output: `tokenizer/` and `models.json`.
    """

    kind: ClassVar[str] = "prepare"
    module: ClassVar[str] = "minillm.preparation.prepare"
    inputs: ClassVar[tuple[str, ...]] = (
        "teacher.model?",
        "student.model?",
        "model?",
        "tokenizer.from?",
        "instructions?",
        "split?",
        "plain_text?",
    )
    reads_only: ClassVar[bool] = True
    tokenizer: str | int
    """Input whose tokenizer, template and end tokens all models share, or most entries of a tokenizer to train."""
    template: Template
    fields: RowFields = RowFields()
    """Names of the fields in the training rows, to train a tokenizer on."""
    end_tokens: tuple[str, ...] = ()
    """Further tokens that end a response."""
    models: dict[str, dict[str, Any] | None]
    """Architecture of each model to initialise at random, None for the others; keys are the names that errors use, e.g.
    teacher.model."""
    max_tokens: int
    generation_tokens: int
    """Longest benchmark prompt with response, in tokens."""
    adapters: dict[str, tuple[Lora, ...]] = Field(default_factory=dict)
    """Adapters that each model is to be trained with, by its name in `models`."""


class Benchmarks(Stage):
    """Read the benchmarks into one format. Output: `NAME.jsonl` for each."""

    kind: ClassVar[str] = "benchmarks"
    module: ClassVar[str] = "minillm.data.benchmarks"
    inputs: ClassVar[tuple[str, ...]] = ("benchmark/*",)
    reads_only: ClassVar[bool] = True
    for_evaluation: ClassVar[bool] = True
    fields: dict[str, Fields]
    """Names of the fields in each benchmark's rows."""
    topics: dict[str, tuple[str, ...]]
    """Topics kept, for benchmarks that are filtered by topic."""
    prompts: dict[str, int] = Field(default_factory=dict)
    """Most rows kept, evenly spaced, for benchmarks that are cut."""
    scoring: dict[str, Scoring] = Field(default_factory=dict)
    """Metric of each benchmark, which must see its references, and what it reads."""


class Questions(Stage):
    """Read multiple-choice sets into one format, with their tokens."""

    kind: ClassVar[str] = "questions"
    module: ClassVar[str] = "minillm.data.questions"
    inputs: ClassVar[tuple[str, ...]] = (
        "tokenizer",
        "calibration/*",
    )
    reads_only: ClassVar[bool] = True
    for_evaluation: ClassVar[bool] = True
    sets: dict[str, MultipleChoice]
    template: Template
    max_prompt_tokens: int
    long_prompts: Literal["refuse", "cut"]
    max_tokens: int
    """Longest prompt with a choice, in tokens."""


class EncodedPrompts(Stage):
    """Tokenise the benchmarks' prompts. Output: `NAME.parquet` for each; `turns.json` if there are conversations."""

    kind: ClassVar[str] = "prompts"
    module: ClassVar[str] = "minillm.data.benchmark_prompts"
    inputs: ClassVar[tuple[str, ...]] = (
        "tokenizer",
        "benchmarks",
    )
    reads_only: ClassVar[bool] = True
    template: Template
    max_prompt_tokens: int
    long_prompts: Literal["refuse", "cut"]
    answer_tokens: int
    """Longest answer at a turn of a conversation, in tokens."""


class Filter(Stage):
    """Drop and report rows that must not be trained on; split and tokenise the rest."""

    kind: ClassVar[str] = "filter"
    module: ClassVar[str] = "minillm.data.filtering"
    inputs: ClassVar[tuple[str, ...]] = (
        "instructions",
        "split?",
        "tokenizer",
        "benchmarks",
    )
    reads_only: ClassVar[bool] = True
    template: Template
    fields: RowFields = RowFields()
    """Names of the fields in the training rows."""
    turns: Turns = "last"
    """Answers of a conversation that are learnt."""
    max_prompt_tokens: int
    max_tokens: int
    max_malformed_share: float
    validation_size: int | None
    test_size: int | None
    seed: int | None
    """Seed of the random split. This and the two sizes above are None if a split is given."""
    selected_by: tuple[Metric, ...] = ()
    """Metrics that select weights on the validation rows, which they must see."""


class Pack(Stage):
    """Tokenise a plain-text corpus into one memory-mapped array."""

    kind: ClassVar[str] = "pack"
    module: ClassVar[str] = "minillm.data.packing"
    inputs: ClassVar[tuple[str, ...]] = (
        "plain_text",
        "tokenizer",
    )
    reads_only: ClassVar[bool] = True
    block_tokens: int


class HeldOutTexts(Stage):
    """Tokenise plain texts to measure the loss on. Output: `NAME/` for each."""

    kind: ClassVar[str] = "held_out_texts"
    module: ClassVar[str] = "minillm.data.held_out_texts"
    inputs: ClassVar[tuple[str, ...]] = (
        "tokenizer",
        "held_out/*",
    )
    reads_only: ClassVar[bool] = True
    for_evaluation: ClassVar[bool] = True
    texts: tuple[str, ...]
    block_tokens: int


class TaskSize(Strict):
    """Size of one of the harness's tasks, for the plan of a run."""

    questions: int
    shots: int
    """Examples before each question."""
    kind: str
    """Request that the harness makes of a question: multiple_choice, generate_until …"""


class DownstreamTasks(Stage):
    """Find and check the harness's tasks before anything is trained.

    `prepared/…` tell the models' positions and tokenizers; `rows/NAME` and `examples/NAME` are those of tasks with
    local rows. Output: `plan.json`, `sizes.json`, and the local rows by task.
    """

    kind: ClassVar[str] = "downstream_tasks"
    module: ClassVar[str] = "minillm.evaluation.downstream.tasks"
    inputs: ClassVar[tuple[str, ...]] = (
        "prepared/*",
        "rows/*",
        "examples/*",
    )
    reads_only: ClassVar[bool] = True
    for_evaluation: ClassVar[bool] = True
    harness: str
    """Version of lm-evaluation-harness, which defines the tasks."""
    tasks: tuple[str, ...]
    few_shot: int | None
    template: Template | None
    """Chat template of the questions; None for plain text."""
    parts: dict[str, str]
    """Field that names a local row's task within its group, by the name of the group or task in `tasks`."""
    changes: dict[str, dict[str, Any]]
