"""How a sentence of tasks/ becomes a Prefect task: what it names is found in the store, or computed."""

import functools
import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from prefect import State, Task, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import TaskRun
from prefect.futures import PrefectFuture
from prefect.states import Completed

from minillm.config import Tracked
from minillm.stages import Stage
from minillm.store.manifest import Artifact
from tasks.running.computation import Input
from tasks.running.session import current, may_retry

Work = tuple[Stage, Mapping[str, Input]] | State
"""What a sentence says: the stage with its inputs by name, or the state of one that has nothing to do."""


@dataclass(frozen=True)
class StageTask:
    """A Prefect task that computes one stage; its retries are those of the configuration it is given."""

    task: Task[..., Artifact | State]
    label: Callable[..., str]
    """Of the stage, from the arguments of the task."""

    def submit(
        self, config: Tracked, *inputs: Any, wait_for: Iterable[Any] = (), **named_inputs: Any
    ) -> PrefectFuture[Any]:
        """Start in the background, once the inputs and `wait_for` are there; both may be futures of other stages."""
        label = self.label(config, *inputs, **named_inputs)
        return current().submit(self.task, label, config, *inputs, wait_for=wait_for, **named_inputs)


def stage_task(label: str) -> Callable[[Callable[..., Work]], StageTask]:
    """Make a task of a function that names a stage and its inputs.

    The store is the only cache: it knows the content of inputs and the library's source, which Prefect's does not.

    Args:
        label: What the stage is called in logs and pages; the function's parameters in braces, e.g. "score {role}".
    """

    def decorate(sentence: Callable[..., Work]) -> StageTask:
        parameters = inspect.signature(sentence)

        def label_of(*inputs: Any, **named_inputs: Any) -> str:
            return label.format(**parameters.bind(*inputs, **named_inputs).arguments)

        @functools.wraps(sentence)
        def computed(config: Tracked, *inputs: Any, **named_inputs: Any) -> Artifact | State:
            work = sentence(config, *inputs, **named_inputs)
            name = label_of(config, *inputs, **named_inputs)
            if isinstance(work, State):
                return current().skip(work, name)
            return current().compute(*work, config, name)

        options = {"persist_result": False, "cache_policy": NO_CACHE, "retry_condition_fn": _may_retry}
        return StageTask(task(task_run_name=label, **options)(computed), label_of)

    return decorate


def nothing(why: str, instead: Input | None = None) -> State:
    """Say that a stage has nothing to do, and what takes the place of its result."""
    return Completed(name="Skipped", message=why, data=instead)


def _may_retry(task: Task, task_run: TaskRun, state: State) -> bool:
    return may_retry(state.data)
