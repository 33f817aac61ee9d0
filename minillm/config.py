"""The one configuration: typed, frozen, loaded from YAML and validated whole before anything starts.

Every field has a unit and a source in the docstring under it. "Paper" is arXiv 2306.08543; "reference code"
is the authors' public implementation, whose deviations `minillm.parity` sets in one word.
"""

from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, model_validator


class Strict(BaseModel):
    """Base of every configuration section: unknown keys are refused and values never change."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

    def _changed(self, *fields: str) -> list[str]:
        """Those of the fields that were given another value than their default."""
        return [name for name in fields if getattr(self, name) != type(self).model_fields[name].default]


class Source(Strict):
    """Where rows of data come from: a local file or directory, or a dataset by its hub name."""

    path: str | None = None
    """Local file (JSONL, JSON, plain text) or directory, relative to `data.directory`."""
    hub: str | None = None
    """Dataset name on the Hugging Face hub, e.g. databricks/databricks-dolly-15k."""
    revision: str = "main"
    """Branch, tag or commit on the hub."""
    file: str | None = None
    """File inside a directory or hub dataset that holds several."""
    sha256: str | None = Field(default=None, pattern="^[0-9a-f]{64}$")
    """SHA-256 of the local file, where no other content will do."""

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        if (self.path is None) == (self.hub is None):
            raise ValueError("give exactly one of `path` (local) and `hub` (hub name)")
        if self.sha256 is not None and self.hub is not None:
            raise ValueError("`sha256` is of a local file; pin a hub dataset by a commit in `revision`")
        return self


class Model(Strict):
    """Where a model's weights come from: the hub, a local directory, or random initialisation."""

    path: str | None = None
    """Local Hugging Face model directory."""
    hub: str | None = None
    """Model name on the Hugging Face hub, e.g. gpt2-xl."""
    revision: str = "main"
    """Branch, tag or commit on the hub."""
    architecture: dict[str, Any] | None = None
    """Hugging Face configuration of a model to initialise at random; needs `model_type`.
    Vocabulary size and special tokens are taken from the tokenizer."""

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        if sum(origin is not None for origin in (self.path, self.hub, self.architecture)) != 1:
            raise ValueError("give exactly one of `path`, `hub` and `architecture`")
        if self.architecture is not None and "model_type" not in self.architecture:
            raise ValueError("`architecture` needs `model_type` (gpt2, opt, llama, gptj, mistral, qwen2 …)")
        return self


class Template(Strict):
    """How an instruction becomes a prompt; the response follows directly (method.md §6)."""

    with_context: str = (
        "Below is an instruction that describes a task, paired with an input that provides further context. "
        "Write a response that appropriately completes the request.\n\n"
        "### Instruction:\n{instruction}\n\n### Input:\n{context}\n\n### Response:\n"
    )
    """Used where there is context. The default is the Alpaca template of the paper."""
    without_context: str = (
        "Below is an instruction that describes a task. "
        "Write a response that appropriately completes the request.\n\n"
        "### Instruction:\n{instruction}\n\n### Response:\n"
    )
    """Used where there is none."""

    @model_validator(mode="after")
    def _placeholders(self) -> Self:
        if "{instruction}" not in self.with_context or "{context}" not in self.with_context:
            raise ValueError("`with_context` must contain {instruction} and {context}")
        if "{instruction}" not in self.without_context:
            raise ValueError("`without_context` must contain {instruction}")
        return self


class Data(Strict):
    """The instruction data D, the plain text D_PT and how they are filtered (method.md §6)."""

    directory: str = "."
    """Folder that relative `path`s of sources start from, itself relative to the working directory."""
    instructions: Source
    """Rows with instruction, context, response, category (the schema of Dolly)."""
    split: Source | None = None
    """Rows {row, split} naming each row's part (train, dev, test, unused); without it, a random split."""
    validation_size: PositiveInt = 1000
    """Rows of the random split kept for validation (paper: 1K). Not used with `split`."""
    test_size: PositiveInt = 500
    """Rows of the random split kept apart for DollyEval (paper: 0.5K). Not used with `split`."""
    plain_text: Source | None = None
    """D_PT: plain text, or JSONL with a `text` field; needed where a method's plain-text coefficient is > 0."""
    template: Template = Template()
    max_prompt_tokens: PositiveInt = 256
    """Longest prompt, tokens (reference scripts: 256)."""
    max_tokens: PositiveInt = 512
    """Longest prompt with response, tokens; also the length of a plain-text block (reference scripts: 512)."""
    max_malformed_share: float = Field(default=0.01, ge=0.0, lt=1.0)
    """Share of rows that may be malformed before the run stops."""

    @model_validator(mode="after")
    def _room_for_a_response(self) -> Self:
        if self.max_prompt_tokens >= self.max_tokens:
            raise ValueError(
                f"max_prompt_tokens {self.max_prompt_tokens} leaves no room for a response within "
                f"max_tokens {self.max_tokens}; lower the first or raise the second"
            )
        return self


