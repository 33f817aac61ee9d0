"""What is measured of the models, and on what (method.md §7)."""

from typing import Any, Literal, Self

from pydantic import Field, PositiveInt, field_validator, model_validator

from minillm.config.base import Entries, Seeds, Source, Strict, Temperature
from minillm.config.judge import Judge
from minillm.nearest import suggestion


class Fields(Strict):
    """Names of the fields in a benchmark's rows; without them, those of Dolly or of the authors' files."""

    instruction: str = "instruction"
    """What is asked."""
    context: str | None = None
    """What it is asked about; without a name, `context` or `input`, where there is one."""
    references: str | None = None
    """One right answer or a list of them; without a name, `output` or `response`."""
    topic: str | None = None
    """What the row is about; without a name, `topic` or `category`, where there is one."""


Metric = Literal["rouge_l", "rouge_l_characters", "exact_match"]
"""Scores of a response against its references. Rouge-L of words knows a–z and digits alone (as the paper's); that of
characters, letters and digits of any script."""


class Benchmark(Strict):
    """One evaluation set, as a record: a new one needs no code."""

    source: Source
    """Its rows, pinned by `revision` on the hub and by `sha256` on disk."""
    fields: Fields = Fields()
    topics: tuple[str, ...] | None = Field(default=None, min_length=1)
    """Only rows of these topics count; without it, all rows."""
    metric: Metric = "rouge_l"
    """Score of the tables, intervals and ranks (paper: rouge_l). Rouge-L and exact match are always measured,
    rouge_l_characters where a benchmark asks for it."""
    min_reference_tokens: int = Field(default=0, ge=0)
    """The headline score is over prompts whose first reference has at least this many tokens
    (paper: 11 for S-NI and UnNI)."""
    length_subsets: bool = False
    """Also report the score by reference length: [0,5], [6,10], [11,∞) tokens."""


class ExposureBias(Strict):
    """Excess accumulated error of every student, over the stored responses to one benchmark (method.md §7)."""

    benchmark: str | None = None
    """Name of the benchmark; without it, the first one (reference scripts: dolly)."""
    max_length: PositiveInt | None = None
    """Longest l, tokens of a response; without it, what every prompt leaves room for:
    `data.max_tokens` − `data.max_prompt_tokens`."""
    prompts: PositiveInt | None = None
    """At most so many prompts, evenly spread over the benchmark; without it, all of them."""


class QuestionFields(Strict):
    """Names of the fields in the rows of a multiple-choice set."""

    question: str = "question"
    """What `{question}` stands for."""
    context: str | None = None
    """What it is asked about; without a name, nothing."""
    choices: str = "choices"
    """A list of texts or, as in ARC, {text, label} of two lists. Not read where the record has `choices`."""
    answer: str = "answer"
    """The right choice: where there are labels, its label; else its text, its number counted from 0, or false and true
    for 0 and 1."""


class MultipleChoice(Strict):
    """One classification set to measure calibration on, as a record: a new one needs no code."""

    source: Source
    """Its rows, pinned by `revision` on the hub and by `sha256` on disk."""
    fields: QuestionFields = QuestionFields()
    instruction: str = "{question}"
    """What is asked, for `data.template`; {question} stands for the row's."""
    choices: tuple[str, ...] | None = Field(default=None, min_length=2)
    """The classes, where every row has the same, e.g. negative and positive."""
    prompts: PositiveInt | None = None
    """Rows to measure on, evenly spaced over the set; without it, all."""

    @model_validator(mode="after")
    def _choices_are_told_apart(self) -> Self:
        if self.choices is None:
            return self
        if not all(map(str.strip, self.choices)) or len(set(self.choices)) < len(self.choices):
            raise ValueError(f"choices {list(self.choices)} must be different texts, none of them blank")
        if self.fields._changed("choices"):
            raise ValueError("`choices` are the same for every row, so that fields.choices is not read; leave one out")
        return self

    @model_validator(mode="after")
    def _prompts_differ(self) -> Self:
        if "{question}" in self.instruction:
            return self
        if self.fields.context is None:
            raise ValueError(
                "every prompt would be the same; write {question} into `instruction` or name a context in `fields`"
            )
        if self.fields._changed("question"):
            raise ValueError("`instruction` has no {question}, so that fields.question is not read; leave it out")
        return self


class LocalTask(Strict):
    """Local rows in the place of a harness task's data set on the hub; they have the fields of the hub's."""

    source: Source
    """The questions."""
    examples: Source | None = None
    """Rows that few-shot examples are taken from; needed where `few_shot` is not 0."""
    part: str | None = None
    """Field that says which of a group's tasks a row belongs to, by the harness's `dataset_name`: subject for mmlu."""
    changes: dict[str, Any] = Field(default_factory=dict)
    """Fields of the harness's task that these rows need otherwise, e.g. {process_docs: null} for rows that have been
    through it."""


