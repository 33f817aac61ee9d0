"""Profile of our step: seconds of its parts and of its operations."""

import os
from collections import Counter
from collections.abc import Callable
from typing import Any

from torch.profiler import ProfilerActivity, profile

from benchmarks.contenders import minillm_step
from benchmarks.contenders.models import clock
from benchmarks.protocol import serve
from minillm.generation import rollouts, sampling
from minillm.generation.cache import CachedModel
from minillm.models.output_head import OutputHead
from minillm.training import on_policy, round_teacher
from minillm.worker.processes import process_group

PARTS: dict[str, tuple[tuple[Any, ...], str]] = {
    "sampling: bodies": ((CachedModel,), "run"),
    "sampling: heads": ((OutputHead,), "logits"),
    "sampling: drawing": ((sampling, rollouts), "draw"),
    "sampling": ((on_policy.Rollouts,), "_sample"),
    "scoring: the teacher's body": ((round_teacher,), "response_hidden"),
    "scoring: the teacher's head": ((round_teacher,), "token_log_probs"),
    "scoring: the student's head": ((on_policy,), "token_log_probs"),
    "scoring": ((on_policy.Rollouts,), "_score"),
    "losses over the vocabulary with their gradients": ((on_policy,), "head_loss"),
    "student's forward pass": ((on_policy.Rollouts,), "_rollout_losses"),
    "optimizer": ((minillm_step,), "take_step"),
}
"""Owners and name of the functions to time, by the name of the part."""
INNER_PARTS = {
    "sampling": [name for name in PARTS if name.startswith("sampling: ")],
    "scoring": [name for name in PARTS if name.startswith("scoring: ")],
    "student's forward pass": ["losses over the vocabulary with their gradients"],
}
"""Parts whose functions call those of other parts, whose seconds are subtracted."""
REST = "student's backward pass and the rest"


def make_step(settings: dict[str, Any]) -> Callable[[], dict[str, float]]:
    """Return a step that runs `minillm_step` twice: with its parts timed, and with every operation profiled."""
    device, seconds = settings.get("device", "cpu"), Counter[str]()
    for name, (owners, attribute) in PARTS.items():
        for owner in owners:
            setattr(owner, attribute, _timed(getattr(owner, attribute), name, seconds, device))
    step = minillm_step.make_step(settings)

    def measured() -> dict[str, float]:
        seconds.clear()
        before = clock(device)
        step()
        whole = clock(device) - before
        parts = {f"part/{name}": value for name, value in _own(seconds, whole).items()}
        with profile(activities=[{"cpu": ProfilerActivity.CPU, "cuda": ProfilerActivity.CUDA}[device]]) as profiled:
            step()
        taken = {"cpu": "self_cpu_time_total", "cuda": "self_device_time_total"}[device]
        operations = {f"operation/{e.key}": getattr(e, taken) / 1e6 for e in profiled.key_averages()}
        return {"step": whole, **parts, **operations}

    return measured


def _timed(function: Callable[..., Any], name: str, seconds: Counter[str], device: str) -> Callable[..., Any]:
    def run(*args: Any, **named: Any) -> Any:
        before = clock(device)
        try:
            return function(*args, **named)
        finally:
            seconds[name] += clock(device) - before  # type: ignore[assignment]

    return run


def _own(seconds: Counter[str], whole: float) -> dict[str, float]:
    """Return each part's own seconds, which add up to those of the whole step."""
    own: dict[str, float] = dict(seconds)
    for name, inner in INNER_PARTS.items():
        own[name] -= sum(seconds[part] for part in inner)
    own["sampling: the rest"] = own.pop("sampling")
    own["scoring: the student's body"] = own.pop("scoring")
    return {**own, REST: whole - sum(own.values())}


if __name__ == "__main__":
    os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    with process_group():
        serve(make_step)
