"""Configuration of pre-training: a teacher writes a corpus, and students learn growing shares of it by each method."""

from itertools import pairwise
from typing import Any, Literal, Self

from pydantic import Field, PositiveInt, model_validator

from minillm.config.base import Entries, Model, Seed, Seeds, Source, Strict, Temperature
from minillm.config.data import Sources, TrainedTokenizer
from minillm.config.experiment import WithData, require_even_batches
from minillm.config.knowledge import Form
from minillm.config.method import Method
from minillm.config.pair import Teacher
from minillm.config.training import Training


class PretrainData(Sources):
    """Plain text, and how it is cut into blocks."""

    plain_text: Source | None = None
    """Text to train the teacher on; none if it is trained already."""
    max_tokens: int = Field(default=512, ge=2)
    """Length of a block of plain text and of a sequence of the corpus, in tokens, the first included."""
    validation_size: PositiveInt = 100
    """Last blocks of `plain_text`, on which the teacher's training is validated."""


class Corpus(Strict):
    """The text that the teacher writes."""

    sequences: PositiveInt
    """Sequences to train on, of `data.max_tokens` tokens each."""
    validation_size: PositiveInt = 100
    """Further sequences, on which trainings of students are validated."""
    temperature: Temperature = 1.0
    """Sampling temperature; at 1 the corpus has the teacher's own distribution."""


class RandomStudent(Strict):
    """The model that is trained from random weights."""

    model: Model
    """Its `architecture`."""

    @model_validator(mode="after")
    def _random(self) -> Self:
        if self.model.architecture is None:
            raise ValueError("model has weights, but students start from random ones; give an `architecture`")
        return self


class HeldOutEvaluation(Strict):
    """The measurement of teacher and students."""

    held_out: Entries[Source] = Field(min_length=1)
    """Plain texts that no model trains on, to measure perplexity."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Precision of weights and matrix products when the corpus is sampled and held-out text is scored."""


class PretrainedStudent(Strict):
    """One training."""

    method: str
    share: float
    """Share of the corpus."""
    rows: int
    """Sequences of the corpus, the first so many."""
    seed: int

    @property
    def name(self) -> str:
        """Name of the trained model in logs and pages."""
        return f"{self.method} {self.share} seed {self.seed}"


