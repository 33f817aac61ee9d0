"""Stages that measure models: responses, generated once and stored, and what is measured on them."""

from typing import Any, ClassVar, Literal

from minillm.config import Benchmark, Judge, Sampling
from minillm.stages.base import Stage
from minillm.stages.training import Train


class Generate(Sampling, Stage):
    """Generate responses to every benchmark, once per seed.

    Inputs: `model`, `tokenizer`, `prompts`. Output, for each benchmark: texts to read and score in `NAME.jsonl`,
    token ids of prompts and responses in `NAME.parquet`.
    """

    kind: ClassVar[str] = "generate"
    module: ClassVar[str] = "minillm.generation.answering"
    shares_work: ClassVar[bool] = True
    seeds: tuple[int, ...]
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
    for_evaluation: ClassVar[bool] = True
    shown: ClassVar[tuple[str, ...]] = ("preference",)


class Exposure(Stage):
    """Excess accumulated error of a student, from stored responses of both models.

    Inputs: `student`, `teacher` (models), `tokenizer`, `responses` (the student's), `teacher_responses`.
    """

    kind: ClassVar[str] = "exposure"
    module: ClassVar[str] = "minillm.evaluation.exposure"
    shares_work: ClassVar[bool] = True
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
    shares_work: ClassVar[bool] = True
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
    shares_work: ClassVar[bool] = True
    shown: ClassVar[tuple[str, ...]] = ("held_out_loss", "bits_per_byte", "next_token_ece")
    role: str
    benchmarks: tuple[str, ...]
    texts: tuple[str, ...]
    precision: Literal["float32", "bfloat16"]
    max_tokens: int
    """Longest prompt with its reference; what goes beyond is not counted."""
    block_tokens: int
    """Of plain text."""


class DownstreamScore(Stage):
    """Answer the harness's tasks with one model. Inputs: `model`, `tokenizer`, `tasks`."""

    kind: ClassVar[str] = "downstream"
    module: ClassVar[str] = "minillm.evaluation.downstream.answering"
    shown: ClassVar[tuple[str, ...]] = ("downstream",)
    role: str
    limit: int | None
    precision: Literal["float32", "bfloat16"]


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
