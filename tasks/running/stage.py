"""Prefect tasks made of the sentences in tasks/: the stage that a sentence names is found in the store or computed."""

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
from minillm.stages.base import Stage
from minillm.store.manifest import Artifact
from tasks.running.computation import Input
from tasks.running.session import current, may_retry

Work = tuple[Stage, Mapping[str, Input]] | State
"""Value of a sentence: a stage with its inputs by name, or the state of one that has nothing to do."""


@dataclass(frozen=True)
class StageTask:
    """Prefect task that computes a stage, with the retries of the configuration that it is given."""

    task: Task[..., Artifact | State]
    label: str
    """Name of the stage, with the parameters of its sentence in braces."""
    signature: inspect.Signature
    """Signature of the sentence."""

    def submit(
        self, config: Tracked, *inputs: Any, wait_for: Iterable[Any] = (), **named_inputs: Any
    ) -> PrefectFuture[Any]:
        """Start the stage in the background, once the inputs and `wait_for` are there. Both may be futures."""
        call = self.signature.bind(config, *inputs, **named_inputs)
        return current().submit(self.task, self.label.format(**call.arguments), call, wait_for)


def stage_task(label: str) -> Callable[[Callable[..., Work]], StageTask]:
    """Make a task of a function that names a stage and its inputs.

    The store is the only cache: it knows the content of inputs and the library's source, which Prefect's does not.

    Args:
        label: Name of the stage in logs and pages, with the function's parameters in braces, e.g. "score {role}".
    """

    def decorate(sentence: Callable[..., Work]) -> StageTask:
        signature = inspect.signature(sentence)

        @functools.wraps(sentence)
        def computed(config: Tracked, *inputs: Any, **named_inputs: Any) -> Artifact | State:
            work = sentence(config, *inputs, **named_inputs)
            name = label.format(**signature.bind(config, *inputs, **named_inputs).arguments)
            if isinstance(work, State):
                return current().skip(work, name)
            return current().compute(*work, config, name)

        options = {"persist_result": False, "cache_policy": NO_CACHE, "retry_condition_fn": _may_retry}
        return StageTask(task(task_run_name=label, **options)(computed), label, signature)

    return decorate


def nothing(why: str, instead: Input | None = None) -> State:
    """Return the state of a stage that has nothing to do.

    Args:
        why: Reason, for people.
        instead: Value in place of its result.
    """
    return Completed(name="Skipped", message=why, data=instead)


def _may_retry(task: Task, task_run: TaskRun, state: State) -> bool:
    return may_retry(state.data)
