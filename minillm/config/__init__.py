"""The one configuration: typed, frozen, loaded from YAML and validated whole before anything starts.

Every field has a unit and a source in the docstring under it. "Paper" is arXiv 2306.08543; "reference code"
is the authors' public implementation, whose deviations `minillm.parity` sets in one word.
"""

from minillm.config.base import Model, Source, Strict
from minillm.config.data import Data, Template, Tokenizer
from minillm.config.evaluation import Benchmark, Downstream, Evaluation, Fields, LocalTask
from minillm.config.experiment import Config, Runtime
from minillm.config.training import Method, Policy, Student, Teacher, Training

__all__ = [
    "Benchmark",
    "Config",
    "Data",
    "Downstream",
    "Evaluation",
    "Fields",
    "LocalTask",
    "Method",
    "Model",
    "Policy",
    "Runtime",
    "Source",
    "Strict",
    "Student",
    "Teacher",
    "Template",
    "Tokenizer",
    "Training",
]
