"""The one way in which a stage is computed: found in the store, or run in a worker and completed there."""

import contextlib
import functools
import importlib.metadata
import json
import platform
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from prefect import State, Task, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import TaskRun
from prefect.futures import PrefectFuture
from prefect.logging import get_run_logger
from prefect.runtime import task_run
from prefect.states import Completed

from minillm.artifacts import METRICS, Artifact, Store, text_digest, write_atomically
from minillm.config import BaseConfig, Model, Source, Tracked
from minillm.data.sources import Resolved, resolve
from minillm.errors import StageError
from minillm.source_digest import source_digest
from minillm.stages import Calibration, Exposure, Generate, HeldOut, Job, Respond, Stage, Train
from tasks import tracking
from tasks.pages import StagePage, show_texts
from tasks.session import Session, current
from tasks.supervision import WorkerStoppedError, run_worker

LIBRARIES = ("torch", "transformers", "tokenizers", "datasets", "deepspeed", "numpy", "pandas", "rouge-score")

GROUPS = (Train, Respond, Generate, Exposure, Calibration, HeldOut)
"""Stages whose work is shared by `runtime.processes`; the others are one process each."""

Input = Artifact | Source | Model
"""What a stage reads: the result of another stage, or a file, data set or model from outside."""


@dataclass(frozen=True)
class StageTask:
    """A Prefect task that computes one stage; its retries are those of the configuration it is given."""

    task: Task[..., Artifact | State]

    def submit(
        self, config: Tracked, *inputs: Any, wait_for: Iterable[Any] = (), **named_inputs: Any
    ) -> PrefectFuture[Any]:
        """Start in the background, once the inputs and `wait_for` are there; both may be futures of other stages."""
        task = self.task.with_options(retries=config.runtime.retries)
        future = task.submit(config, *inputs, wait_for=wait_for, **named_inputs)
        current().futures.append(future)
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
    with session.running():
        try:
            result = _Run(session, stage, inputs, config, label).result()
        except StageError as error:
            session.failures[label] = str(error)
            raise
        except Exception as error:
            session.failures[label] = repr(error)
            raise
        session.failures.pop(label, None)  # of an earlier attempt
        return result


class _Run:
    """One look-up or computation of a stage."""

    def __init__(
        self, session: Session, stage: Stage, inputs: Mapping[str, Input], config: Tracked, label: str
    ) -> None:
        self.session, self.stage, self.config, self.label = session, stage, config, label
        self.artifacts = {name: value for name, value in inputs.items() if isinstance(value, Artifact)}
        self.sources = {
            name: (value, _resolve(value, config)) for name, value in inputs.items() if not isinstance(value, Artifact)
        }
        self.origin = {
            "kind": stage.kind,
            "settings": stage.model_dump(mode="json"),
            "inputs": {name: artifact.digest for name, artifact in self.artifacts.items()},
            "sources": {name: resolved.fingerprint for name, (_, resolved) in self.sources.items()},
            "source_digest": source_digest(stage.module),
        }
        self.key = text_digest(self.origin)
        self.record = f"{session.flow_run_id}-{stage.kind}-{text_digest([self.key, label])[:16]}"
        session.stages[label] = self.record

    def result(self) -> Artifact | State:
        """Found or computed, with its tracked run."""
        store = self.session.store
        with _held(store.lock(self.key), self.session.stop):
            self._open_record()
            artifact = store.find(self.stage.kind, self.key)
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
            self._announce(artifact)
            return artifact

    def _open_record(self) -> None:
        fingerprints = self.origin["inputs"] | self.origin["sources"]
        wanted = tracking.stage_run(
            self.config, self.stage, self.label, self.key, self.session.flow_run_id, str(task_run.id), fingerprints
        )
        wanted.datasets = tracking.datasets(self.stage, self.sources)
        self.session.outbox.open(self.record, wanted)

    def _announce(self, artifact: Artifact) -> None:
        show_texts(artifact, self.label)
        with self.session.outbox.change(self.session.flow_run_id) as parent:
            known = {facts.name for facts in parent.datasets}
            facts = tracking.datasets(self.stage, self.sources)
            parent.datasets += [dataset for dataset in facts if dataset.name not in known]
            tracking.on_parent(parent, artifact, self.stage)

    def _compute(self, store: Store) -> Artifact:
        runtime = self.config.runtime
        if not isinstance(self.stage, GROUPS):
            runtime = runtime.model_copy(update={"processes": 1})
        work = store.work_directory(self.stage.kind, self.key)
        output = work / "output"
        job = Job(
            kind=self.stage.kind,
            settings=self.stage,
            inputs={name: Path(artifact.path) for name, artifact in self.artifacts.items()}
            | {name: resolved.path for name, (_, resolved) in self.sources.items()},
            output=output,
            work=work,
            runtime=runtime,
        )
        spec = work / "job.json"
        write_atomically(spec, job.model_dump_json(indent=2))
        with self.session.outbox.change(self.record) as wanted:
            wanted.live = str(output / METRICS)
        logger = get_run_logger()
        logger.info("started")
        started = time.time()
        with StagePage(output / METRICS, self.session.outbox, self.record, self.label):
            run_worker(spec, runtime, logger.info, self.session.stop)
        facts = {
            **self.origin,
            "inputs": {name: artifact.model_dump() for name, artifact in self.artifacts.items()},
            "config": self.config.model_dump(mode="json"),
            "versions": versions(),
            "timings": {"started": started, "seconds": time.time() - started, "attempt": task_run.run_count},
            "summary": json.loads((work / "summary.json").read_text()),
        }
        return store.complete(self.stage.kind, self.key, facts)


@functools.cache
def versions() -> dict[str, str]:
    """Of Python and of the libraries that results depend on."""
    return {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in LIBRARIES}


def _resolve(source: Source | Model, config: Tracked) -> Resolved:
    if isinstance(source, Source) and isinstance(config, BaseConfig):
        return resolve(source, Path(config.data.directory))
    return resolve(source, Path())


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
