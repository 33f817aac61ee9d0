"""What is measured of the models, and on what (method.md §7)."""

from typing import Any, Literal, Self

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from minillm.config.base import Source, Strict


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


class Benchmark(Strict):
    """One evaluation set, as a record: a new one needs no code."""

    source: Source
    """Its rows, pinned by `revision` on the hub and by `sha256` on disk."""
    fields: Fields = Fields()
    topics: tuple[str, ...] | None = Field(default=None, min_length=1)
    """Only rows of these topics count; without it, all rows."""
    metric: Literal["rouge_l", "exact_match"] = "rouge_l"
    """Score of the tables, intervals and ranks (paper: Rouge-L); both are measured."""
    min_reference_tokens: int = Field(default=0, ge=0)
    """The headline score is over prompts whose first reference has at least this many tokens
    (paper: 11 for S-NI and UnNI)."""
    length_subsets: bool = False
    """Also report the score by reference length: [0,5], [6,10], [11,∞) tokens."""


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


class Evaluation(Strict):
    """Final evaluation (method.md §7): plain sampling, one generation per seed, stored and scored apart."""

    benchmarks: dict[str, Benchmark] = Field(min_length=1)
    seeds: tuple[int, ...] = Field(default=(10, 20, 30, 40, 50), min_length=1)
    """One generation each (paper: these five)."""
    strategy: Literal["sample", "greedy"] = "sample"
    """Draw each token, or take the likeliest (paper: draw)."""
    temperature: PositiveFloat = 1.0
    """Sampling temperature (paper: 1)."""
    top_k: PositiveInt | None = None
    """Draw from this many likeliest tokens only (paper: from all)."""
    top_p: float | None = Field(default=None, gt=0.0, lt=1.0)
    """Draw from the likeliest tokens that together have this probability (paper: from all)."""
    no_repeat_ngram: PositiveInt | None = None
    """Forbid repeating n-grams of this length in a response (paper: none; reference code: 6)."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of weights and matrix products where responses are generated, for benchmarks and for SeqKD; log-probabilities
    are float32 either way."""
    max_prompt_tokens: PositiveInt | None = None
    """Longest benchmark prompt, tokens; without it, `data.max_prompt_tokens`."""
    long_prompts: Literal["refuse", "cut"] = "refuse"
    """What happens to a longer benchmark prompt: an error, or its beginning is cut off and it is reported."""
    validation_prompts: PositiveInt = 1000
    """Validation prompts that a response is sampled for when selecting by Rouge-L."""
    downstream: Downstream | None = None
    """General abilities beside the benchmarks (ARC, HellaSwag, MMLU …); without it, none."""

    @model_validator(mode="after")
    def _names(self) -> Self:
        if "mean" in self.benchmarks:
            raise ValueError("benchmarks: `mean` is the name of the column over all of them; rename the benchmark")
        return self

    @model_validator(mode="after")
    def _greedy_draws_nothing(self) -> Self:
        if self.strategy == "greedy" and (unread := self._changed("temperature", "top_k", "top_p")):
            raise ValueError(f"strategy: greedy draws nothing and does not use {' and '.join(unread)}; leave it out")
        return self
