"""The models that a plan compares: those that the store has, else as they come."""

from typing import Any

import pytest

from minillm.config import Model
from minillm.stages.training import Train, training_only
from minillm.store.manifest import Artifact
from tasks.outlook import outlook_of, outlook_words
from tasks.running.computation import Input
from tasks.running.dry_run import DryStage, Pending
from tests.small import small_config

CHAT, SMALL = Model(path="models/chat"), Model(path="models/small")
TUNED = Artifact(kind="train", key="k", path="/store/train-k", digest="d")


def to_come(label: str) -> Pending:
    return Pending(kind="train", label=label, role=None)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return small_config(tmp_path_factory.mktemp("small"))


def stage(config: Any, label: str, found: Artifact | None = None, **inputs: Input) -> DryStage:
    name = label.removeprefix("train ")
    method = config.methods.get(name) or training_only(config.student.initial)
    train = Train(role=name, method=method, architecture=None, max_tokens=9, validation_prompts=3, seed=1)
    return DryStage(label, train, inputs, frozenset(), found, None)


def test_a_model_that_is_to_be_fine_tuned_first_is_compared_as_it_comes(config: Any):
    first = stage(config, "fine-tune initial", weights=SMALL)
    stages = [first, stage(config, "train minillm", teacher=TUNED, weights=to_come("fine-tune initial"))]
    starts, outlook = outlook_of(config, stages)
    assert (starts["teacher"].weights, starts["teacher"].to_come) == (TUNED, ())
    assert (starts["student"].weights, starts["student"].to_come) == (SMALL, ("fine-tune initial",))
    assert outlook is not None
    assert outlook.metric == "rouge_l"
    words = outlook_words(starts, [{"records": [], "ways": {}, "metric": "rouge_l"}])
    assert "Not measured" in words, "the models are too slow here"


@pytest.mark.parametrize("trained", [None, TUNED])
def test_random_weights_are_not_compared(config: Any, trained: Artifact | None):
    teacher = to_come("fine-tune teacher") if trained is None else trained
    stages = [stage(config, "fine-tune teacher", trained), stage(config, "train minillm", teacher=teacher)]
    starts, outlook = outlook_of(config, stages)
    assert outlook is None
    scratch = "student" if trained else "teacher and student"
    assert f"Not asked: {scratch} will be trained from random weights" in outlook_words(starts, [])


def test_a_run_whose_distillations_are_stored_is_not_asked(config: Any):
    starts, outlook = outlook_of(config, [stage(config, "train minillm", TUNED, teacher=CHAT, weights=SMALL)])
    assert (starts, outlook) == ({}, None)
    assert "Not asked: no training that compares with a teacher" in outlook_words(starts, [])


def test_the_training_on_rollouts_decides_what_is_compared(config: Any):
    method = config.methods["minillm"].model_copy(update={"policy": None, "text": "dataset"})
    kd = config.model_copy(update={"methods": {"kd": method, **config.methods}})
    stages = [
        stage(kd, "train kd", teacher=CHAT, weights=SMALL),
        stage(kd, "train minillm", teacher=CHAT, weights=TUNED),
    ]
    assert outlook_of(kd, stages)[0]["student"].weights == TUNED