class Tokenizer(Strict):
    """The tokenizer that teacher and student share."""

    train_vocabulary: PositiveInt | None = None
    """Entries of a byte-level BPE trained on the training rows and D_PT; without it, the teacher's tokenizer."""
    path: str | None = None
    """Local directory of a tokenizer to use instead."""

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        if self.train_vocabulary is not None and self.path is not None:
            raise ValueError("give at most one of `train_vocabulary` and `path`")
        return self


class Training(Strict):
    """One run of the trainer. Batch sizes are global: the number of processes never changes the experiment."""

    learning_rate: PositiveFloat
    """Peak learning rate of AdamW."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """After warm-up: cosine down to zero, or constant."""
    warmup_steps: int = Field(default=0, ge=0)
    """Optimizer steps of linear warm-up."""
    weight_decay: float = Field(default=1e-2, ge=0.0)
    """AdamW's decoupled weight decay (reference scripts: 1e-2 for SFT, KD, SeqKD; 1e-6 for MiniLLM)."""
    betas: tuple[float, float] = (0.9, 0.95)
    """AdamW's moment decays (reference scripts)."""
    gradient_clip: PositiveFloat = 1.0
    """Largest global gradient norm (reference scripts)."""
    batch_size: PositiveInt
    """Sequences per optimizer step over all processes."""
    epochs: PositiveInt | None = None
    """Passes over the training examples. Exactly one of `epochs` and `steps`."""
    steps: PositiveInt | None = None
    """Optimizer steps. Exactly one of `epochs` and `steps`."""
    evaluate_every: PositiveInt
    """Optimizer steps between validations; the last step is always validated."""
    select_by: Literal["validation_loss", "rouge_l"] = "rouge_l"
    """Which validated weights are kept: lowest loss (initial student) or highest Rouge-L (final models)."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of weights and matrix products in training; log-probabilities are float32 either way."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if (self.epochs is None) == (self.steps is None):
            raise ValueError("give exactly one of `epochs` and `steps`")
        return self


class Policy(Strict):
    """The policy gradient of MiniLLM (method.md §2–4); the defaults are the paper's."""

    teacher_mix: float = Field(default=0.2, ge=0.0, lt=1.0)
    """α: share of the teacher in the distribution that responses are sampled from (paper: 0.2)."""
    rollouts: PositiveInt = 256
    """Responses sampled before each round of inner epochs (reference scripts: 256)."""
    inner_epochs: PositiveInt = 4
    """Passes over each round of rollouts (reference scripts: 4)."""
    temperature: PositiveFloat = 1.0
    """Sampling temperature of both models in rollouts (reference scripts: 1)."""
    clip_range: PositiveFloat = 0.2
    """ε of the PPO clip (reference scripts: 0.2)."""
    single_step: bool = True
    """Add the exact single-step term; off is the ablation of the paper's Table 4."""
    credit: Literal["future", "inclusive", "token", "none"] = "future"
    """Reward credited to token t: what follows it (paper), also its own (reference code), its own alone
    (sampled-token on-policy distillation), or nothing (single-step only: GKD with reverse KL)."""
    length_normalization: bool = True
    """Divide the return by the number of tokens it sums; off is the ablation of the paper's Table 4."""
    discount: float = Field(default=1.0, gt=0.0, le=1.0)
    """γ of the return (paper: none; reference code: 0.95)."""
    weight_single_step: bool = True
    """Weight the single-step term by w_t (paper) or not (reference code)."""
    clip_importance: bool = False
    """Clip ρ·w instead of ρ (reference code)."""
    whiten_advantages: bool = False
    """Normalise advantages over the tokens of a round of rollouts (reference code)."""
    reward_scale: PositiveFloat = 1.0
    """Rewards are divided by this (reference code: 0.5)."""
    reward_clip: PositiveFloat | None = None
    """Scaled rewards are clipped to ± this (reference code: 100)."""
    plain_text_coefficient: float = Field(default=1.0, ge=0.0)
    """Weight of L_PT (paper: 1)."""
    plain_text_batch_size: PositiveInt | None = None
    """Plain-text blocks per optimizer step over all processes; without it, the batch size (reference scripts)."""
    plain_text_kd: float = Field(default=0.0, ge=0.0, le=1.0)
    """Share of word-level KD inside L_PT (paper: 0; reference code: 0.5)."""

    @model_validator(mode="after")
    def _something_to_learn(self) -> Self:
        if self.credit == "none" and not self.single_step:
            raise ValueError("credit: none with single_step: false leaves no distillation loss; enable one")
        return self


