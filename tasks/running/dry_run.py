"""A flow's body walked without running it: what the store has, and what would have to be computed.

Stages that only read data are computed all the same, since the others depend on the data. The run finds them done.
"""

import inspect
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from prefect import State, Task

from minillm.config import Tracked
from minillm.stages.base import Stage
from minillm.store.artifacts import Store
from minillm.store.manifest import Artifact
from tasks.running.computation import Computation, Input
from tasks.running.cores import cpu_share


class Pending(Artifact):
    """The result of a stage that is not in the store."""

    key: str = ""
    path: str = ""
    digest: str = ""
    label: str
    """Name of the stage."""
    role: str | None
    """Model that the stage trains or measures, if it is about one."""

    def part(self, folder: str) -> "Pending":
        """Return the result itself: its files are not there yet."""
        return self


@dataclass(frozen=True)
class DryStage:
    """One stage of a flow."""

    label: str
    stage: Stage
    inputs: Mapping[str, Input]
    after: frozenset[str]
    """Labels of the stages to be computed before it."""
    found: Artifact | None
    """Result, if the store has it."""
    computation: Computation | None
    """The stage with its inputs, if all of them are there."""


@dataclass
class DryRun:
    """Stand-in for a flow run's session while the flow's body is walked."""

    config: Tracked
    log: Callable[[str], None]
    """Called with each line of the stages that read data."""
    stages: list[DryStage] = field(default_factory=list)
    """Stages in the order of the flow."""
    reading_seconds: float = 0.0
    """Seconds spent on stages that read data, which the run then finds done."""

    def __post_init__(self) -> None:
        self.store = Store(self.config.runtime.store)
        self.cores = cpu_share(self.config.runtime)
        self._waits: frozenset[str] = frozenset()

    def submit(self, task: Task[..., Any], label: str, call: inspect.BoundArguments, wait_for: Iterable[Any]) -> Any:
        """Call a task's function at once, with results or pending ones as inputs."""
        self._waits = frozenset(value.label for value in wait_for if isinstance(value, Pending))
        value = task.fn(*call.args, **call.kwargs)
        return value.data if isinstance(value, State) else value

    def skip(self, state: State, label: str) -> State:
        """Pass on the state of a stage that has nothing to do."""
        return state

    def compute(self, stage: Stage, inputs: Mapping[str, Input], config: Tracked, label: str) -> Artifact:
        """Return the result of a stage: from the store, read now, or pending."""
        pending = {value.label for value in inputs.values() if isinstance(value, Pending)}
        computation = None if pending else Computation(stage, inputs, config, label, self.store)
        found = computation and computation.find()
        if computation is not None and found is None and stage.reads_only:
            found = self._read(computation)
        self.stages.append(DryStage(label, stage, inputs, self._waits | pending, found, computation))
        if found is not None:
            return found
        return Pending(kind=stage.kind, label=label, role=getattr(stage, "role", None))

    def _read(self, computation: Computation) -> Artifact:
        with self.store.lock(computation.key):
            found = computation.find()  # a run may have read it meanwhile
            if found is None:
                self.log(f"reading the data: {computation.label}")
                started = computation.run(self.log, threading.Event(), self.cores.threads)
                found = computation.complete(started)
                self.reading_seconds += time.monotonic() - started
        return found
