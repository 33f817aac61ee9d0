"""Models that a plan takes the stages of a flow to run."""

from collections.abc import Mapping

import pytest

from minillm.config import Model
from minillm.models.facts import ModelFacts
from minillm.stages.base import Stage
from minillm.stages.measuring import HeldOut, Score
from minillm.stages.training import Respond, training_only
from tasks.planning import _model
from tasks.running.computation import Input
from tasks.running.dry_run import DryStage, Pending
from tests.minillm.test_planning import GENERATE, LARGE, MODEL, TRAINING, train

MODELS = {"teacher": LARGE, "student": MODEL}
SERVED = {"student": MODEL}
AS_IT_COMES = Model(hub="gpt2")


def respond(role: str) -> Respond:
    return Respond.model_validate({"role": role, "max_tokens": 32, "precision": "float32", "seed": 1})


def trained(role: str) -> Pending:
    return Pending(kind="train", label=f"train {role}", role=role)


@pytest.mark.parametrize(
    ("stage", "model", "models", "wanted"),
    [
        (respond("student"), AS_IT_COMES, MODELS, "student"),
        (respond("teacher"), AS_IT_COMES, MODELS, "teacher"),
        (respond("student"), trained("initial"), MODELS, "student"),
        (GENERATE, AS_IT_COMES, MODELS, "teacher"),
        (GENERATE, trained("teacher"), MODELS, "teacher"),
        (GENERATE, trained("sft"), MODELS, "student"),
        (GENERATE, AS_IT_COMES, SERVED, "student"),
        (train(training_only(TRAINING), "teacher"), None, MODELS, "teacher"),
        (Score(role="teacher", seeds=(1,), benchmarks={}), None, SERVED, "student"),
        (
            HeldOut(role="teacher", benchmarks=(), texts=(), precision="float32", max_tokens=32, block_tokens=32),
            AS_IT_COMES,
            MODELS,
            "teacher",
        ),
    ],
)
def test_a_stage_runs_the_model_that_its_role_or_its_input_names(
    stage: Stage, model: Input | None, models: Mapping[str, ModelFacts], wanted: str
):
    inputs = {} if model is None else {"model": model}
    assert _model(DryStage("stage", stage, inputs, frozenset(), None, None), models) == wanted