class Method(Strict):
    """One row of the table of methods: where the text comes from, which divergence, how credit flows back."""

    text: Literal["dataset", "teacher", "rollouts"]
    """Responses trained on: the data set's, the teacher's (generated once), or sampled during training."""
    divergence: Literal[
        "cross_entropy", "forward_kl", "reverse_kl", "skewed_forward_kl", "skewed_reverse_kl", "jensen_shannon"
    ]
    """Per-token loss over the vocabulary; all but the first compare with the teacher."""
    divergence_weight: float = Field(default=1.0, gt=0.0, le=1.0)
    """k of (1−k)·cross-entropy + k·divergence on fixed text (paper's KD: 0.5)."""
    skew: float = Field(default=0.1, gt=0.0, lt=1.0)
    """λ of the skewed divergences (DistiLLM, arXiv 2402.03898: 0.1)."""
    beta: float = Field(default=0.5, gt=0.0, lt=1.0)
    """β of jensen_shannon (GKD, arXiv 2306.13649)."""
    start: Literal["pretrained", "initial"] = "pretrained"
    """Weights training starts from: the student as given, or fine-tuned on D (method.md §3, step 2)."""
    policy: Policy | None = None
    """How rollouts are made and credited; for `text: rollouts` alone."""
    training: Training

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        readers = {
            "divergence_weight": self.divergence != "cross_entropy",
            "skew": self.divergence.startswith("skewed"),
            "beta": self.divergence == "jensen_shannon",
        }
        if unread := self._changed(*(name for name, read in readers.items() if not read)):
            raise ValueError(f"divergence {self.divergence} does not use {' and '.join(unread)}; leave it out")
        if (self.text == "rollouts") != (self.policy is not None):
            raise ValueError("`policy` goes with `text: rollouts`, and `text: rollouts` needs `policy`")
        if self.policy is not None:
            if self.divergence == "cross_entropy":
                raise ValueError("rollouts have no reference text: use a divergence")
            if self.divergence_weight != 1.0:
                raise ValueError("divergence_weight mixes in cross-entropy, which rollouts have no text for")
            if self.policy.credit != "none" and self.divergence != "reverse_kl":
                raise ValueError("credit for what follows is derived for reverse_kl; set policy.credit: none")
            if self.policy.rollouts % self.training.batch_size:
                raise ValueError(
                    f"rollouts {self.policy.rollouts} must be a multiple of batch_size {self.training.batch_size}"
                )
            if self.training.epochs is not None:
                raise ValueError("a method with rollouts is measured in `steps`, not `epochs`")
        return self


class Teacher(Strict):
    """The large model, fine-tuned on D first (paper Algorithm 1, step 1)."""

    model: Model
    training: Training | None
    """Fine-tuning on D; null where the model given is fine-tuned already."""


class Student(Strict):
    """The small model and the fine-tuning that MiniLLM starts from (paper Algorithm 1, step 2)."""

    model: Model
    initial: Training
    """Fine-tuning on D before distillation; the reference scripts give it 3 epochs."""


class Fields(Strict):
    """Names of the fields in a benchmark's rows; without them, those of Dolly or of the authors' files."""

    instruction: str = "instruction"
    """What is asked."""
    context: str | None = None
    """What it is asked about; without a name, `context` or `input`, where there is one."""
    references: str | None = None
    """One right answer or a list of them; without a name, `output` or `response`."""


