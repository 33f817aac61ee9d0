"""Configuration of teacher and student: where their weights come from, and their fine-tuning."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, NonNegativeInt, model_validator

from minillm.config.base import Model, Strict
from minillm.config.endpoint import ServedTeacher
from minillm.config.knowledge import Knowledge
from minillm.config.training import Training


class TeacherModel(Model):
    """Origin of the teacher: as of any model, or an endpoint, behind which it runs as it is."""

    endpoint: ServedTeacher | None = None
    """A model that runs elsewhere and is asked for text and, if it tells them, log-probabilities."""

    @property
    def origins(self) -> dict[str, Any]:
        """Fields of which exactly one is given."""
        return {**super().origins, "endpoint": self.endpoint}


class Teacher(Strict):
    """The large model, first fine-tuned on D (paper Algorithm 1, step 1)."""

    model: TeacherModel
    training: Training | None
    """Fine-tuning on D; null if the given model is fine-tuned already."""
    knowledge: Knowledge = Knowledge()
    """Knowledge that it leaves behind for methods that train without it (docs/stored-teacher.md)."""


class StudentModel(Model):
    """Origin of the student's weights: as of any model, or some layers of the teacher."""

    layers_of: Literal["teacher"] | None = None
    """Take embeddings, head and some layers of `teacher.model`, as they are before its fine-tuning."""
    layers: Annotated[int, Field(ge=2)] | Annotated[tuple[NonNegativeInt, ...], Field(min_length=1)] | None = None
    """With `layers_of`: the number of layers to take, evenly spaced, the first and last among them (DistilBERT, arXiv
    1910.01108, takes every other one; Minitron, arXiv 2407.14679); or a list of them, counted from 0."""

    @property
    def origins(self) -> dict[str, Any]:
        """Fields of which exactly one is given."""
        return {**super().origins, "layers_of": self.layers_of}

    @model_validator(mode="after")
    def _layers_in_order(self) -> Self:
        if (self.layers_of is None) != (self.layers is None):
            raise ValueError("`layers_of: teacher` and `layers` go together")
        if isinstance(self.layers, tuple) and list(self.layers) != sorted(set(self.layers)):
            raise ValueError(f"layers {list(self.layers)} are not in rising order, each once; layers keep their order")
        return self


class Student(Strict):
    """The small model and the fine-tuning that MiniLLM starts from (paper Algorithm 1, step 2)."""

    model: StudentModel
    initial: Training | None
    """Fine-tuning on D before distillation (the reference scripts give it 3 epochs); null if no method needs it."""
