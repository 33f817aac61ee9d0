"""The table of stages: what each is called, which module computes it, and the settings that decide its result.

A stage's settings hold exactly the fields that change its output; its inputs are other artifacts or source files.
Nothing heavy is imported here, so that a flow that finds everything cached ends within seconds.
"""

from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field, SerializeAsAny

from minillm.config import (
    Benchmark,
    Fields,
    Judge,
    Lora,
    Method,
    Metric,
    Model,
    MultipleChoice,
    Runtime,
    Strict,
    Template,
    Tokenizer,
    Training,
)


class Stage(Strict):
    """Settings of one stage. Subclasses name the stage and the module whose `run` computes it."""

    kind: ClassVar[str]
    module: ClassVar[str]
    shown: ClassVar[tuple[str, ...]] = ()
    """First parts of the names in its summary that the flow run's own tracked run shows too, by row of the table."""

    @property
    def rows(self) -> list[str]:
        """The row of the table that it is about, if it is about one."""
        role = getattr(self, "role", None)
        return [role] if role is not None else []


class Prepare(Stage):
    """Train or load the tokenizer that models share; check that all fit it and the lengths asked for.

    Inputs: the directory of each model that has one, by its name in `models`; `tokenizer` (where given); to train
    one, `instructions`, `split`, `plain_text`. Output: the tokenizer's files and `models.json`.
    """

    kind: ClassVar[str] = "prepare"
    module: ClassVar[str] = "minillm.models.preparation"
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
    template: Template
    max_prompt_tokens: int
    long_prompts: Literal["refuse", "cut"]


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
    selected_by: tuple[Metric, ...] = ()
    """Metrics that select weights on the validation rows, so that they must see these."""


class Pack(Stage):
    """Tokenise a plain-text corpus into one memory-mapped array. Inputs: `plain_text`, `tokenizer`."""

    kind: ClassVar[str] = "pack"
    module: ClassVar[str] = "minillm.data.packing"
    block_tokens: int


class HeldOutTexts(Stage):
    """Tokenise plain texts to measure the loss on. Inputs: `tokenizer`, `held_out/NAME`. Output: NAME/ each."""

    kind: ClassVar[str] = "held_out_texts"
    module: ClassVar[str] = "minillm.data.held_out_texts"
    texts: tuple[str, ...]
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
    """Generate responses to every benchmark, once per seed.

    Inputs: `model`, `tokenizer`, `prompts`. Output, for each benchmark: texts to read and score in `NAME.jsonl`,
    token ids of prompts and responses in `NAME.parquet`.
    """

    kind: ClassVar[str] = "generate"
    module: ClassVar[str] = "minillm.generation.answering"
    seeds: tuple[int, ...]
    strategy: Literal["sample", "greedy"]
    temperature: float
    top_k: int | None
    top_p: float | None
    no_repeat_ngram: int | None
    precision: Literal["float32", "bfloat16"]
    max_tokens: int
    """Longest prompt with its response."""


class Cost(Stage):
    """What generating takes, of one model after another. Inputs: `model/ROLE`, `tokenizer/ROLE`, `prompts/ROLE`."""

    kind: ClassVar[str] = "cost"
    module: ClassVar[str] = "minillm.generation.cost"
    shown: ClassVar[tuple[str, ...]] = ("tokens_per_second", "peak_memory_gib")
    roles: tuple[str, ...]
    benchmark: str
    """Whose prompts are answered."""
    generate: Generate
    """How; with its first seed."""


class Score(Stage):
    """Score stored responses; needs no model. Inputs: `responses`, `benchmarks`, `tokenizer`."""

    kind: ClassVar[str] = "score"
    module: ClassVar[str] = "minillm.evaluation.scoring"
    shown: ClassVar[tuple[str, ...]] = ("rouge_l", "rouge_l_characters", "exact_match")
    role: str
    seeds: tuple[int, ...]
    benchmarks: dict[str, Benchmark]


class Diversity(Stage):
    """Distinct n-grams and self-overlap of stored responses; needs no model. Inputs: `responses`."""

    kind: ClassVar[str] = "diversity"
    module: ClassVar[str] = "minillm.evaluation.diversity"
    shown: ClassVar[tuple[str, ...]] = ("distinct_4", "self_overlap")
    role: str
    benchmarks: tuple[str, ...]


class Judging(Stage):
    """A strong model rates stored responses beside their references. Inputs: `responses`, `benchmarks`.

    How it is asked (timeouts, budget) stands here too: another value computes again, from answers already paid for.
    """

    kind: ClassVar[str] = "judge"
    module: ClassVar[str] = "minillm.judging.stage"
    shown: ClassVar[tuple[str, ...]] = ("judge",)
    role: str
    judge: Judge
    seeds: tuple[int, ...]
    """Of the generations that are judged."""
    methods: int
    """Rows of the table, which share the budget equally."""


class Preference(Stage):
    """What people said of pairs of answers. Inputs: `judgements` (CSV); `responses/ROLE` for each method."""

    kind: ClassVar[str] = "preference"
    module: ClassVar[str] = "minillm.evaluation.preference"
    shown: ClassVar[tuple[str, ...]] = ("preference",)


