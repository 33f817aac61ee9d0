"""Stages that measure models: they generate responses once, store them, and measure the stored responses."""

from typing import Any, ClassVar, Literal, get_args

from minillm.config import Benchmark, Judge, Metric, Sampling, Strict, Template
from minillm.stages.base import Stage
from minillm.stages.training import Train


class Generate(Sampling, Stage):
    """Generate responses to every benchmark, once per seed.

    Output for each benchmark: `NAME.jsonl` with texts to read and score, `NAME.parquet` with token ids of prompts and
    responses.
    """

    kind: ClassVar[str] = "generate"
    module: ClassVar[str] = "minillm.generation.answering"
    inputs: ClassVar[tuple[str, ...]] = (
        "model",
        "tokenizer",
        "prompts",
    )
    shares_work: ClassVar[bool] = True
    seeds: tuple[int, ...]
    precision: Literal["float32", "bfloat16"]
    max_tokens: int
    """Longest prompt with its response, in tokens."""
    max_response_tokens: int | None = None
    """Longest response, in tokens, after a shorter prompt too; None for no such limit."""


class Cost(Stage):
    """Measure time and memory of generation, one model at a time; inputs are named `model/ROLE` and so on."""

    kind: ClassVar[str] = "cost"
    module: ClassVar[str] = "minillm.generation.cost"
    inputs: ClassVar[tuple[str, ...]] = (
        "model/*",
        "tokenizer/*",
        "prompts/*",
    )
    shown: ClassVar[tuple[str, ...]] = ("tokens_per_second", "peak_memory_gib")
    prompts: ClassVar[int] = 64
    """Prompts that each model answers."""
    rounds: ClassVar[int] = 5
    """Timed rounds; an untimed one precedes them."""
    roles: tuple[str, ...]
    benchmark: str
    """Benchmark whose prompts are answered."""
    generate: Generate
    """Settings of generation, of which the first seed is used."""


class Score(Stage):
    """Score stored responses, without the model."""

    kind: ClassVar[str] = "score"
    module: ClassVar[str] = "minillm.evaluation.scoring"
    inputs: ClassVar[tuple[str, ...]] = (
        "responses",
        "benchmarks",
        "tokenizer",
    )
    shown: ClassVar[tuple[str, ...]] = get_args(Metric)
    runs_model: ClassVar[bool] = False
    role: str
    seeds: tuple[int, ...]
    benchmarks: dict[str, Benchmark]
    strip: str | None = None
    """Regular expression whose matches are taken out of each response and reference."""


class Diversity(Stage):
    """Measure distinct n-grams and self-overlap of stored responses, without the model."""

    kind: ClassVar[str] = "diversity"
    module: ClassVar[str] = "minillm.evaluation.diversity"
    inputs: ClassVar[tuple[str, ...]] = ("responses",)
    shown: ClassVar[tuple[str, ...]] = ("distinct_4", "self_overlap")
    runs_model: ClassVar[bool] = False
    role: str
    benchmarks: tuple[str, ...]


class Judging(Stage):
    """Let a strong model rate stored responses beside their references.

    Settings of asking (timeouts, budget) are part of the stage too: another value computes it again, from the answers
    already paid for.
    """

    kind: ClassVar[str] = "judge"
    module: ClassVar[str] = "minillm.judging.rating"
    inputs: ClassVar[tuple[str, ...]] = (
        "responses",
        "benchmarks",
    )
    shown: ClassVar[tuple[str, ...]] = ("judge",)
    runs_model: ClassVar[bool] = False
    role: str
    judge: Judge
    seeds: tuple[int, ...]
    """Seeds of the generations that are judged."""
    methods: int
    """Number of rows of the table, which share the budget equally."""
    strip: str | None = None
    """Regular expression whose matches are taken out of each response and reference."""


class Preference(Stage):
    """Count what people said of pairs of answers; `judgements` is a CSV file, `responses/ROLE` those of a method."""

    kind: ClassVar[str] = "preference"
    module: ClassVar[str] = "minillm.evaluation.preference"
    inputs: ClassVar[tuple[str, ...]] = (
        "judgements",
        "responses/*",
    )
    for_evaluation: ClassVar[bool] = True
    shown: ClassVar[tuple[str, ...]] = ("preference",)
    runs_model: ClassVar[bool] = False


