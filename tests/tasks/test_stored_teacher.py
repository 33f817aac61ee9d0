"""Which passes of the teacher a flow makes for methods that train without it, and which training waits for which."""

import pytest

from flows.distill import stages
from minillm.config import Sampled, Top
from minillm.stages.training import StoreKnowledge
from tasks.running.dry_run import DryRun, DryStage, Pending
from tasks.running.session import walked
from tests.small import small_config

METHODS = (
    "methods={a: {preset: kd, teacher: top}, b: {preset: kd, teacher: top, divergence_weight: 1.0}, "
    "c: {preset: kd, teacher: sampled}, d: {preset: kd, teacher: hidden}, slim: {}, kd: {}}"
)


@pytest.fixture(scope="module")
def walk(tmp_path_factory: pytest.TempPathFactory) -> dict[str, DryStage]:
    """Return the stages of a run by label; only those that read data are computed."""
    shared = "training={learning_rate: 0.001, batch_size: 8, steps: 2, evaluate_every: 2}"
    knowledge = "teacher.knowledge={top: {k: 7}, precision: bfloat16}"
    config = small_config(
        tmp_path_factory.mktemp("stored"), METHODS, "methods.sft=null", "methods.minillm=null", shared, knowledge
    )
    dry_run = DryRun(config, print)
    with walked(dry_run):
        stages(config)
    return {stage.label: stage for stage in dry_run.stages}


def waits_for(stage: DryStage) -> dict[str, str]:
    return {name: value.label for name, value in stage.inputs.items() if isinstance(value, Pending)}


def test_there_is_one_pass_for_each_form_and_text(walk: dict[str, DryStage]):
    found = {label: stage.stage for label, stage in walk.items() if isinstance(stage.stage, StoreKnowledge)}
    assert found == {
        "teacher knowledge top on dataset": StoreKnowledge(top=Top(k=7), precision="bfloat16"),
        "teacher knowledge sampled on dataset": StoreKnowledge(sampled=Sampled(), precision="bfloat16", seed=1),
        "teacher knowledge hidden on dataset": StoreKnowledge(precision="bfloat16"),
        "teacher knowledge top on teacher": StoreKnowledge(top=Top(k=7), precision="bfloat16"),
    }
    on_dataset, on_teacher = (waits_for(walk[f"teacher knowledge top on {text}"]) for text in ("dataset", "teacher"))
    assert on_dataset == {"model": "fine-tune teacher"}
    assert on_teacher == {"model": "fine-tune teacher", "responses": "teacher responses"}


def test_each_training_reads_its_own(walk: dict[str, DryStage]):
    read = {name: waits_for(walk[f"train {name}"]).get("knowledge") for name in ("a", "b", "c", "d", "slim", "kd")}
    forms = ("top on dataset", "top on dataset", "sampled on dataset", "hidden on dataset", "top on teacher")
    assert list(read.values()) == [*(f"teacher knowledge {form}" for form in forms), None]
    for name in read:
        walk[f"train {name}"].stage.require_inputs(walk[f"train {name}"].inputs)
