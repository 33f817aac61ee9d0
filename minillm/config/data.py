"""The data and how they become tokens (method.md §6)."""

from typing import Self

from pydantic import Field, PositiveInt, model_validator

from minillm.config.base import LocalPath, Source, Strict


class Template(Strict):
    """Template that turns an instruction into a prompt; the response follows directly (method.md §6).

    The name of a special token, say `<s>`, stands for that token in a template and is plain text in an instruction or
    context.
    """

    with_context: str = (
        "Below is an instruction that describes a task, paired with an input that provides further context. "
        "Write a response that appropriately completes the request.\n\n"
        "### Instruction:\n{instruction}\n\n### Input:\n{context}\n\n### Response:\n"
    )
    """Template for instructions with a context. The default is the paper's Alpaca template."""
    without_context: str = (
        "Below is an instruction that describes a task. "
        "Write a response that appropriately completes the request.\n\n"
        "### Instruction:\n{instruction}\n\n### Response:\n"
    )
    """Template for instructions without a context."""

    @model_validator(mode="after")
    def _placeholders(self) -> Self:
        if "{instruction}" not in self.with_context or "{context}" not in self.with_context:
            raise ValueError("`with_context` must contain {instruction} and {context}")
        if "{instruction}" not in self.without_context:
            raise ValueError("`without_context` must contain {instruction}")
        return self


class Prompts(Strict):
    """Settings that turn instructions into prompts, and limit their length (method.md §6)."""

    directory: LocalPath = "."
    """Folder that relative paths of sources start from, itself relative to the working directory."""
    template: Template = Template()
    max_prompt_tokens: PositiveInt = 256
    """Longest prompt, in tokens (reference scripts: 256)."""
    max_tokens: PositiveInt = 512
    """Longest prompt with response, in tokens; also the length of a plain-text block (reference scripts: 512)."""

    @property
    def response_room(self) -> int:
        """Response tokens that fit after the longest prompt."""
        return self.max_tokens - self.max_prompt_tokens

    @model_validator(mode="after")
    def _room_for_a_response(self) -> Self:
        if self.response_room < 1:
            raise ValueError(
                f"max_prompt_tokens {self.max_prompt_tokens} leaves no room for a response within "
                f"max_tokens {self.max_tokens}; lower the first or raise the second"
            )
        return self


class Data(Prompts):
    """The instruction data D and the plain text D_PT, and how they are filtered (method.md §6)."""

    instructions: Source
    """Rows with instruction, context, response and category (the schema of Dolly)."""
    split: Source | None = None
    """Rows {row, split} that name each row's part (train, dev, test, unused); without it, a random split."""
    validation_size: PositiveInt = 1000
    """Validation rows of the random split (paper: 1K). Not used with `split`."""
    test_size: PositiveInt = 500
    """Rows of the random split set apart for DollyEval (paper: 0.5K). Not used with `split`."""
    plain_text: Source | None = None
    """D_PT: plain text, or JSONL with a `text` field; needed if a method's plain-text coefficient is above 0."""
    max_malformed_share: float = Field(default=0.01, ge=0.0, lt=1.0)
    """Largest share of malformed rows; above it the run stops."""


class Tokenizer(Strict):
    """The tokenizer that teacher and student share."""

    train_vocabulary: PositiveInt | None = None
    """Entries of a byte-level BPE to train on the training rows and D_PT; without it, the teacher's tokenizer."""
    path: LocalPath | None = None
    """Local directory of a tokenizer to use instead of the teacher's."""

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        if self.train_vocabulary is not None and self.path is not None:
            raise ValueError("give at most one of `train_vocabulary` and `path`")
        return self
