"""The one way in which a stage is computed: found in the store, or run in a worker and completed there."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from filelock import FileLock, Timeout
from prefect import State, Task, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import TaskRun
from prefect.futures import PrefectFuture
from prefect.logging import get_run_logger
from prefect.runtime import task_run
from prefect.states import Completed

from minillm.artifacts import Store
from minillm.config import Tracked
from minillm.errors import StageError
from minillm.manifest import Artifact, text_digest
from minillm.redaction import redact_error
from minillm.stages import Stage
from tasks import tracking
from tasks.computation import Computation, Input
from tasks.pages import StagePage, show_texts
from tasks.planner import Planner
from tasks.session import Session, current
from tasks.supervision import WorkerStoppedError


@dataclass(frozen=True)
class StageTask:
    """A Prefect task that computes one stage; its retries are those of the configuration it is given."""

    task: Task[..., Artifact | State]

    def submit(
        self, config: Tracked, *inputs: Any, wait_for: Iterable[Any] = (), **named_inputs: Any
    ) -> PrefectFuture[Any]:
        """Start in the background, once the inputs and `wait_for` are there; both may be futures of other stages."""
        session = current()
        if isinstance(session, Planner):
            return session.submit(self.task.fn, *inputs, wait_for=wait_for, **named_inputs)
        task = self.task.with_options(retries=config.runtime.retries)
        future = task.submit(config, *inputs, wait_for=wait_for, **named_inputs)
        session.futures.append(future)
        return future


def stage_task(run_name: str) -> Callable[[Callable[..., Artifact | State]], StageTask]:
    """Make a function that calls `compute` a task, named in the pages by its parameters.

    The store is the only cache: it knows the content of inputs and the library's source, which Prefect's does not.
    """
    options = {"persist_result": False, "cache_policy": NO_CACHE, "retry_condition_fn": _may_retry}
    return lambda function: StageTask(task(task_run_name=run_name, **options)(function))


def compute(stage: Stage, inputs: Mapping[str, Input], config: Tracked, label: str) -> Artifact | State:
    """The artifact of a stage, computed only if the store does not have it; then as a state named Cached.

    Args:
        stage: Settings that decide the result.
        inputs: By the names in the stage's docstring.
        config: Where and on what to run; it is also kept with the result.
        label: What the stage is called in logs and pages, e.g. "train minillm".

    Raises:
        StageError: Bad input; retrying does not help.
        WorkerError: The worker died; a retry continues from its last checkpoint.
    """
    session = current()
    if isinstance(session, Planner):
        return session.look_up(stage, inputs, label)
    with session.running():
        try:
            result = _Run(session, Computation(stage, inputs, config, label)).result()
        except StageError as error:
            session.failures[label] = str(error)
            raise
        except Exception as error:
            redact_error(error)  # its words go into Prefect's states
            session.failures[label] = repr(error)
            raise
        session.failures.pop(label, None)  # of an earlier attempt
        return result


class _Run:
    """One look-up or computation of a stage in a flow run."""

    def __init__(self, session: Session, computation: Computation) -> None:
        self.session, self.computation = session, computation
        self.stage, self.label = computation.stage, computation.label
        self.record = f"{session.flow_run_id}-{self.stage.kind}-{text_digest([computation.key, self.label])[:16]}"
        session.stages[self.label] = self.record

    def result(self) -> Artifact | State:
        """Found or computed, with its tracked run."""
        store = self.session.store
        with _held(store.lock(self.computation.key), self.session.stop):
            self._open_record()
            artifact = self.computation.find(store)
            if artifact is not None:
                with self.session.outbox.change(self.record) as wanted:
                    tracking.found(wanted, artifact, self.stage)
                self._announce(artifact)
                return Completed(name="Cached", data=artifact)
            try:
                with _slot(self.session.slots, self.session.stop):
                    artifact = self._compute(store)
            except BaseException as error:
                with self.session.outbox.change(self.record) as wanted:
                    wanted.status = "KILLED" if isinstance(error, WorkerStoppedError) else "FAILED"
                    wanted.ended = time.time()
                raise
            with self.session.outbox.change(self.record) as wanted:
                tracking.finished(wanted, artifact, self.stage)
            self.session.computed.add(self.label)
            self._announce(artifact)
            return artifact

    def _open_record(self) -> None:
        made, origin = self.computation, self.computation.origin
        wanted = tracking.stage_run(
            made.config,
            self.stage,
            self.label,
            made.key,
            self.session.flow_run_id,
            str(task_run.id),
            origin["inputs"] | origin["sources"],
        )
        wanted.datasets = tracking.datasets(self.stage, made.sources)
        self.session.outbox.open(self.record, wanted)

    def _announce(self, artifact: Artifact) -> None:
        show_texts(artifact, self.label)
        with self.session.outbox.change(self.session.flow_run_id) as parent:
            known = {facts.name for facts in parent.datasets}
            facts = tracking.datasets(self.stage, self.computation.sources)
            parent.datasets += [dataset for dataset in facts if dataset.name not in known]
            tracking.on_parent(parent, artifact, self.stage)

    def _compute(self, store: Store) -> Artifact:
        metrics = self.computation.metrics(store)
        with self.session.outbox.change(self.record) as wanted:
            wanted.live = str(metrics)
        logger = get_run_logger()
        logger.info("started")
        with StagePage(metrics, self.session.outbox, self.record, self.label):
            started = self.computation.run(store, logger.info, self.session.stop)
        return self.computation.complete(store, started, task_run.run_count)


def _may_retry(task: Task, task_run: TaskRun, state: State) -> bool:
    """Whether another attempt can end differently: not on bad input, not when stopped on purpose."""
    return not isinstance(state.data, StageError | WorkerStoppedError)


@contextlib.contextmanager
def _held(lock: FileLock, stop: threading.Event) -> Iterator[None]:
    """The right to compute a key; while another process computes it, wait for its result."""
    try:
        lock.acquire(timeout=0)
    except Timeout:
        get_run_logger().info("the same stage is being computed elsewhere; waiting for it")
        while not lock.is_locked:
            if stop.is_set():
                raise WorkerStoppedError("stopped while waiting for the same stage elsewhere") from None
            with contextlib.suppress(Timeout):
                lock.acquire(timeout=1)
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def _slot(slots: threading.BoundedSemaphore, stop: threading.Event) -> Iterator[None]:
    """One of `runtime.parallel_stages` places."""
    while not slots.acquire(timeout=0.5):
        if stop.is_set():
            raise WorkerStoppedError("stopped before it began")
    try:
        if stop.is_set():  # the place was free because others were stopped
            raise WorkerStoppedError("stopped before it began")
        yield
    finally:
        slots.release()