class Benchmark(Strict):
    """One evaluation set, as a record: a new one needs no code."""

    source: Source
    """Its rows, pinned by `revision` on the hub and by `sha256` on disk."""
    fields: Fields = Fields()
    min_reference_tokens: int = Field(default=0, ge=0)
    """The headline score is over prompts whose first reference has at least this many tokens
    (paper: 11 for S-NI and UnNI)."""
    length_subsets: bool = False
    """Also report Rouge-L by reference length: [0,5], [6,10], [11,∞) tokens."""


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

    @model_validator(mode="after")
    def _greedy_draws_nothing(self) -> Self:
        if self.strategy == "greedy" and (unread := self._changed("temperature", "top_k", "top_p")):
            raise ValueError(f"strategy: greedy draws nothing and does not use {' and '.join(unread)}; leave it out")
        return self


class Runtime(Strict):
    """Where and on what it runs; nothing here changes a result beyond floating-point rounding."""

    store: str = ".minillm"
    """Folder of artifacts, checkpoints and, unless MLFLOW_TRACKING_URI is set, tracked runs."""
    processes: PositiveInt = 1
    """Processes of a worker group on this machine (one per GPU)."""
    threads: PositiveInt | None = None
    """CPU threads per process; without it, torch's default."""
    parallel_stages: PositiveInt = 1
    """Stages that may run at once."""
    micro_batch_size: PositiveInt = 8
    """Sequences per process in one forward and backward pass; lower it when memory runs out."""
    generation_batch_size: PositiveInt = 64
    """Responses generated at once per process; lower it when memory runs out."""
    zero_stage: Literal[0, 1, 2, 3] = 0
    """DeepSpeed ZeRO stage: 1 shards optimizer state over processes, 2 also gradients, 3 also weights."""
    checkpoint_every: PositiveInt = 100
    """Optimizer steps between checkpoints: a killed stage loses at most this many."""
    retries: int = Field(default=2, ge=0)
    """Times a failed stage is started again, from its last checkpoint."""
    timeout_hours: PositiveFloat = 168.0
    """A stage that runs longer is stopped and counts as failed."""


class Config(Strict):
    """A whole experiment, from raw rows to the report."""

    name: str = Field(pattern=r"^[\w.-]+$")
    """Experiment name in MLflow and in the report."""
    seed: int = Field(default=1, ge=0)
    """Of model initialisation, data order and rollouts."""
    parity: Literal["paper", "lmops"] = "paper"
    """lmops sets every deviation of the reference code from the paper (method.md §4)."""
    data: Data
    tokenizer: Tokenizer = Tokenizer()
    teacher: Teacher
    student: Student
    methods: dict[str, Method] = Field(min_length=1)
    """Rows of the result table beside the teacher, e.g. sft, kd, seqkd, minillm."""
    evaluation: Evaluation
    runtime: Runtime = Runtime()

    @model_validator(mode="before")
    @classmethod
    def _apply_parity(cls, raw: Any) -> Any:
        from minillm.parity import apply_lmops

        return apply_lmops(raw) if isinstance(raw, dict) and raw.get("parity") == "lmops" else raw

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for name, method in self.methods.items():
            if name == "teacher":
                raise ValueError("methods: `teacher` is the name of the teacher's own row; rename the method")
            if method.policy and method.policy.plain_text_coefficient > 0 and self.data.plain_text is None:
                raise ValueError(
                    f"methods.{name}.policy.plain_text_coefficient is "
                    f"{method.policy.plain_text_coefficient}, but there is no data.plain_text; "
                    "give a corpus or set the coefficient to 0"
                )
        if self.teacher.model.architecture is not None and self.teacher.training is None:
            raise ValueError("teacher.training is null, but its weights are random; give it a training section")
        scratch_tokenizer = self.tokenizer.train_vocabulary is None and self.tokenizer.path is None
        if scratch_tokenizer and self.teacher.model.architecture is not None:
            raise ValueError(
                "the teacher has an `architecture` and so no tokenizer of its own; "
                "set tokenizer.train_vocabulary or tokenizer.path"
            )
        return self
