"""Configuration of System 2 distillation: a slow way to ask, filters of its answers, and the training on them."""

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import AfterValidator, Field, NonNegativeInt, PositiveInt, model_validator

from minillm.config.base import Entries, Model, Name, Pattern, Seed, Source, Strict
from minillm.config.data import Prompts, RowFields, TrainedTokenizer
from minillm.config.endpoint import Reasoner
from minillm.config.evaluation import QuestionFields, Sampling
from minillm.config.experiment import WithPrompts, require_even_batches
from minillm.config.training import Training
from minillm.nearest import suggestion
from minillm.patterns import check_group
from minillm.placeholders import placeholders

CHAINS = Path(__file__).with_name("prompt_chains.yaml")
QUESTION = "question"
AnswerPattern = Annotated[Pattern, AfterValidator(check_group)]
"""Regular expression whose one group holds an answer."""


@cache
def known_chains() -> dict[str, dict[str, Any]]:
    """Return the entries of `prompt_chains.yaml`."""
    return yaml.safe_load(CHAINS.read_text(encoding="utf-8"))


class PromptChain(Strict):
    """A way to ask: prompts in order, each with the responses to those before; a known one is chosen by its name."""

    name: Name = "own"
    """Name in logs and tables."""
    steps: dict[str, str] = Field(min_length=1)
    """Prompts by name. `{question}` stands for the question, and `{NAME}` for the response to an earlier step."""
    answer: AnswerPattern
    """Regular expression whose group holds the final answer in the last response."""

    @model_validator(mode="before")
    @classmethod
    def _by_name(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        if value not in known_chains():
            raise ValueError(
                f"{value!r} is no way to ask in {CHAINS.name}; {suggestion(value, known_chains())}; or give `steps` "
                "and `answer`"
            )
        return {"name": value, **known_chains()[value]}

    @model_validator(mode="after")
    def _steps_build_on_earlier_ones(self) -> Self:
        known = [QUESTION]
        for name, prompt in self.steps.items():
            if not name.isidentifier() or name == QUESTION:
                raise ValueError(f"step {name!r}: its name stands in prompts as {{NAME}}; use letters and underscores")
            if unknown := [used for used in placeholders(prompt) if used not in known]:
                raise ValueError(
                    f"step {name!r} reads {{{unknown[0]}}}, which is no step before; {suggestion(unknown[0], known)}"
                )
            if not placeholders(prompt):
                raise ValueError(
                    f"step {name!r} reads nothing, so its prompt is always the same; write {{{known[-1]}}}"
                )
            known.append(name)
        return self


class QuestionSet(Strict):
    """Questions, described by data: free ones, or multiple-choice where rows have choices."""

    source: Source
    """Rows with a question each, pinned by `revision` on the hub and by `sha256` on disk."""
    fields: QuestionFields = QuestionFields()
    answer: AnswerPattern | None = None
    """Regular expression whose group is the final answer in a row's answer; without it, all of it is."""
    rows: tuple[NonNegativeInt, PositiveInt] | None = None
    """First row, counted from 0, and the one behind the last; without it, all rows."""

    @model_validator(mode="after")
    def _rows_in_order(self) -> Self:
        if self.rows is not None and self.rows[0] >= self.rows[1]:
            raise ValueError(f"rows {list(self.rows)} holds none; give the first and the one behind the last")
        return self


class System2Data(Prompts):
    """The questions, and rows to fine-tune on first."""

    unlabelled: Entries[QuestionSet] = Field(min_length=1)
    """Questions that System 2 answers, to be learnt from. Answers in the rows are never learnt, only compared."""
    test: Entries[QuestionSet] = Field(min_length=1)
    """Questions with answers that accuracy is measured on."""
    instructions: Source | None = None
    """Rows that the model is fine-tuned on before all else, as `data.instructions` of a distillation."""
    fields: RowFields = RowFields()
    max_malformed_share: float = Field(default=0.01, ge=0.0, lt=1.0)
    """Largest share of malformed instruction rows; above it the run stops."""
    validation_size: PositiveInt = 100
    """Validation rows, taken at random from the instructions and likewise from the answers that are kept."""


class Asking(Sampling):
    """Rules by which the model answers questions, by System 1 and System 2 alike."""

    precision: Literal["float32", "bfloat16"] = "float32"
    """Precision of weights and matrix products."""
    max_response_tokens: PositiveInt | None = None
    """Longest response to one prompt, in tokens; without it, a response may fill `data.max_tokens`."""
    test_samples: PositiveInt = 5
    """Answers to each test question; its accuracy is the share of right ones."""


class SelfConsistency(Strict):
    """Conditions on which an answer of System 2 is kept (paper: arXiv 2407.06023 §3.2)."""

    samples: PositiveInt = 8
    """N: answers sampled for each question (paper: 8)."""
    majority: float = Field(default=0.5, ge=0.0, le=1.0)
    """Least share of the N answers that must be the most common one; two as common are none (paper: a majority)."""
    reorderings: int = Field(default=0, ge=0)
    """Further orders of a question's choices, each with N answers; the most common one must be the same in all. 0 for
    questions without choices."""


class System2(WithPrompts):
    """A model's own slow answers distilled into its fast ones (Yu, Xu, Weston, Kulikov, arXiv 2407.06023)."""

    seed: Seed = 1
    """Seed of model initialisation, data order, answers and splits."""
    data: System2Data  # type: ignore[assignment]  # values never change, so a narrower one is safe
    tokenizer: TrainedTokenizer | None = None
    """Tokenizer to train on `data.instructions`; without it, the model's own."""
    model: Model
    """The model that is asked, and then trained."""
    reasoner: Reasoner | None = None
    """Another model, behind an endpoint, that answers by System 2; without it, `model` does (paper)."""
    training: Training | None = None
    """Fine-tuning on `data.instructions` before all else; null for a model that can answer already."""
    system1: PromptChain = PromptChain.model_validate("direct")
    """The fast way to ask, of one step: the prompt that answers are learnt for."""
    system2: PromptChain = PromptChain.model_validate("chain_of_thought")
    """The slow way to ask."""
    asking: Asking = Asking()
    self_consistency: SelfConsistency = SelfConsistency()
    distillation: Training
    """Training on questions with the answers that are kept."""

    @property
    def trainings(self) -> dict[str, Training]:
        """All trainings of the run, by their fields."""
        return ({"training": self.training} if self.training else {}) | {"distillation": self.distillation}

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.runtime.teacher_zero_stage:
            raise ValueError(
                "nothing here learns from a teacher, so runtime.teacher_zero_stage would do nothing; leave it out"
            )
        if len(self.system1.steps) > 1:
            raise ValueError(f"system1 is {self.system1.name}, with {len(self.system1.steps)} steps; System 1 has one")
        if (self.training is None) != (self.data.instructions is None):
            raise ValueError("`training` and `data.instructions` go together; give both or neither")
        if self.model.architecture is None and self.tokenizer is not None:
            raise ValueError("tokenizer.train_vocabulary is for a model with an `architecture`; leave `tokenizer` out")
        if self.model.architecture is not None and (self.tokenizer is None or self.training is None):
            raise ValueError(
                "the model has an `architecture`, so neither weights nor a tokenizer; give `tokenizer: "
                "{train_vocabulary: …}`, and `training` with `data.instructions`"
            )
        samples = {"asking.test_samples": self.asking.test_samples}
        slow = {"self_consistency.samples": self.self_consistency.samples, **samples}
        if self.asking.strategy == "greedy":
            _require_one("asking.strategy: greedy", slow if self.reasoner is None else samples)
        if self.reasoner is not None and self.reasoner.temperature == 0:
            _require_one("reasoner.temperature: 0", slow)
        sizes = {f"{field}.batch_size": training.batch_size for field, training in self.trainings.items()}
        require_even_batches(sizes.items(), self.runtime.processes)
        return self


def _require_one(setting: str, samples: Mapping[str, int]) -> None:
    """Refuse several samples where a setting makes all of them the same."""
    if several := [field for field, count in samples.items() if count > 1]:
        raise ValueError(f"{setting} always gives the same answer; set {' and '.join(several)} to 1")
