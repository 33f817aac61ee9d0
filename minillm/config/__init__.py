"""The configuration: typed, frozen, loaded from YAML and fully validated before anything starts.

The docstring under each field gives its unit and its source. "Paper" is arXiv 2306.08543. "Reference code" is the
authors' public implementation; one word turns on all its deviations from the paper (`minillm.config.parity`).
"""

from minillm.config.base import Model, Source, Strict
from minillm.config.data import Data, Prompts, Template, Tokenizer
from minillm.config.evaluation import (
    Benchmark,
    Downstream,
    Evaluation,
    ExposureBias,
    Fields,
    LocalTask,
    Metric,
    MultipleChoice,
    QuestionFields,
    Sampling,
)
from minillm.config.experiment import BaseConfig, Config, EvaluationConfig, Runtime, Tracked
from minillm.config.judge import Judge, Prices
from minillm.config.promotion import Promotion
from minillm.config.study import Study, StudyRun
from minillm.config.training import DIVERGENCES, Divergence, Lora, Method, Policy, Student, Teacher, Training

__all__ = [
    "DIVERGENCES",
    "BaseConfig",
    "Benchmark",
    "Config",
    "Data",
    "Divergence",
    "Downstream",
    "Evaluation",
    "EvaluationConfig",
    "ExposureBias",
    "Fields",
    "Judge",
    "LocalTask",
    "Lora",
    "Method",
    "Metric",
    "Model",
    "MultipleChoice",
    "Policy",
    "Prices",
    "Promotion",
    "Prompts",
    "QuestionFields",
    "Runtime",
    "Sampling",
    "Source",
    "Strict",
    "Student",
    "Study",
    "StudyRun",
    "Teacher",
    "Template",
    "Tokenizer",
    "Tracked",
    "Training",
]
