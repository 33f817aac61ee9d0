"""Measurements of the models, and the data they are made on (method.md §7)."""

from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, PositiveInt, field_validator, model_validator

from minillm.config.base import Entries, Pattern, Seeds, Source, Strict, Temperature
from minillm.config.judge import Judge
from minillm.metrics.json_schema import check_schema
from minillm.nearest import suggestion
from minillm.patterns import check_group


class Fields(Strict):
    """Names of the fields in a benchmark's rows; the defaults are those of Dolly and of the authors' files."""

    instruction: str = "instruction"
    """Field with the instruction."""
    context: str | None = None
    """Field with the context of the instruction; without a name, `context` or `input` if the row has one."""
    references: str | None = None
    """Field with one right answer or a list of them; without a name, `output` or `response`."""
    topic: str | None = None
    """Field with the row's topic; without a name, `topic` or `category` if the row has one."""
    turns: str | None = None
    """Field with the user's texts, one for each turn of a conversation; without a name, `turns`."""
    json_schema: str | None = None
    """Field with the row's schema, an object or its text, for the metric json_schema; without a name, `json_schema` or
    `schema` if the row has one."""


Metric = Literal["rouge_l", "rouge_l_characters", "exact_match", "regex", "json_schema"]
"""Score of a response against its references, from 0 to 1; more is better (`minillm.metrics.by_name`)."""
ALWAYS: tuple[Metric, ...] = ("rouge_l", "exact_match")
"""Metrics that every benchmark is measured by."""


class Scoring(Strict):
    """Metric of a benchmark, and what it reads beside responses and references."""

    metric: Metric = "rouge_l"
    """Score of the tables, intervals and ranks (paper: rouge_l). rouge_l and exact_match are measured too."""
    pattern: Annotated[Pattern, AfterValidator(check_group)] | None = None
    """Regular expression with one group, which holds the part of a response or reference that the metric regex
    compares."""
    json_schema: Annotated[dict[str, Any], AfterValidator(check_schema)] | None = None
    """JSON schema for the metric json_schema, of all rows that have none of their own."""

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """All metrics that are measured."""
        return tuple(dict.fromkeys((*ALWAYS, self.metric)))

    @model_validator(mode="after")
    def _metric_reads_what_is_given(self) -> Self:
        for field, reader in (("pattern", "regex"), ("json_schema", "json_schema")):
            if getattr(self, field) is not None and self.metric != reader:
                raise ValueError(f"metric {self.metric} does not read `{field}`; leave it out, or set metric: {reader}")
        if self.metric == "regex" and self.pattern is None:
            raise ValueError("metric regex needs `pattern`, a regular expression whose group is compared")
        return self


class Benchmark(Scoring):
    """One evaluation set, described by data: a new one needs no code."""

    source: Source
    """Rows of the set, pinned by `revision` on the hub and by `sha256` on disk."""
    fields: Fields = Fields()
    topics: tuple[str, ...] | None = Field(default=None, min_length=1)
    """Topics whose rows count; without it, all rows do."""
    prompts: PositiveInt | None = None
    """Most rows to measure on, evenly spaced over those that count; without it, all."""
    min_reference_tokens: int = Field(default=0, ge=0)
    """Least tokens of the first reference: the headline score leaves out prompts with a shorter one
    (paper: 11 for S-NI and UnNI)."""
    length_subsets: bool = False
    """Also report the score by reference length: [0,5], [6,10], [11,∞) tokens."""


class ExposureBias(Strict):
    """Excess accumulated error of every student over the stored responses to one benchmark (method.md §7)."""

    benchmark: str | None = None
    """Name of the benchmark; without it, the first one (reference scripts: dolly)."""
    max_length: PositiveInt | None = None
    """Longest l, in tokens of a response; without it, the room after the longest prompt:
    `data.max_tokens` − `data.max_prompt_tokens`."""
    prompts: PositiveInt | None = None
    """Most prompts to measure on, evenly spaced over the benchmark; without it, all."""


class QuestionFields(Strict):
    """Names of the fields in the rows of a multiple-choice set."""

    question: str = "question"
    """Field that replaces `{question}` in the instruction."""
    context: str | None = None
    """Field with the context of the question; without a name, there is no context."""
    choices: str = "choices"
    """Field with the list of choices or, as in ARC, {text, label} with a list each. Not read if the set has its own
    `choices`."""
    answer: str = "answer"
    """Field with the right choice: its label if there are labels, or else its text, its number counted from 0, or false
    and true for 0 and 1."""


class MultipleChoice(Strict):
    """One classification set to measure calibration on, described by data: a new one needs no code."""

    source: Source
    """Rows of the set, pinned by `revision` on the hub and by `sha256` on disk."""
    fields: QuestionFields = QuestionFields()
    instruction: str = "{question}"
    """Instruction for `data.template`; {question} stands for the row's question."""
    choices: tuple[str, ...] | None = Field(default=None, min_length=2)
    """Choices that are the same for every row, e.g. negative and positive; without it, each row has its own."""
    prompts: PositiveInt | None = None
    """Most rows to measure on, evenly spaced over the set; without it, all."""

    @model_validator(mode="after")
    def _choices_are_told_apart(self) -> Self:
        if self.choices is None:
            return self
        if not all(map(str.strip, self.choices)) or len(set(self.choices)) < len(self.choices):
            raise ValueError(f"choices {list(self.choices)} must be different texts, none of them blank")
        if self.fields._changed("choices"):
            raise ValueError("`choices` are the same for every row, so fields.choices is not read; leave one out")
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
            raise ValueError("`instruction` has no {question}, so fields.question is not read; leave it out")
        return self


