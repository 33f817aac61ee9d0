"""The table of stages: what each is called, which module computes it, and the settings that decide its result.

A stage's settings hold exactly the fields that change its output; its inputs are other artifacts or source files.
Nothing heavy is imported here, so that a flow that finds everything cached ends within seconds.
"""

from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field, SerializeAsAny

from minillm.config import Benchmark, Fields, Method, Model, Runtime, Strict, Template, Tokenizer, Training


class Stage(Strict):
    """Settings of one stage. Subclasses name the stage and the module whose `run` computes it."""

    kind: ClassVar[str]
    module: ClassVar[str]


class Prepare(Stage):
    """Train or load the tokenizer; check that teacher and student fit it and the lengths asked for.

    Inputs: `teacher`, `student` (model directories, where given); `tokenizer` (where given); to train one,
    `instructions`, `split`, `plain_text`. Output: the tokenizer's files and `models.json`.
    """

    kind: ClassVar[str] = "prepare"
    module: ClassVar[str] = "minillm.models.preparation"
    tokenizer: Tokenizer
    template: Template
    teacher: Model
    student: Model
    max_tokens: int
    generation_tokens: int
    """Longest benchmark prompt with response, tokens."""


class Benchmarks(Stage):
    """Read the benchmarks into one format. Inputs: one source per benchmark. Output: `NAME.jsonl` each."""

    kind: ClassVar[str] = "benchmarks"
    module: ClassVar[str] = "minillm.data.benchmarks"
    fields: dict[str, Fields]
    """By the name of the benchmark."""
    topics: dict[str, tuple[str, ...]]
    """Of the benchmarks that are not whole."""


class Filter(Stage):
    """Drop what must not be trained on, report it, split and tokenise the rest.

    Inputs: `instructions`, `split` (where given), `tokenizer`, `benchmarks`.
    """

    kind: ClassVar[str] = "filter"
    module: ClassVar[str] = "minillm.data.filtering"
    template: Template
    max_prompt_tokens: int
    max_tokens: int
    max_malformed_share: float
    validation_size: int | None
    test_size: int | None
    seed: int | None
    """The last three are None where a split is given."""


class Pack(Stage):
    """Tokenise a plain-text corpus into one memory-mapped array. Inputs: `plain_text`, `tokenizer`."""

    kind: ClassVar[str] = "pack"
    module: ClassVar[str] = "minillm.data.packing"
    block_tokens: int


class Train(Stage):
    """Train one model by one method.

    Inputs: `tokenizer`, `examples`; `weights` (initial model, unless `model.architecture`); `teacher` where the
    method compares with it; `responses` for `text: teacher`; `plain_text` where it has a weight.
    """

    kind: ClassVar[str] = "train"
    module: ClassVar[str] = "minillm.training.trainer"
    role: str
    """What the trained model is called in logs and tables: teacher, initial, sft, minillm …"""
    method: Method
    architecture: dict | None
    """Of a model to initialise at random; None where `weights` is an input."""
    max_tokens: int
    validation_prompts: int
    seed: int


class Respond(Stage):
    """Generate the teacher's responses to the training prompts (SeqKD). Inputs: `model`, `tokenizer`, `examples`."""

    kind: ClassVar[str] = "respond"
    module: ClassVar[str] = "minillm.generation.responding"
    max_tokens: int
    precision: Literal["float32", "bfloat16"]
    seed: int


class Generate(Stage):
    """Generate responses to every benchmark, once per seed. Inputs: `model`, `tokenizer`, `benchmarks`."""

    kind: ClassVar[str] = "generate"
    module: ClassVar[str] = "minillm.generation.answering"
    role: str
    template: Template
    seeds: tuple[int, ...]
    strategy: Literal["sample", "greedy"]
    temperature: float
    top_k: int | None
    top_p: float | None
    no_repeat_ngram: int | None
    precision: Literal["float32", "bfloat16"]
    max_prompt_tokens: int
    long_prompts: Literal["refuse", "cut"]
    max_tokens: int


class Score(Stage):
    """Score stored responses; needs no model. Inputs: `responses`, `benchmarks`, `tokenizer`."""

    kind: ClassVar[str] = "score"
    module: ClassVar[str] = "minillm.evaluation.scoring"
    role: str
    seeds: tuple[int, ...]
    benchmarks: dict[str, Benchmark]


class Diversity(Stage):
    """Distinct n-grams and self-overlap of stored responses; needs no model. Inputs: `responses`."""

    kind: ClassVar[str] = "diversity"
    module: ClassVar[str] = "minillm.evaluation.diversity"
    role: str
    benchmarks: tuple[str, ...]


class DownstreamTasks(Stage):
    """Find and check the harness's tasks, before anything is trained.

    Inputs: `prepared/…` (for the models' positions); `rows/NAME` and `examples/NAME` of tasks with local rows.
    Output: plan.json, and those rows by task.
    """

    kind: ClassVar[str] = "downstream_tasks"
    module: ClassVar[str] = "minillm.evaluation.downstream_tasks"
    harness: str
    """Version of lm-evaluation-harness, which defines the tasks."""
    tasks: tuple[str, ...]
    few_shot: int | None
    parts: dict[str, str]
    """By name of the task with local rows, as `changes`."""
    changes: dict[str, dict[str, Any]]


class DownstreamScore(Stage):
    """Answer the harness's tasks with one model. Inputs: `model`, `tokenizer`, `tasks`."""

    kind: ClassVar[str] = "downstream"
    module: ClassVar[str] = "minillm.evaluation.downstream"
    role: str
    limit: int | None
    precision: Literal["float32", "bfloat16"]


class Report(Stage):
    """Tables, plots and the page.

    Inputs: `examples`, `benchmarks`; `score/ROLE`, `diversity/ROLE`, `responses/ROLE` (generate) and, where it was
    measured, `downstream/ROLE` for each row of the table; `train/ROLE` for each model trained here, the initial student
    too (a ready-made teacher has none).
    """

    kind: ClassVar[str] = "report"
    module: ClassVar[str] = "minillm.reporting.report"
    name: str
    roles: tuple[str, ...]
    """Rows of the table, in order; the first is the teacher."""
    benchmarks: tuple[str, ...]


class Card(Stage):
    """The distilled model as an ordinary model directory with its card.

    Inputs: `model`, `examples`, `report`; output: what `AutoModelForCausalLM.from_pretrained` loads.
    """

    kind: ClassVar[str] = "model"
    module: ClassVar[str] = "minillm.reporting.model_card"
    role: str
    config: dict
    """The resolved configuration without `runtime`, for the card's provenance."""


STAGES: tuple[type[Stage], ...] = (
    Prepare, Benchmarks, Filter, Pack, Train, Respond, Generate, Score, Diversity, DownstreamTasks, DownstreamScore,
    Report, Card,
)  # fmt: skip


class Job(Strict):
    """One resolved stage, as the worker reads it from its spec file."""

    kind: str
    settings: SerializeAsAny[Stage]
    inputs: dict[str, Path]
    """Artifact directories and source files, by the names in the stage's docstring."""
    output: Path
    """Folder that becomes the artifact."""
    work: Path
    """Folder that survives a failure: checkpoints, parts already done."""
    runtime: Runtime = Field(default_factory=Runtime)


def training_only(training: Training) -> Method:
    """The method of plain fine-tuning on D: teacher and initial student."""
    return Method(text="dataset", divergence="cross_entropy", training=training)