class Exposure(Stage):
    """Measure the excess accumulated error of a student on stored responses of both models."""

    kind: ClassVar[str] = "exposure"
    module: ClassVar[str] = "minillm.evaluation.exposure"
    inputs: ClassVar[tuple[str, ...]] = (
        "student",
        "teacher",
        "tokenizer",
        "responses",
        "teacher_responses",
    )
    shares_work: ClassVar[bool] = True
    shown: ClassVar[tuple[str, ...]] = ("exaccerr", "reverse_kl", "forward_kl")
    role: str
    benchmark: str
    max_length: int
    """Longest l, in tokens of a response."""
    prompts: int | None
    """Most prompts to measure on; None for all."""
    precision: Literal["float32", "bfloat16"]


class Calibration(Stage):
    """Measure accuracy and calibration on multiple-choice sets."""

    kind: ClassVar[str] = "calibration"
    module: ClassVar[str] = "minillm.evaluation.calibration"
    inputs: ClassVar[tuple[str, ...]] = (
        "model",
        "tokenizer",
        "questions",
    )
    shares_work: ClassVar[bool] = True
    shown: ClassVar[tuple[str, ...]] = ("ece", "accuracy")
    role: str
    sets: tuple[str, ...]
    precision: Literal["float32", "bfloat16"]


class HeldOut(Stage):
    """Measure loss and next-token calibration on the benchmarks' first references and on plain texts.

    Without benchmarks, `benchmarks` and `prompts` are no inputs.
    """

    kind: ClassVar[str] = "held_out"
    module: ClassVar[str] = "minillm.evaluation.held_out"
    inputs: ClassVar[tuple[str, ...]] = (
        "model",
        "tokenizer",
        "benchmarks?",
        "prompts?",
        "texts",
    )
    shares_work: ClassVar[bool] = True
    shown: ClassVar[tuple[str, ...]] = ("held_out_loss", "bits_per_byte", "next_token_ece")
    role: str
    benchmarks: tuple[str, ...]
    texts: tuple[str, ...]
    precision: Literal["float32", "bfloat16"]
    max_tokens: int
    """Longest prompt with its reference, in tokens; tokens beyond it are not counted."""
    block_tokens: int
    """Tokens in a block of plain text."""


class DownstreamScore(Stage):
    """Answer the harness's tasks with one model."""

    kind: ClassVar[str] = "downstream"
    module: ClassVar[str] = "minillm.evaluation.downstream.answering"
    inputs: ClassVar[tuple[str, ...]] = (
        "model",
        "tokenizer",
        "tasks",
    )
    shown: ClassVar[tuple[str, ...]] = ("downstream",)
    role: str
    limit: int | None
    template: Template | None
    """Chat template of the questions; None for plain text."""
    precision: Literal["float32", "bfloat16"]


class Outlook(Strict):
    """Comparison of the teacher with the student that a distillation starts from, on validation rows."""

    template: Template
    metric: Metric | None
    """Metric that the distillation selects by; None for the first one that sees the references."""
    max_tokens: int
    """Longest prompt with response, in tokens."""
    strip: str | None = None
    """Regular expression whose matches are taken out of each response and reference."""
    part: int = 0
    """Which of `parts` equal parts of the rows is measured here."""
    parts: int = 1


class Speed(Stage):
    """Time what repeats in a run, for its plan, and compare the models that are there.

    `teacher` and `student` are inputs unless they have an architecture to initialise. Output: `speed.json` and
    `outlook.json`.
    """

    kind: ClassVar[str] = "speed"
    module: ClassVar[str] = "minillm.planning.speed"
    inputs: ClassVar[tuple[str, ...]] = (
        "prepared",
        "examples",
        "teacher?",
        "student?",
    )
    architectures: dict[str, dict[str, Any]]
    """Architectures of `teacher` and `student`, where their weights are not there yet."""
    trainings: dict[str, Train]
    """Trainings whose steps take different times, by `minillm.planning.work.same_speed`."""
    generate: Generate
    responses: int
    """Responses of one model to all benchmarks with all seeds."""
    seconds: float
    """Seconds that the worker should take from its start to its end."""
    outlook: Outlook | None = None
    """Comparison of the models; None where one of them has random weights."""
