"""Profile of our step: seconds of its parts and of its operations."""

import os
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

from torch.profiler import ProfilerActivity, profile

from benchmarks.contenders import minillm_step
from benchmarks.protocol import serve
from minillm.generation import sampling
from minillm.generation.cache import CachedModel
from minillm.models.output_head import OutputHead
from minillm.training import on_policy, round_teacher
from minillm.worker.processes import process_group

PARTS: dict[str, tuple[Any, str]] = {
    "sampling: the student's body": (CachedModel, "run"),
    "sampling: its head": (OutputHead, "logits"),
    "sampling: drawing": (sampling, "draw"),
    "sampling": (sampling.Sampler, "sample"),
    "scoring: the teacher's body": (round_teacher, "response_hidden"),
    "scoring: the teacher's head": (round_teacher, "token_log_probs"),
    "scoring: the student's head": (on_policy, "token_log_probs"),
    "scoring": (on_policy.Rollouts, "_score"),
    "losses over the vocabulary with their gradients": (on_policy, "head_loss"),
    "student's forward pass": (on_policy.Rollouts, "_rollout_losses"),
    "optimizer": (minillm_step, "take_step"),
}
"""Functions to time, by the name of the part."""
INNER_PARTS = {
    "sampling": [name for name in PARTS if name.startswith("sampling: ")],
    "scoring": [name for name in PARTS if name.startswith("scoring: ")],
    "student's forward pass": ["losses over the vocabulary with their gradients"],
}
"""Parts whose functions call those of other parts, whose seconds are subtracted."""
REST = "student's backward pass and the rest"


def make_step(settings: dict[str, Any]) -> Callable[[], dict[str, float]]:
    """Return a step that runs `minillm_step` twice: with its parts timed, and with every operation profiled."""
    seconds: Counter[str] = Counter()
    for name, (owner, attribute) in PARTS.items():
        setattr(owner, attribute, _timed(getattr(owner, attribute), name, seconds))
    step = minillm_step.make_step(settings)

    def measured() -> dict[str, float]:
        seconds.clear()
        before = time.perf_counter()
        step()
        whole = time.perf_counter() - before
        parts = {f"part/{name}": value for name, value in _own(seconds, whole).items()}
        with profile(activities=[ProfilerActivity.CPU]) as profiled:
            step()
        operations = {f"operation/{e.key}": e.self_cpu_time_total / 1e6 for e in profiled.key_averages()}
        return {"step": whole, **parts, **operations}

    return measured


def _timed(function: Callable[..., Any], name: str, seconds: Counter[str]) -> Callable[..., Any]:
    def run(*args: Any, **named: Any) -> Any:
        before = time.perf_counter()
        try:
            return function(*args, **named)
        finally:
            seconds[name] += time.perf_counter() - before  # type: ignore[assignment]

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