class LocalTask(Strict):
    """Local rows instead of a harness task's data set on the hub, with the same fields."""

    source: Source
    """Rows with the questions."""
    examples: Source | None = None
    """Rows that few-shot examples are taken from; needed unless `few_shot` is 0."""
    part: str | None = None
    """Field that says which task of a group a row belongs to, by the harness's `dataset_name`: subject for mmlu."""
    changes: dict[str, Any] = Field(default_factory=dict)
    """Fields of the harness's task to change for these rows, e.g. {process_docs: null} for rows already processed."""


class Downstream(Strict):
    """Tasks of lm-evaluation-harness, with its own prompts and metrics; needs the extra `downstream`."""

    tasks: tuple[str, ...] = Field(min_length=1)
    """Names of the harness's tasks, groups or tags: arc_easy, hellaswag, mmlu …"""
    few_shot: int | None = Field(default=None, ge=0)
    """Examples before each question; without it, the task's own number. A task that itself says 0 stays at 0."""
    limit: PositiveInt | None = None
    """First questions of each task (of each task of a group) that are asked; without it, all."""
    chat_template: bool = False
    """True to ask questions through the tokenizer's chat template, with `data.template`'s system message and
    variables, and examples as turns (the harness's `--apply_chat_template`); otherwise they are plain text."""
    local: dict[str, LocalTask] = Field(default_factory=dict)
    """Local rows by the name of their task; the hub is not asked for these tasks."""

    @model_validator(mode="after")
    def _local_tasks_are_asked_for(self) -> Self:
        if unread := sorted(set(self.local) - set(self.tasks)):
            raise ValueError(f"`local` has rows for {', '.join(unread)}, not among `tasks`: {', '.join(self.tasks)}")
        return self


class Sampling(Strict):
    """Rules by which responses are generated; the defaults are the paper's."""

    strategy: Literal["sample", "greedy"] = "sample"
    """Draw each token (sample), or take the likeliest (greedy); paper: sample."""
    temperature: Temperature = 1.0
    """Sampling temperature (paper: 1)."""
    top_k: PositiveInt | None = None
    """Number of likeliest tokens to draw from; without it, all (paper: all)."""
    top_p: float | None = Field(default=None, gt=0.0, lt=1.0)
    """Total probability of the likeliest tokens to draw from; without it, all tokens (paper: all)."""
    no_repeat_ngram: PositiveInt | None = None
    """Length of n-grams that a response must not repeat, in tokens (paper: none; reference code: 6)."""

    @model_validator(mode="after")
    def _greedy_draws_nothing(self) -> Self:
        if self.strategy == "greedy" and (unread := self._changed("temperature", "top_k", "top_p")):
            raise ValueError(f"strategy: greedy draws nothing and does not use {' and '.join(unread)}; leave it out")
        return self


class Evaluation(Sampling):
    """Final evaluation (method.md §7): plain sampling, one generation per seed, stored and scored separately."""

    benchmarks: Entries[Benchmark] = Field(min_length=1)
    calibration: Entries[MultipleChoice] = Field(default_factory=dict)
    """Sets on which calibration and accuracy are measured, zero-shot (paper: SST-2, BoolQ). Empty: not measured."""
    held_out: Entries[Source] = Field(default_factory=dict)
    """Plain texts that no model trains on, to measure the loss on them and on the benchmarks' first references.
    Empty: neither is measured."""
    strip: Pattern | None = None
    """Regular expression whose matches, for instance thinking parts, are taken out of responses and references
    before they are compared or judged; responses are stored as they were generated. Without it, nothing is taken out
    (paper: nothing)."""
    seeds: Seeds = (10, 20, 30, 40, 50)
    """Seeds of sampling, one generation each (paper: these five)."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Precision of weights and matrix products when responses are generated, for benchmarks and for SeqKD, and when
    given text is scored; log-probabilities are float32 either way."""
    max_prompt_tokens: PositiveInt | None = None
    """Longest prompt of a benchmark or of `calibration`, in tokens; without it, `data.max_prompt_tokens`."""
    max_response_tokens: PositiveInt | None = None
    """Longest response, in tokens; without it, a short prompt leaves its room to the response: the two together have at
    most those of the longest prompt with its response, as in the reference scripts."""
    long_prompts: Literal["refuse", "cut"] = "refuse"
    """Treatment of longer prompts: refuse with an error, or cut off their beginning and report it. Those of a chat
    template are always refused, since they begin with its own words."""
    preference: Source | None = None
    """Judgements of people on pairs of answers, as `minillm annotate --export` writes them (CSV)."""
    validation_prompts: PositiveInt = 1000
    """Validation prompts to sample a response for when weights are selected by Rouge-L."""
    judge: Judge | None = None
    """Model that rates the answers; without it, no endpoint is asked."""
    exposure_bias: ExposureBias | None = None
    """Measurement of what the students' own mistakes cost them (paper §3.3); without it, not measured."""
    downstream: Downstream | None = None
    """Tasks that measure general abilities (ARC, HellaSwag, MMLU …); without it, none."""

    @field_validator("benchmarks")
    @classmethod
    def _settings_have_one_owner(cls, benchmarks: dict[str, Benchmark]) -> dict[str, Benchmark]:
        """Refuse a name that reads like a setting: comparisons find `evaluation.benchmarks.NAME.FIELD` by the name."""
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
