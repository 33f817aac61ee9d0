"""One stage in one flow run: found in the store, or run in a worker and completed there, with its tracked run."""

import contextlib
import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout
from prefect import State
from prefect.logging import get_run_logger
from prefect.runtime import task_run
from prefect.states import Completed

from minillm.store.manifest import Artifact, text_digest
from tasks.running.computation import Computation
from tasks.running.pages import StagePage, show_texts
from tasks.running.supervision import WorkerStoppedError
from tasks.tracking import contents

if TYPE_CHECKING:
    from tasks.running.session import Session


class StageRun:
    """One look-up or computation of a stage in a flow run."""

    def __init__(self, session: "Session", computation: Computation) -> None:
        self.session, self.computation = session, computation
        self.stage, self.label = computation.stage, computation.label
        self.record = f"{session.flow_run_id}-{self.stage.kind}-{text_digest([computation.key, self.label])[:16]}"
        session.stages[self.label] = self.record

    def result(self) -> Artifact | State:
        """Found or computed, with its tracked run."""
        with _held(self.session.store.lock(self.computation.key), self.session.stop):
            self._open_record()
            artifact = self.computation.find()
            if artifact is not None:
                with self.session.outbox.change(self.record) as desired:
                    contents.found(desired, artifact, self.stage)
                self._announce(artifact)
                return Completed(name="Cached", data=artifact)
            try:
                with _slot(self.session.slots, self.session.stop):
                    artifact = self._compute()
            except BaseException as error:
                with self.session.outbox.change(self.record) as desired:
                    desired.status = "KILLED" if isinstance(error, WorkerStoppedError) else "FAILED"
                    desired.ended = time.time()
                raise
            with self.session.outbox.change(self.record) as desired:
                contents.finished(desired, artifact, self.stage)
            self.session.computed.add(self.label)
            self._announce(artifact)
            return artifact

    def _open_record(self) -> None:
        made, origin = self.computation, self.computation.origin
        desired = contents.stage_run(
            made.config,
            self.stage,
            self.label,
            made.key,
            self.session.flow_run_id,
            str(task_run.id),
            origin["inputs"] | origin["sources"],
        )
        desired.datasets = contents.datasets(self.stage, made.sources)
        self.session.outbox.open(self.record, desired)

    def _announce(self, artifact: Artifact) -> None:
        show_texts(artifact, self.label)
        with self.session.outbox.change(self.session.flow_run_id) as parent:
            known = {facts.name for facts in parent.datasets}
            facts = contents.datasets(self.stage, self.computation.sources)
            parent.datasets += [dataset for dataset in facts if dataset.name not in known]
            contents.on_parent(parent, artifact, self.stage)

    def _compute(self) -> Artifact:
        metrics = self.computation.metrics
        with self.session.outbox.change(self.record) as desired:
            desired.live = str(metrics)
        logger = get_run_logger()
        logger.info("started")
        self.session.board.begin(self.label, self.session.run, metrics)
        with StagePage(metrics, self.session.outbox, self.record, self.label):
            started = self.computation.run(logger.info, self.session.stop)
        return self.computation.complete(started, task_run.run_count)


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
