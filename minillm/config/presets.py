"""Methods by name (`methods.yaml`), and `training`, the fields that trainings of methods share."""

import copy
import functools
from pathlib import Path
from typing import Any

import yaml

from minillm.nearest import suggestion

FILE = Path(__file__).with_name("methods.yaml")


@functools.cache
def presets() -> dict[str, dict[str, Any]]:
    """Return the fields of each known method."""
    return yaml.safe_load(FILE.read_text(encoding="utf-8"))


def apply_presets(raw: dict[str, Any]) -> dict[str, Any]:
    """Return a copy of a raw configuration in which every method has the fields that its name and `training` give.

    A method that says its `text` is described in full, whatever its name.

    Args:
        raw: The configuration as read. Its shape is validated later, so anything but a mapping is left alone.

    Raises:
        ValueError: `preset` names no known method, nor does the name of a method without `text`.
    """
    result = copy.deepcopy(raw)
    methods, shared = result.get("methods"), result.get("training") or {}
    if isinstance(methods, dict) and isinstance(shared, dict):
        result["methods"] = {
            name: _whole(name, method, shared) if isinstance(method, dict) else method
            for name, method in methods.items()
        }
    return result


def _whole(name: str, method: dict[str, Any], shared: dict[str, Any]) -> dict[str, Any]:
    preset = method.pop("preset", None)
    known = name if preset is None and "text" not in method else preset
    if known is not None and known not in presets():
        raise ValueError(f"methods.{name}{'' if preset is None else '.preset'}: {_unknown(str(known))}")
    whole = _over(copy.deepcopy(presets()[known]) if known else {}, method)
    if shared and isinstance(whole.get("training", {}), dict):
        whole["training"] = _over(copy.deepcopy(shared), whole.get("training", {}))
    policy, training = whole.get("policy"), whole.get("training")
    if isinstance(policy, dict) and policy.get("rollouts", 0) is None and isinstance(training, dict):
        policy["rollouts"] = training.get("batch_size")
    return whole


def _unknown(name: str) -> str:
    """Say that no method has a name, and what to give instead."""
    if name == "system2":
        return "System 2 distillation has a command and a configuration of its own: minillm system2, docs/system2.md"
    return f"no method {name!r}; {suggestion(name, presets())}; or say its `text` and what else describes it"


def _over(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Merge changes over a base, sections field by field."""
    for key, value in changes.items():
        section = base.get(key)
        base[key] = _over(section, value) if isinstance(section, dict) and isinstance(value, dict) else value
    return base
