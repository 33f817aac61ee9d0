import copy

import pytest

from minillm.config import Config
from minillm.config.loading import load_config
from minillm.config.parity import apply_lmops
from tests.minillm.direct import ROOT

BASE = ROOT / "configs" / "gpt2-base.yaml"


def test_lmops_sets_every_switch_and_nothing_else():
    paper, lmops = (load_config(BASE, overrides) for overrides in ((), ("parity=lmops",)))
    expected = {
        ("parity",): "lmops",
        ("methods", "seqkd", "divergence"): "forward_kl",
        ("methods", "seqkd", "divergence_weight"): 0.5,
        ("methods", "minillm", "policy", "credit"): "inclusive",
        ("methods", "minillm", "policy", "discount"): 0.95,
        ("methods", "minillm", "policy", "weight_single_step"): False,
        ("methods", "minillm", "policy", "clip_importance"): True,
        ("methods", "minillm", "policy", "whiten_advantages"): True,
        ("methods", "minillm", "policy", "reward_scale"): 0.5,
        ("methods", "minillm", "policy", "reward_clip"): 100.0,
        ("methods", "minillm", "policy", "plain_text_kd"): 0.5,
        ("evaluation", "no_repeat_ngram"): 6,
        ("evaluation", "exposure_bias"): None,  # there are no plain samples to measure it on
    }
    assert differences(paper.model_dump(), lmops.model_dump()) == expected


def test_a_switch_that_is_not_read_is_left_out():
    policy = load_config(BASE, ("parity=lmops", "methods.minillm.policy.teacher_mix=0")).methods["minillm"].policy
    assert policy is not None
    assert (policy.weight_single_step, policy.clip_importance, policy.plain_text_kd) == (True, False, 0.5)


def differences(first: dict, second: dict, path: tuple[str, ...] = ()) -> dict:
    found = {}
    for key, value in second.items():
        if isinstance(value, dict):
            found |= differences(first[key], value, (*path, key))
        elif first[key] != value:
            found[(*path, key)] = value
    return found


def test_the_default_is_the_paper():
    policy = load_config(BASE).methods["minillm"].policy
    assert policy is not None
    assert policy.credit == "future"
    assert policy.discount == policy.reward_scale == policy.plain_text_coefficient == 1.0
    assert policy.single_step
    assert policy.weight_single_step
    assert policy.length_normalization
    assert not policy.clip_importance
    assert not policy.whiten_advantages
    assert policy.reward_clip is None
    assert policy.plain_text_kd == 0.0
    assert load_config(BASE).evaluation.no_repeat_ngram is None


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("methods.minillm.policy.credit=token", "methods.minillm.policy.credit is 'token', but `parity: lmops` means"),
        ("methods.minillm.policy.length_normalization=false", "length_normalization is False"),
        ("methods.minillm.policy.discount=1.0", "methods.minillm.policy.discount is 1.0"),
        ("methods.seqkd.divergence_weight=0.3", "methods.seqkd.divergence_weight is 0.3"),
        ("methods.seqkd.divergence=reverse_kl", "methods.seqkd.divergence is 'reverse_kl'"),
        ("evaluation.no_repeat_ngram=4", "evaluation.no_repeat_ngram is 4"),
    ],
)
def test_what_was_set_otherwise_is_a_contradiction_not_overridden(override, message):
    with pytest.raises(ValueError, match="remove these fields, or remove `parity: lmops`") as error:
        load_config(BASE, ["parity=lmops", override])
    assert message in str(error.value)


def test_it_is_pure_and_idempotent_so_that_a_resolved_configuration_loads_again():
    raw = {"methods": {"m": {"policy": {"rollouts": 8}}, "odd": 3}, "evaluation": {}}
    before = copy.deepcopy(raw)
    once = apply_lmops(raw)
    assert raw == before
    assert apply_lmops(once) == once
    assert apply_lmops({"methods": ["not", "a", "mapping"]}) == {"methods": ["not", "a", "mapping"]}
    resolved = load_config(BASE, ["parity=lmops"])
    assert Config.model_validate(resolved.model_dump()) == resolved
