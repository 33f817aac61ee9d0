"""Methods by name, and the training that they share."""

from pathlib import Path
from typing import Any

import pytest

from minillm.config.presets import apply_presets, presets
from minillm.errors import ConfigError
from tests.minillm.test_loading import load

SHARED = {"learning_rate": 1e-3, "batch_size": 8, "steps": 4, "evaluate_every": 2}


@pytest.fixture
def by_name(raw: dict[str, Any]) -> dict[str, Any]:
    return {**raw, "training": SHARED, "methods": {name: {} for name in presets()}}


def test_a_name_is_enough(by_name: dict[str, Any], tmp_path: Path):
    methods = load(tmp_path, by_name).methods
    assert methods.keys() == presets().keys()
    assert {(method.training.steps, method.training.batch_size) for method in methods.values()} == {(4, 8)}
    gkd, distillm = methods["gkd"].policy, methods["distillm"].policy
    assert gkd is not None
    assert distillm is not None
    assert (gkd.rollouts, gkd.student_share, gkd.credit) == (8, 0.5, "none"), "one batch is a round"
    assert (distillm.student_share, distillm.replay, distillm.inner_epochs) == ("adaptive", 1000, 1)
    assert methods["minillm"].policy == type(gkd)(), "the paper's are the defaults"


def test_what_a_method_says_goes_first(by_name: dict[str, Any], tmp_path: Path):
    by_name["methods"] = {
        "gkd": {"beta": 0.1, "policy": {"student_share": 1.0}, "training": {"batch_size": 16}},
        "mine": {"preset": "gkd", "divergence": "forward_kl", "beta": 0.5},
        "kd": {"text": "teacher", "divergence": "cross_entropy"},
    }
    methods = load(tmp_path, by_name).methods
    gkd, mine = methods["gkd"], methods["mine"]
    assert gkd.policy is not None
    assert (gkd.beta, gkd.policy.student_share, gkd.policy.rollouts, gkd.training.batch_size) == (0.1, 1.0, 16, 16)
    assert gkd.training.learning_rate == 1e-3
    assert (mine.divergence, mine.start) == ("forward_kl", "initial")
    assert (methods["kd"].text, methods["kd"].divergence_weight) == ("teacher", 1.0), "described in full"


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ({"preset": "gkdd"}, "methods.mine.preset: no method 'gkdd'; did you mean `gkd`?"),
        (
            {"preset": "system2"},
            "methods.mine.preset: System 2 distillation has a command and a configuration of its own",
        ),
        ({"divergence": "reverse_kl"}, "methods.mine: no method 'mine'; known: distillm, dpkd, gkd, kd, minillm, on"),
        ({"text": "dataset"}, "methods.mine.divergence: required, but not given"),
        ({"preset": "sft", "beta": 0.2}, "methods.mine: divergence cross_entropy does not use beta; leave it out"),
        ({"preset": "gkd", "policy": {"discount": 0.9}}, "credit: none has no rewards and does not use discount"),
        ({"preset": "on_policy", "policy": {"discount": 0.9}}, "credit: token sums nothing and does not use discount"),
        ({"preset": "on_policy", "policy": {"weight_single_step": False}}, "single_step: false has no term to weight"),
        ({"preset": "minillm", "policy": {"replay": 1000}}, "replay takes responses that the student of the round"),
        ({"preset": "distillm", "policy": {"replay": 4}}, "replay 4 cannot hold the rollouts of one round (8)"),
        ({"preset": "gkd", "training": {"zzzz": 1}}, "methods.mine.training.zzzz: unknown key"),
    ],
)
def test_what_does_not_fit_is_refused(by_name: dict[str, Any], method: dict[str, Any], message: str, tmp_path: Path):
    with pytest.raises(ConfigError) as error:
        load(tmp_path, {**by_name, "methods": {"mine": method}})
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gkdd", "methods.gkdd: no method 'gkdd'; did you mean `gkd`?; or say its `text`"),
        (
            "system2",
            "methods.system2: System 2 distillation has a command and a configuration of its own: minillm system2",
        ),
    ],
)
def test_a_name_that_is_not_known_is_refused_with_the_remedy(
    by_name: dict[str, Any], name: str, message: str, tmp_path
):
    with pytest.raises(ConfigError) as error:
        load(tmp_path, {**by_name, "methods": {name: {}}})
    assert message in str(error.value)


def test_what_is_given_is_left_alone(by_name: dict[str, Any]):
    before = str(by_name)
    apply_presets(by_name)
    assert str(by_name) == before