class Downstream(Strict):
    """Tasks of lm-evaluation-harness, with its own prompts and metrics; needs the extra `downstream`."""

    tasks: tuple[str, ...] = Field(min_length=1)
    """Names of the harness's tasks, groups or tags: arc_easy, hellaswag, mmlu …"""
    few_shot: int | None = Field(default=None, ge=0)
    """Examples before each question; without it, as many as the task itself says. A task that says 0 stays at 0."""
    limit: PositiveInt | None = None
    """Questions of each task (of each of a group's tasks), from the first; without it, all."""
    local: dict[str, LocalTask] = Field(default_factory=dict)
    """By name of the task: rows at hand, so that the hub is not asked."""

    @model_validator(mode="after")
    def _local_tasks_are_asked_for(self) -> Self:
        if unread := sorted(set(self.local) - set(self.tasks)):
            raise ValueError(f"`local` has rows for {', '.join(unread)}, not among `tasks`: {', '.join(self.tasks)}")
        return self


class Sampling(Strict):
    """How responses are generated; the defaults are the paper's."""

    strategy: Literal["sample", "greedy"] = "sample"
    """Draw each token, or take the likeliest (paper: draw)."""
    temperature: Temperature = 1.0
    """Sampling temperature (paper: 1)."""
    top_k: PositiveInt | None = None
    """Draw from this many likeliest tokens only (paper: from all)."""
    top_p: float | None = Field(default=None, gt=0.0, lt=1.0)
    """Draw from the likeliest tokens that together have this probability (paper: from all)."""
    no_repeat_ngram: PositiveInt | None = None
    """Forbid repeating n-grams of this length in a response (paper: none; reference code: 6)."""

    @model_validator(mode="after")
    def _greedy_draws_nothing(self) -> Self:
        if self.strategy == "greedy" and (unread := self._changed("temperature", "top_k", "top_p")):
            raise ValueError(f"strategy: greedy draws nothing and does not use {' and '.join(unread)}; leave it out")
        return self


class Evaluation(Sampling):
    """Final evaluation (method.md §7): plain sampling, one generation per seed, stored and scored apart."""

    benchmarks: Entries[Benchmark] = Field(min_length=1)
    calibration: Entries[MultipleChoice] = Field(default_factory=dict)
    """Sets on which calibration and accuracy are measured, zero-shot (paper: SST-2, BoolQ). Empty: not measured."""
    held_out: Entries[Source] = Field(default_factory=dict)
    """Plain texts that no model trains on, whose loss is measured; with them, that of the benchmarks' first references
    too. Empty: neither is measured."""
    seeds: Seeds = (10, 20, 30, 40, 50)
    """One generation each (paper: these five)."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of weights and matrix products where responses are generated, for benchmarks and for SeqKD, and where given text
    is scored; log-probabilities are float32 either way."""
    max_prompt_tokens: PositiveInt | None = None
    """Longest prompt of a benchmark or of `calibration`, tokens; without it, `data.max_prompt_tokens`."""
    long_prompts: Literal["refuse", "cut"] = "refuse"
    """What happens to a longer prompt: an error, or its beginning is cut off and it is reported."""
    preference: Source | None = None
    """What people said of pairs of answers, as `python -m minillm.annotation --export` writes it (CSV)."""
    validation_prompts: PositiveInt = 1000
    """Validation prompts that a response is sampled for when selecting by Rouge-L."""
    judge: Judge | None = None
    """Rates the answers; without it, no endpoint is asked."""
    exposure_bias: ExposureBias | None = None
    """What the students' own mistakes cost them (paper §3.3); without it, not measured."""
    downstream: Downstream | None = None
    """General abilities beside the benchmarks (ARC, HellaSwag, MMLU …); without it, none."""

    @field_validator("benchmarks")
    @classmethod
    def _settings_have_one_owner(cls, benchmarks: dict[str, Benchmark]) -> dict[str, Benchmark]:
        """MLflow keeps `evaluation.benchmarks.NAME.FIELD`, which comparisons of runs read by the name."""
        for name in benchmarks:
            if within := [other for other in benchmarks if name.startswith(f"{other}.")]:
                raise ValueError(
                    f"{name!r} reads like a setting of {within[0]!r}, since settings follow a dot; rename one"
                )
        return benchmarks

    @model_validator(mode="after")
    def _judge_knows_what_it_judges(self) -> Self:
        for name in self.judge.benchmarks if self.judge else ():
            if name not in self.benchmarks:
                raise ValueError(f"judge.benchmarks: {name!r} is no benchmark; {suggestion(name, self.benchmarks)}")
        if self.judge and (unknown := sorted(set(self.judge.seeds or ()) - set(self.seeds))):
            raise ValueError(
                f"judge.seeds {unknown} are not among evaluation.seeds {list(self.seeds)}; name some of these"
            )
        return self

    @model_validator(mode="after")
    def _exposure_bias_can_be_measured(self) -> Self:
        if self.exposure_bias is None:
            return self
        name = self.exposure_bias.benchmark
        if name is not None and name not in self.benchmarks:
            raise ValueError(
                f"exposure_bias.benchmark is {name!r}, but the benchmarks are {', '.join(self.benchmarks)}; "
                "name one of them"
            )
        if changed := self._changed(*Sampling.model_fields):
            given = " and ".join(f"{field}: {getattr(self, field)}" for field in changed)
            raise ValueError(
                "exposure_bias is defined on plain samples at temperature 1, but responses are generated with "
                f"{given}; leave that out, or set exposure_bias: null"
            )
        return self

    @model_validator(mode="after")
    def _texts_and_benchmarks_differ(self) -> Self:
        if both := sorted(self.held_out.keys() & self.benchmarks):
            raise ValueError(f"held_out.{both[0]} has the name of a benchmark, beside which it is shown; rename it")
        return self
