"""Configurations of whole experiments: distillation, or evaluation only."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from minillm.config.base import Entries, Model, Name, Seed, Strict
from minillm.config.data import Data, Prompts, Sources, Tokenizer
from minillm.config.evaluation import Evaluation
from minillm.config.export import Export
from minillm.config.knowledge import Form
from minillm.config.method import Method
from minillm.config.pair import Student, Teacher
from minillm.config.promotion import Promotion
from minillm.config.runtime import Runtime
from minillm.config.served import problems_of_served, take_students_tokenizer
from minillm.config.training import Lora, Training
from minillm.nearest import suggestion


class Tracked(Strict):
    """Fields of everything that has a tracked run: its name, and where it runs."""

    name: Name
    """Name of the experiment in MLflow and in the report."""
    runtime: Runtime = Runtime()


class WithData(Tracked):
    """Fields of everything that reads data."""

    data: Sources


class WithPrompts(WithData):
    """Fields of everything that makes prompts of data."""

    data: Prompts  # type: ignore[assignment]  # values never change, so a narrower one is safe


class BaseConfig(WithPrompts):
    """Fields of every experiment: how prompts are made, what is measured, and where it runs."""

    evaluation: Evaluation

    @property
    def rows(self) -> tuple[str, ...]:
        """Names of the rows of the result table; the others are measured against the first."""
        raise NotImplementedError

    @property
    def served(self) -> dict[str, Model]:
        """Rows whose model runs behind an endpoint and has no weights here, each with its origin."""
        return {}

    @property
    def longest_response(self) -> int:
        """Longest response after the longest prompt of a benchmark, in tokens."""
        return self.evaluation.max_response_tokens or self.data.response_room

    @property
    def complete_tokens(self) -> int:
        """Number of tokens that a response may have after any prompt, in evaluation and in training."""
        return min(self.data.response_room, self.longest_response)

    @model_validator(mode="after")
    def _judge_can_be_paid(self) -> Self:
        """Refuse a budget that is too small; this can be told here only if the number of prompts is set."""
        judge = self.evaluation.judge
        if judge is None or judge.prompts is None:
            return self
        rows, benchmarks, seeds = len(self.rows), len(judge.benchmarks), len(judge.seeds or (0,))
        questions = rows * benchmarks * judge.prompts * seeds * 2 * judge.samples
        if questions > judge.max_questions:
            raise ValueError(
                f"evaluation.judge.max_questions is {judge.max_questions}, but there are {questions} questions to ask "
                f"({rows} models × {benchmarks} benchmarks × {judge.prompts} prompts × {seeds} seeds × 2 orders × "
                f"{judge.samples} samples); raise it, or lower prompts, seeds or samples"
            )
        return self


def require_even_batches(sizes: Iterable[tuple[str, int]], processes: int) -> None:
    """Refuse uneven batches: batch sizes are global, so the number of processes never changes the experiment.

    Args:
        sizes: Fields that set sequences per optimizer step, each with its value.
        processes: Value of `runtime.processes`.

    Raises:
        ValueError: A size cannot be divided among them.
    """
    if uneven := [f"{field} ({size})" for field, size in sizes if size % processes]:
        raise ValueError(
            f"{' and '.join(uneven)} cannot be divided among the {processes} processes of runtime.processes; "
            "choose a multiple, or another number of processes"
        )


def adapters_of(trainings: Mapping[str, Training]) -> dict[str, tuple[Lora, ...]]:
    """Return distinct adapters that teacher and student are trained with, by the field of the model.

    Args:
        trainings: Trainings by their fields; that of the teacher is `teacher.training`.
    """
    found: dict[str, list[Lora]] = {"teacher.model": [], "student.model": []}
    for field, training in trainings.items():
        of = found["teacher.model" if field == "teacher.training" else "student.model"]
        if training.lora is not None and training.lora not in of:
            of.append(training.lora)
    return {model: tuple(adapters) for model, adapters in found.items()}


class Config(BaseConfig):
    """A whole experiment, from raw rows to the report."""

    seed: Seed = 1
    """Seed of model initialisation, data order and rollouts."""
    parity: Literal["paper", "lmops"] = "paper"
    """Follow the paper or, with lmops, the reference code in every deviation from it (method.md §4)."""
    data: Data  # type: ignore[assignment]  # values never change, so a narrower one is safe
    tokenizer: Tokenizer = Tokenizer()
    teacher: Teacher
    student: Student
    training: dict[str, Any] = Field(default_factory=dict)
    """Fields of `methods.NAME.training` for every method that does not set them itself."""
    methods: Entries[Method] = Field(min_length=1)
    """Rows of the result table beside the teacher. A method that does not say its `text` is that of its name in
    `minillm/config/methods.yaml` (sft, kd, seqkd, minillm, gkd, distillm, on_policy, dpkd), or of `preset: NAME`."""
    promotion: Promotion | None = None
    """Conditions for the best student to become this experiment's champion; without it, none is put forward."""
    export: Export | None = None
    """Upload of a student to the Hugging Face hub; without it, students are only exported into the store."""

    @property
    def uploaded(self) -> str | None:
        """Method whose student is uploaded to the hub, if one is."""
        return None if self.export is None else self.export.method or next(iter(self.methods))

    @property
    def rows(self) -> tuple[str, ...]:
        """Names of the rows: the teacher and the methods."""
        return ("teacher", *self.methods)

    @property
    def served(self) -> dict[str, Model]:
        """The teacher, if it runs behind an endpoint."""
        return {} if self.teacher.model.endpoint is None else {"teacher": self.teacher.model}

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, raw: Any) -> Any:
        from minillm.config.parity import apply_lmops
        from minillm.config.presets import apply_presets

        if not isinstance(raw, dict):
            return raw
        whole = take_students_tokenizer(apply_presets(raw))
        return apply_lmops(whole) if whole.get("parity") == "lmops" else whole

    @property
    def trainings(self) -> dict[str, Training]:
        """All trainings of the run, by their fields in the configuration."""
        found = {"teacher.training": self.teacher.training} if self.teacher.training else {}
        found |= {"student.initial": self.student.initial} if self.student.initial else {}
        return found | {f"methods.{name}.training": method.training for name, method in self.methods.items()}

    @property
    def stored_knowledge(self) -> tuple[tuple[Form, str], ...]:
        """Forms of the teacher's stored knowledge that methods read, each with the text it is of."""
        return tuple(dict.fromkeys((of.stored, of.text) for of in self.methods.values() if of.stored is not None))

    @property
    def adapters(self) -> dict[str, tuple[Lora, ...]]:
        """Distinct adapters that each model is trained with, by the field of the model."""
        return adapters_of(self.trainings)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for name, method in self.methods.items():
            if name == "teacher":
                raise ValueError("methods: `teacher` is the name of the teacher's own row; rename the method")
            if method.start == "initial" and self.student.initial is None:
                raise ValueError(
                    f"methods.{name}.start is initial, but student.initial is null; give it a training section, or "
                    "set start: pretrained"
                )
            if method.policy and method.policy.plain_text_coefficient > 0 and self.data.plain_text is None:
                raise ValueError(
                    f"methods.{name}.policy.plain_text_coefficient is "
                    f"{method.policy.plain_text_coefficient}, but there is no data.plain_text; "
                    "give a corpus or set the coefficient to 0"
                )
        if self.promotion and self.promotion.method and self.promotion.method not in self.methods:
            raise ValueError(
                f"promotion.method is {self.promotion.method!r}, which is no student; "
                f"{suggestion(self.promotion.method, self.methods)}"
            )
        for name, benchmark in self.evaluation.benchmarks.items():
            if self.promotion and self.promotion.metric not in benchmark.metrics:
                raise ValueError(
                    f"promotion.metric is {self.promotion.metric}, by which {name} is not measured; "
                    f"set evaluation.benchmarks.{name}.metric to it, or promotion.metric to another"
                )
        if self.teacher.model.architecture is not None and self.teacher.training is None:
            raise ValueError("teacher.training is null, but its weights are random; give it a training section")
        if self.teacher.model.architecture is not None and self.student.model.layers_of:
            raise ValueError(
                "student.model takes layers of the teacher, whose weights are random; give student.model an "
                "`architecture` of its own"
            )
        exposure, room = self.evaluation.exposure_bias, self.complete_tokens
        if exposure and (exposure.max_length or 0) > room:
            raise ValueError(
                f"evaluation.exposure_bias.max_length is {exposure.max_length}, but only {room} response tokens fit "
                "after the longest prompt (data.max_tokens − data.max_prompt_tokens, or evaluation.max_response_tokens "
                "if that is less), and a response that was cut "
                f"would count as one that ended; set it to {room} or less, or leave it out"
            )
        owner = self.tokenizer.model
        if (
            owner is not None
            and {"teacher": self.teacher, "student": self.student}[owner].model.architecture is not None
        ):
            raise ValueError(
                f"the {owner} has an `architecture` and so no tokenizer of its own; set tokenizer.train_vocabulary, or "
                "tokenizer.from to a model or directory that has one"
            )
        return self

    @model_validator(mode="after")
    def _harness_holds_whole_models(self) -> Self:
        if self.runtime.teacher_zero_stage == 3 and self.evaluation.downstream is not None:
            raise ValueError(
                "evaluation.downstream runs each model whole in one process, and runtime.teacher_zero_stage: 3 is for "
                "a teacher that does not fit there; set evaluation.downstream: null, and measure students by "
                "`minillm evaluate`"
            )
        return self

    @model_validator(mode="after")
    def _served_teacher_has_no_weights(self) -> Self:
        if self.served and (found := "; ".join(problems_of_served(self))):
            raise ValueError(f"teacher.model.endpoint: {found}")
        return self

    @model_validator(mode="after")
    def _pairs_have_a_student(self) -> Self:
        """Refuse pairs whose rejected responses would not be those of the student that training starts from."""
        for name, method in self.methods.items():
            if method.text != "pairs" or method.start == "initial":
                continue
            if self.student.initial is not None:
                raise ValueError(
                    f"methods.{name}: the rejected responses of its pairs are the initial student's; set start: initial"
                )
            if self.student.model.architecture is not None:
                raise ValueError(
                    f"methods.{name}: a student with random weights has no responses to reject; give student.initial a "
                    "training section, and the method start: initial"
                )
        return self

    @model_validator(mode="after")
    def _one_student_is_uploaded(self) -> Self:
        if self.export is not None and self.export.method is None and len(self.methods) > 1:
            raise ValueError(
                f"export.hub is the repository of one model, and there are {len(self.methods)} methods; set "
                f"export.method to one of {', '.join(self.methods)}"
            )
        if self.uploaded is not None and self.uploaded not in self.methods:
            raise ValueError(
                f"export.method is {self.uploaded!r}, which is no student; {suggestion(self.uploaded, self.methods)}"
            )
        return self

    @model_validator(mode="after")
    def _batches_can_be_divided(self) -> Self:
        require_even_batches(self._batch_sizes(), self.runtime.processes)
        return self

    def _batch_sizes(self) -> Iterator[tuple[str, int]]:
        """Fields that set sequences per optimizer step, each with its value."""
        for field, training in self.trainings.items():
            yield f"{field}.batch_size", training.batch_size
        for name, method in self.methods.items():
            if method.policy is not None and method.policy.plain_text_batch_size is not None:
                yield f"methods.{name}.policy.plain_text_batch_size", method.policy.plain_text_batch_size


class EvaluationConfig(BaseConfig):
    """An evaluation of existing models."""

    models: Entries[Model] = Field(min_length=1)
    """Rows of the result table; on the command line, MODEL or NAME=MODEL each. The others are measured against the
    first, whose tokenizer counts the lengths of references for all."""

    @property
    def rows(self) -> tuple[str, ...]:
        """Names of the rows: the models."""
        return tuple(self.models)

    @model_validator(mode="after")
    def _with_weights(self) -> Self:
        for name, model in self.models.items():
            if model.architecture is not None:
                raise ValueError(f"models.{name}: an `architecture` has random weights; give `path` or `hub`")
        return self

    @model_validator(mode="after")
    def _nothing_is_trained(self) -> Self:
        unread = [f"evaluation.{name}" for name in self.evaluation._changed("validation_prompts")]
        unread += [
            f"runtime.{name}" for name in self.runtime._changed("zero_stage", "teacher_zero_stage", "checkpoint_every")
        ]
        if unread:
            raise ValueError(f"nothing is trained here, so {' and '.join(unread)} would do nothing; leave it out")
        if self.evaluation.exposure_bias is not None:
            raise ValueError("evaluation.exposure_bias needs students and the teacher they learned from; leave it out")
        return self
