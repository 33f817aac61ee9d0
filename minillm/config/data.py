"""The data and how they become tokens (method.md §6)."""

import re
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import ConfigDict, Field, JsonValue, PositiveInt, model_validator

from minillm.config.base import LocalPath, Source, Strict
from minillm.files import local_path

ALPACA_WITH_CONTEXT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{context}\n\n### Response:\n"
)
"""The paper's template for instructions with a context."""
ALPACA_WITHOUT_CONTEXT = (
    "Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Response:\n"
)
"""The paper's template for instructions without a context."""
GIVEN = re.compile(
    r"messages|conversation|tools|documents|chat_template|add_generation_prompt|continue_final_message|tokenize|padding|"
    r"truncation|max_length|return_\w+|tokenizer_kwargs|\w+_token"
)
"""Names that transformers gives to a chat template or keeps for itself."""
Turns = Literal["last", "all"]
"""Answers of a conversation that are learnt."""


class Template(Strict):
    """Template of prompts, for messages or an instruction with its context; the response follows (method.md §6).

    `chat` alone stands for `{chat: true}`: the tokenizer's own template. Without any field, it is taken where the
    tokenizer has one, and else the paper's text. The name of a special token, say `<s>`, stands for that token in a
    template and is plain text in what it is filled with.
    """

    chat: bool | None = None
    """True for the tokenizer's own template, false for a text."""
    system: str | None = None
    """Message of the system for conversations that have none; for the tokenizer's own template."""
    variables: dict[str, JsonValue] = Field(default_factory=dict)
    """Further variables of the tokenizer's own template, for instance `enable_thinking: false`."""
    with_context: str | None = None
    """Text for instructions with a context. The default is the paper's Alpaca template."""
    without_context: str | None = None
    """Text for instructions without a context. The default is the paper's Alpaca template."""

    @model_validator(mode="before")
    @classmethod
    def _short(cls, value: Any) -> Any:
        return {"chat": True} if value == "chat" else value

    @model_validator(mode="after")
    def _of_one_kind(self) -> Self:
        if self.with_context is not None and not all(
            mark in self.with_context for mark in ("{instruction}", "{context}")
        ):
            raise ValueError("`with_context` must contain {instruction} and {context}")
        if self.without_context is not None and "{instruction}" not in self.without_context:
            raise ValueError("`without_context` must contain {instruction}")
        if self.has_text and self.chat:
            raise ValueError("`chat` is for the tokenizer's own template; leave it or the texts out")
        if (self.has_text or self.chat is False) and (ours := self.of_chat):
            raise ValueError(
                f"{' and '.join(f'`{name}`' for name in ours)}: only the tokenizer's own template reads it; leave it "
                "out, or `chat: false` and the texts"
            )
        if unfit := [name for name in self.variables if not name.isidentifier() or GIVEN.fullmatch(name)]:
            raise ValueError(
                f"`variables` has {unfit[0]!r}, which transformers gives itself or no template can read; leave it out"
            )
        return self

    @property
    def of_chat(self) -> list[str]:
        """Names of the fields with a value that only the tokenizer's own template reads."""
        return [*(["system"] if self.system is not None else []), *(["variables"] if self.variables else [])]

    @property
    def has_text(self) -> bool:
        """True if a text is given."""
        return self.with_context is not None or self.without_context is not None

    def text(self, context: str) -> str:
        """Return the text for an instruction with this context, which may be empty or blank."""
        if context.strip():
            return self.with_context or ALPACA_WITH_CONTEXT
        return self.without_context or ALPACA_WITHOUT_CONTEXT


class Sources(Strict):
    """The place of local data."""

    directory: LocalPath = "."
    """Folder that relative paths of sources start from, itself relative to the working directory."""


class Prompts(Sources):
    """Settings that turn instructions into prompts, and limit their length (method.md §6)."""

    template: Template = Template()
    end_tokens: tuple[str, ...] = ()
    """Tokens that end a response beside the tokenizer's and those that the models' `generation_config.json` name."""
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


class RowFields(Strict):
    """Names of the fields in the training rows."""

    instruction: str = "instruction"
    """Field with the instruction."""
    context: str | None = None
    """Field with the context of the instruction; without a name, `context` or `input` if the row has one."""
    response: str | None = None
    """Field with the response to the instruction; without a name, `response` or `output`."""
    messages: str = "messages"
    """Field with the messages of a conversation, each with `role` and `content`."""
    conversations: str = "conversations"
    """Field with the messages of a conversation as ShareGPT has them, each with `from` and `value`."""
    prompt: str = "prompt"
    """Field with what comes before a completion: text, or messages."""
    completion: str = "completion"
    """Field with the completion of a prompt: text, or messages."""
    system: str = "system"
    """Field with the message of the system for a conversation that begins with none."""
    tools: str = "tools"
    """Field with the tools that a conversation may call."""
    category: str = "category"
    """Field with the row's category."""


class Data(Prompts):
    """The instruction data D and the plain text D_PT, and how they are filtered (method.md §6)."""

    instructions: Source
    """Rows with instruction, context, response and category (the schema of Dolly), or conversations: `messages`,
    ShareGPT's `conversations`, `prompt` with `completion`."""
    fields: RowFields = RowFields()
    turns: Turns = "last"
    """Answers of a conversation that are learnt: in one pass on fixed text, each from a prompt of its own elsewhere."""
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


class TrainedTokenizer(Strict):
    """The tokenizer of models from scratch."""

    train_vocabulary: PositiveInt
    """Entries of a byte-level BPE to train on the run's own text."""


class Tokenizer(Strict):
    """The tokenizer that teacher and student share, with its chat template and the tokens that end a response."""

    model_config = ConfigDict(serialize_by_alias=True)

    origin: str | None = Field(default=None, alias="from")
    """Owner of the tokenizer, the template and the end tokens: `teacher`, `student`, or a local directory, relative to
    the working directory. Without it, the teacher, unless a tokenizer is trained."""
    train_vocabulary: PositiveInt | None = None
    """Entries of a byte-level BPE to train on the training rows and D_PT."""

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        if self.train_vocabulary is not None and self.origin is not None:
            raise ValueError("give at most one of `from` and `train_vocabulary`")
        return self

    @property
    def model(self) -> str | None:
        """Model whose tokenizer is taken, `teacher` or `student`; None if it is trained or comes from a directory."""
        if self.train_vocabulary is None and self.directory is None:
            return self.origin or "teacher"
        return None

    @property
    def directory(self) -> Path | None:
        """Directory that the tokenizer comes from; None if it is trained or a model's."""
        return None if self.origin in (None, "teacher", "student") else local_path(self.origin)