class Pretrain(WithData):
    """A corpus from a teacher, students from random weights on growing shares of it, and their perplexity."""

    seed: Seed = 1
    """Seed of the teacher's training, of the corpus, and of what is drawn from the teacher's knowledge."""
    seeds: Seeds = (1,)
    """Training seeds of every student: initial weights and order of the data."""
    data: PretrainData  # type: ignore[assignment]  # values never change, so a narrower one is safe
    tokenizer: TrainedTokenizer | None = None
    """Tokenizer to train on `data.plain_text`; without it, the teacher's own."""
    teacher: Teacher
    corpus: Corpus
    student: RandomStudent
    training: dict[str, Any] = Field(default_factory=dict)
    """Fields of `methods.NAME.training` for every method that does not set them itself."""
    methods: Entries[Method] = Field(min_length=1)
    """Ways to learn the corpus, which is the data set and the teacher's text in one; the first is the baseline. Presets
    by name as in a distillation: sft, kd with `teacher: top`, slim."""
    shares: tuple[float, ...] = Field(default=(0.125, 0.25, 0.5, 1.0), min_length=1)
    """Shares of the corpus that students are trained on, rising; each holds those before it."""
    evaluation: HeldOutEvaluation

    @property
    def rows(self) -> tuple[int, ...]:
        """Sequences of each share."""
        return tuple(round(share * self.corpus.sequences) for share in self.shares)

    @property
    def students(self) -> tuple[PretrainedStudent, ...]:
        """All trainings, those of the first seed first."""
        return tuple(
            PretrainedStudent(method=method, share=share, rows=rows, seed=seed)
            for seed in self.seeds
            for share, rows in zip(self.shares, self.rows, strict=True)
            for method in self.methods
        )

    @property
    def budget(self) -> Training:
        """Training whose number of sequences and steps all methods have."""
        return next(iter(self.methods.values())).training

    @property
    def trainings(self) -> dict[str, Training]:
        """All trainings of the run, by their fields in the configuration."""
        found = {"teacher.training": self.teacher.training} if self.teacher.training else {}
        return found | {f"methods.{name}.training": method.training for name, method in self.methods.items()}

    @property
    def forms(self) -> tuple[Form, ...]:
        """Forms of the teacher's stored knowledge that methods read."""
        return tuple(dict.fromkeys(of.stored for of in self.methods.values() if of.stored is not None))

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, raw: Any) -> Any:
        from minillm.config.presets import apply_presets

        return apply_presets(raw) if isinstance(raw, dict) else raw

    @model_validator(mode="after")
    def _methods_learn_the_corpus(self) -> Self:
        if "teacher" in self.methods:
            raise ValueError("methods: `teacher` is the name of the teacher itself; rename the method")
        for name, method in self.methods.items():
            if method.text not in ("dataset", "teacher"):
                raise ValueError(
                    f"methods.{name} has text: {method.text}, but students learn the corpus that the teacher wrote "
                    "before; set text: teacher, or leave the method out"
                )
            if method.runs_teacher:
                raise ValueError(
                    f"methods.{name} has teacher: live, but students here never load it; set teacher: top, which all "
                    "such methods share, or hidden or sampled"
                )
            if method.start == "initial":
                raise ValueError(
                    f"methods.{name} has start: initial, but students start from random weights; leave it out"
                )
            for field in ("batch_size", "steps", "epochs"):
                if (value := getattr(method.training, field)) != (common := getattr(self.budget, field)):
                    raise ValueError(
                        f"methods.{name}.training.{field} is {value}, but the first method's is {common}: methods are "
                        "compared at equal budgets; set it in the common `training`"
                    )
        return self

    @model_validator(mode="after")
    def _shares_rise(self) -> Self:
        bounds = (0.0, *self.shares)
        if self.shares[-1] > 1 or any(share >= larger for share, larger in pairwise(bounds)):
            raise ValueError(f"shares are {list(self.shares)}; give rising ones above 0 and up to 1")
        for share, rows, before in zip(self.shares, self.rows, (0, *self.rows), strict=False):
            if rows < self.budget.batch_size or rows == before:
                raise ValueError(
                    f"share {share:g} of corpus.sequences ({self.corpus.sequences}) is {rows} sequences, "
                    + (
                        "as many as the share before it; leave one out"
                        if rows == before
                        else f"fewer than a batch ({self.budget.batch_size}); raise one, or lower training.batch_size"
                    )
                )
        return self

    @model_validator(mode="after")
    def _teacher_can_write(self) -> Self:
        if self.teacher.model.endpoint is not None:
            raise ValueError(
                "teacher.model.endpoint: a teacher writes the corpus from its weights; give `path` or `hub`"
            )
        random = self.teacher.model.architecture is not None
        if random and self.teacher.training is None:
            raise ValueError("teacher.training is null, but its weights are random; give it a training section")
        if (self.teacher.training is None) != (self.data.plain_text is None):
            raise ValueError("`teacher.training` and `data.plain_text` go together; give both or neither")
        if random != (self.tokenizer is not None):
            raise ValueError(
                "`tokenizer.train_vocabulary` and `teacher.model.architecture` go together: a model from scratch has "
                "no tokenizer, and any other has its own"
            )
        return self

    @model_validator(mode="after")
    def _trainings_fit(self) -> Self:
        for field, training in self.trainings.items():
            if training.select_by != "validation_loss":
                raise ValueError(
                    f"{field}.select_by is {training.select_by}, which needs answers to compare; set validation_loss"
                )
        sizes = {f"{field}.batch_size": training.batch_size for field, training in self.trainings.items()}
        require_even_batches(sizes.items(), self.runtime.processes)
        return self