class Exposure(Stage):
    """Excess accumulated error of a student, from stored responses of both models.

    Inputs: `student`, `teacher` (models), `tokenizer`, `responses` (the student's), `teacher_responses`.
    """

    kind: ClassVar[str] = "exposure"
    module: ClassVar[str] = "minillm.evaluation.exposure"
    shown: ClassVar[tuple[str, ...]] = ("exaccerr",)
    role: str
    benchmark: str
    max_length: int
    """Longest l, tokens of a response."""
    prompts: int | None
    """At most so many; None for all."""
    precision: Literal["float32", "bfloat16"]


class Calibration(Stage):
    """Accuracy and calibration on multiple-choice sets. Inputs: `model`, `tokenizer`, `questions`."""

    kind: ClassVar[str] = "calibration"
    module: ClassVar[str] = "minillm.evaluation.calibration"
    shown: ClassVar[tuple[str, ...]] = ("ece", "accuracy")
    role: str
    sets: tuple[str, ...]
    precision: Literal["float32", "bfloat16"]


class HeldOut(Stage):
    """Loss and calibration of the next token on the benchmarks' first references and on plain texts.

    Inputs: `model`, `tokenizer`, `benchmarks`, `prompts`, `texts`.
    """

    kind: ClassVar[str] = "held_out"
    module: ClassVar[str] = "minillm.evaluation.held_out"
    shown: ClassVar[tuple[str, ...]] = ("held_out_loss", "bits_per_byte", "next_token_ece")
    role: str
    benchmarks: tuple[str, ...]
    texts: tuple[str, ...]
    precision: Literal["float32", "bfloat16"]
    max_tokens: int
    """Longest prompt with its reference; what goes beyond is not counted."""
    block_tokens: int
    """Of plain text."""


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
    shown: ClassVar[tuple[str, ...]] = ("downstream",)
    role: str
    limit: int | None
    precision: Literal["float32", "bfloat16"]


class Report(Stage):
    """Tables, plots and the page.

    Inputs: `benchmarks`, `cost`; `prompts/ROLE`, `score/ROLE`, `diversity/ROLE` and `responses/ROLE` (generate) for
    each row of the table;
    `exposure/ROLE`, `calibration/ROLE`, `held_out/ROLE`, `downstream/ROLE` and `judge/ROLE` for those measured,
    `preference` where people compared answers; `train/ROLE` for each model trained here, the initial student too, and
    `examples` where any was.
    """

    kind: ClassVar[str] = "report"
    module: ClassVar[str] = "minillm.reporting.report"
    name: str
    roles: tuple[str, ...]
    """Rows of the table, in order; the first is the teacher, or else what the others are measured against."""
    benchmarks: tuple[str, ...]
    models: dict[str, Model]
    """Where the rows come from that were not trained here."""
    planned: dict[str, float]
    """Seconds of each stage, by its name, that `--plan` estimated; none where it was not asked."""


class StudyReport(Stage):
    """Variants of a configuration against each other.

    Inputs: `score/VARIANT/SEED` and, where it was trained, `train/VARIANT/SEED`: the compared row of every run.
    """

    kind: ClassVar[str] = "study"
    module: ClassVar[str] = "minillm.reporting.study"
    shown: ClassVar[tuple[str, ...]] = ("score", "difference", "p_value")
    name: str
    base: str
    method: str
    changes: dict[str, tuple[str, ...]]
    """Overrides of each variant whose runs are all there, in the order of the table."""
    baseline: str
    seeds: tuple[int, ...]
    """Of training."""
    points: dict[str, float] | None
    """Value of the one number that variants differ in; None where they differ in something else."""
    parameter: str | None
    """Its field."""
    missing: tuple[str, ...]
    """Runs that failed; the variants they belong to are left out."""


class Card(Stage):
    """The distilled model as an ordinary model directory with its card.

    Inputs: `model`, `examples`, `report`; output: what `AutoModelForCausalLM.from_pretrained` loads.
    """

    kind: ClassVar[str] = "model"
    module: ClassVar[str] = "minillm.reporting.model_card"
    role: str
    config: dict
    """The resolved configuration without `runtime` and `promotion`, for the card's provenance."""


class Speed(Stage):
    """How long the steps of a run take, for its plan.

    Inputs: `tokenizer`, `examples`, `plain_text` (where a training reads it); `teacher` and `student`, unless they have
    an architecture to initialise. Output: `speed.json`.
    """

    kind: ClassVar[str] = "speed"
    module: ClassVar[str] = "minillm.planning.speed"
    architectures: dict[str, dict[str, Any]]
    """Of `teacher` and `student`, where their weights are not there yet."""
    trainings: dict[str, Train]
    """By what tells them apart (see `minillm.planning.trainings`)."""
    generate: Generate
    responses: int
    """To all benchmarks with all seeds, by one model."""


STAGES: tuple[type[Stage], ...] = (
    Prepare, Benchmarks, EncodedPrompts, Questions, Filter, Pack, HeldOutTexts, DownstreamTasks, Train, Respond,
    Generate, Cost, Score, Diversity, Exposure, Calibration, HeldOut, DownstreamScore, Judging, Preference, Report,
    StudyReport, Card, Speed,
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
