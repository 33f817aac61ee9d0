"""Stages of System 2 distillation: questions, answers to them, those that are kept, and its pages."""

from typing import Any, ClassVar, Literal

from minillm.config import PromptChain, QuestionSet, Reasoner, Sampling, Strict, Template
from minillm.stages.base import Stage


class QuestionSets(Stage):
    """Read sets of questions into one format. Output: `NAME.jsonl` for each, in the format of benchmarks.

    Questions that stand in `test` are left out, and repeated ones.
    """

    kind: ClassVar[str] = "question_sets"
    module: ClassVar[str] = "minillm.system2.questions"
    inputs: ClassVar[tuple[str, ...]] = (
        "questions/*",
        "test?",
    )
    reads_only: ClassVar[bool] = True
    part: Literal["unlabelled", "test"]
    """Section of the data that they are from; those of `test` need answers."""
    sets: dict[str, QuestionSet]


class Asking(Strict):
    """Settings of asking every question by a chain of prompts, whoever responds."""

    part: Literal["unlabelled", "test"]
    chain: PromptChain
    samples: int
    """Answers to each question in each order of its choices."""
    orders: int
    """Orders of the choices."""
    seed: int


class Ask(Sampling, Asking, Stage):
    """Ask a model every question by a chain of prompts, and find the final answers. Output: `answers.jsonl`."""

    kind: ClassVar[str] = "ask"
    module: ClassVar[str] = "minillm.system2.asking"
    inputs: ClassVar[tuple[str, ...]] = (
        "model",
        "tokenizer",
        "questions",
    )
    shares_work: ClassVar[bool] = True
    template: Template
    precision: Literal["float32", "bfloat16"]
    max_prompt_tokens: int
    max_tokens: int
    """Longest prompt with its response, in tokens."""
    max_response_tokens: int | None
    """Longest response to one prompt, in tokens; None for no such limit."""


class CheckReasoner(Stage):
    """Compare a reasoner's budget with what its questions may take, and ask it one.

    Inputs are the parts `test` and `unlabelled`. Output: `reasoner.json`, the most that they may take.
    """

    kind: ClassVar[str] = "reasoner"
    module: ClassVar[str] = "minillm.served.reasoner_check"
    inputs: ClassVar[tuple[str, ...]] = (
        "test",
        "unlabelled",
    )
    reads_only: ClassVar[bool] = True
    reasoner: Reasoner
    chain: PromptChain
    test_samples: int
    """Answers to each test question."""
    samples: int
    """Answers to each unlabelled question in each order of its choices."""
    orders: int
    """Orders of the choices."""


class AskReasoner(Asking, Stage):
    """Ask a model behind an endpoint every question by a chain of prompts. Output: as of the stage `ask`."""

    kind: ClassVar[str] = "asked_chain"
    module: ClassVar[str] = "minillm.served.reasoning"
    inputs: ClassVar[tuple[str, ...]] = ("questions",)
    runs_model: ClassVar[bool] = False
    reasoner: Reasoner
    system: str | None
    """Message of the system before each prompt."""


class KeepConsistent(Stage):
    """Keep the answers of System 2 that are consistent, as examples to train System 1 on."""

    kind: ClassVar[str] = "consistent"
    module: ClassVar[str] = "minillm.system2.consistency"
    inputs: ClassVar[tuple[str, ...]] = (
        "answers",
        "questions",
        "tokenizer",
    )
    shown: ClassVar[tuple[str, ...]] = ("kept", "dropped")
    runs_model: ClassVar[bool] = False
    prompt: str
    """Prompt that answers are learnt for, with {question}."""
    majority: float
    """Least share of the answers that must be the most common one."""
    template: Template
    max_prompt_tokens: int
    max_tokens: int
    validation_size: int
    seed: int


class System2Report(Stage):
    """Compare System 1 before, System 2, and System 1 after, and tell what was kept.

    Inputs `answers/SYSTEM` are the answers to the test questions.
    """

    kind: ClassVar[str] = "system2"
    module: ClassVar[str] = "minillm.system2.report"
    inputs: ClassVar[tuple[str, ...]] = (
        "questions",
        "answers/*",
        "examples",
        "train",
    )
    is_page: ClassVar[bool] = True
    shown: ClassVar[tuple[str, ...]] = ("accuracy", "tokens", "verdict")
    runs_model: ClassVar[bool] = False
    name: str
    chain: PromptChain
    """The slow way to ask."""
    samples: int
    """Answers to each unlabelled question in each order of its choices."""
    reasoner: str | None
    """Model behind an endpoint that answered by System 2; None if it is the model itself."""


class System2Card(Stage):
    """Export the distilled model as an ordinary model directory with its card."""

    kind: ClassVar[str] = "system2_model"
    module: ClassVar[str] = "minillm.system2.card"
    inputs: ClassVar[tuple[str, ...]] = (
        "model",
        "examples",
        "report",
    )
    runs_model: ClassVar[bool] = False
    role: ClassVar[str] = "system1"
    config: dict[str, Any]
    """The resolved configuration without `runtime`."""
