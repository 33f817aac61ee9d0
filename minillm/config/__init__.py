"""The configuration: typed, frozen, loaded from YAML and fully validated before anything starts.

The docstring under each field gives its unit and its source. "Paper" is arXiv 2306.08543. "Reference code" is the
authors' public implementation; one word turns on all its deviations from the paper (`minillm.config.parity`).
"""

from minillm.config.base import Model, Source, Strict
from minillm.config.data import Data, Template, Tokenizer
from minillm.config.endpoint import Endpoint, Prices, Reasoner, Served, ServedTeacher
from minillm.config.evaluation import (
    Benchmark,
    Evaluation,
    Fields,
    Metric,
    MultipleChoice,
    QuestionFields,
    Sampling,
    Scoring,
)
from minillm.config.experiment import BaseConfig, Config, EvaluationConfig, Tracked, WithData
from minillm.config.judge import Judge
from minillm.config.knowledge import Form, Knowledge, Sampled, Top
from minillm.config.method import DIVERGENCES, Collapse, Divergence, Method, Policy
from minillm.config.pair import TeacherModel
from minillm.config.pretraining import Pretrain, PretrainedStudent
from minillm.config.promotion import Promotion
from minillm.config.runtime import Runtime
from minillm.config.study import Study, StudyRun
from minillm.config.system2 import PromptChain, QuestionSet, System2
from minillm.config.training import Lora, Training
