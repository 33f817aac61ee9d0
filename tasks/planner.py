"""A flow's body walked without running it: what the store has, and what would have to be computed.

Stages that only read data are computed all the same, as all else depends on what is in it; the run finds them done.
"""

import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from prefect import State

from minillm.artifacts import Store
from minillm.config import BaseConfig
from minillm.manifest import Artifact
from minillm.stages import (
    Benchmarks,
    DownstreamTasks,
    EncodedPrompts,
    Filter,
    HeldOutTexts,
    Pack,
    Prepare,
    Questions,
    Stage,
)
from tasks.computation import Computation, Input

READING = (Prepare, Benchmarks, EncodedPrompts, Filter, Pack, HeldOutTexts, Questions, DownstreamTasks)
"""Stages that only read data."""


class Pending(Artifact):
    """The result of a stage that is not in the store."""

    label: str
    """What the stage is called."""


@dataclass(frozen=True)
class Planned:
    """One stage of a flow."""

    label: str
    stage: Stage
    inputs: Mapping[str, Input]
    after: frozenset[str]
    """Labels of the stages to be computed before it."""
    found: Artifact | None
    """Its result, where the store has it."""
    computation: Computation | None
    """Where all of its inputs are there."""


@dataclass
class Planner:
    """Takes the place of a flow run's session while its body is walked."""

    config: BaseConfig
    log: Callable[[str], None]
    """Gets the lines of the stages that read data."""
    stages: list[Planned] = field(default_factory=list)
    """In the order of the flow."""

    def __post_init__(self) -> None:
        self.store = Store(self.config.runtime.store)
        self._waits: frozenset[str] = frozenset()

    def submit(self, function: Callable[..., Any], *inputs: Any, wait_for: Iterable[Any] = (), **named: Any) -> Any:
        """Call a task's function at once, with results or pending ones as inputs."""
        self._waits = frozenset(value.label for value in wait_for if isinstance(value, Pending))
        value = function(self.config, *inputs, **named)
        return value.data if isinstance(value, State) else value

    def look_up(self, stage: Stage, inputs: Mapping[str, Input], label: str) -> Artifact:
        """The result of a stage: from the store, read now, or pending."""
        pending = {value.label for value in inputs.values() if isinstance(value, Pending)}
        computation = None if pending else Computation(stage, inputs, self.config, label)
        found = None
        if computation is not None:
            with self.store.lock(computation.key):
                found = computation.find(self.store)
                if found is None and isinstance(stage, READING):
                    self.log(f"reading the data: {label}")
                    started = computation.run(self.store, self.log, threading.Event())
                    found = computation.complete(self.store, started)
        self.stages.append(Planned(label, stage, inputs, self._waits | pending, found, computation))
        if found is not None:
            return found
        return Pending(kind=stage.kind, key="", path="", digest="", label=label)
