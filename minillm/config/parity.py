"""`parity: lmops`: the switches that make a run compute what the reference code computes (method.md §4)."""

import copy
from typing import Any

from minillm.config.method import READ_WITH

POLICY = {
    "credit": "inclusive",
    "discount": 0.95,  # the reference code's default, which none of its scripts changes
    "length_normalization": True,  # cannot be turned off there
    "weight_single_step": False,
    "clip_importance": True,
    "whiten_advantages": True,
    "reward_scale": 0.5,
    "reward_clip": 100.0,
    "plain_text_kd": 0.5,
}
SEQUENCE_KD = {"divergence": "forward_kl", "divergence_weight": 0.5}
EVALUATION = {"no_repeat_ngram": 6}


def apply_lmops(raw: dict[str, Any]) -> dict[str, Any]:
    """Return a copy of a raw configuration with the reference code's deviations filled in.

    `divergence` has no default, so a method on the teacher's text must name one. Its cross_entropy (the paper's SeqKD)
    becomes the reference code's mixture with word-level KD. Exposure bias is left out: it is defined on plain samples,
    and `no_repeat_ngram` makes them something else.

    Args:
        raw: The configuration as read. Its shape is validated later, so anything but a mapping is left alone.

    Raises:
        ValueError: A field has a value that contradicts the reference code.
    """
    result = copy.deepcopy(raw)
    conflicts: list[str] = []
    methods = result.get("methods")
    for name, method in methods.items() if isinstance(methods, dict) else ():
        if not isinstance(method, dict):
            continue
        if isinstance(method.get("policy"), dict):
            policy = method["policy"]
            read = {key: value for key, value in POLICY.items() if policy.get(READ_WITH.get(key, ""), 1) != 0}
            conflicts += _fill(policy, read, f"methods.{name}.policy")
        if method.get("text") == "teacher":
            if method.get("divergence") == "cross_entropy":
                del method["divergence"]
            conflicts += _fill(method, SEQUENCE_KD, f"methods.{name}")
    if isinstance(result.get("evaluation"), dict):
        conflicts += _fill(result["evaluation"], EVALUATION, "evaluation")
        result["evaluation"].pop("exposure_bias", None)
    if conflicts:
        raise ValueError("; ".join(conflicts) + "; remove these fields, or remove `parity: lmops`")
    return result


def _fill(section: dict[str, Any], switches: dict[str, Any], where: str) -> list[str]:
    """Set the switches that are absent, and return the conflicts with those that are present."""
    conflicts = [
        f"{where}.{name} is {section[name]!r}, but `parity: lmops` means {value!r}"
        for name, value in switches.items()
        if name in section and section[name] != value
    ]
    section.update({name: value for name, value in switches.items() if name not in section})
    return conflicts
