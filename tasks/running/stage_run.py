"""One stage in one flow run: found in the store or computed by a worker, with its tracked run."""

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
    """A stage that a flow run looks up or computes."""

    def __init__(self, session: "Session", computation: Computation) -> None:
        self.session, self.computation = session, computation
        self.stage, self.label = computation.stage, computation.label
        self.record = f"{session.flow_run_id}-{self.stage.kind}-{text_digest([computation.key, self.label])[:16]}"
        session.stages[self.label] = self.record

    def result(self) -> Artifact | State:
        """Return the artifact, in a state named Cached if the store had it already."""
        with _held(self.session.store.lock(self.computation.key), self.session.stop):
            self._open_record()
            found = self.computation.find()
            artifact = found or self._compute()
            self._announce(artifact, cached=found is not None)
            if found is not None:
                return Completed(name="Cached", data=found)
            self.session.computed.add(self.label)
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

    def _compute(self) -> Artifact:
        session, metrics, logger = self.session, self.computation.metrics, get_run_logger()
        try:
            with _slot(session.slots, session.stop):
                with session.outbox.change(self.record) as desired:
                    desired.live = str(metrics)
                logger.info("started")
                session.board.begin(self.label, session.run, metrics)
                with StagePage(metrics, session.outbox, self.record, self.label):
                    started = self.computation.run(logger.info, session.stop, session.cores.threads)
                return self.computation.complete(started, task_run.run_count)
        except BaseException as error:
            with session.outbox.change(self.record) as desired:
                desired.status = "KILLED" if isinstance(error, WorkerStoppedError) else "FAILED"
                desired.ended = time.time()
            raise

    def _announce(self, artifact: Artifact, cached: bool) -> None:
        """Show the result on its own tracked run, on the enclosing one and in Prefect."""
        with self.session.outbox.change(self.record) as desired:
            contents.finished(desired, artifact, self.stage, cached)
        show_texts(artifact, self.label)
        with self.session.outbox.change(self.session.flow_run_id) as parent:
            known = {facts.name for facts in parent.datasets}
            facts = contents.datasets(self.stage, self.computation.sources)
            parent.datasets += [dataset for dataset in facts if dataset.name not in known]
            contents.on_parent(parent, artifact, self.stage)


@contextlib.contextmanager
def _held(lock: FileLock, stop: threading.Event) -> Iterator[None]:
    """Hold the right to compute a key; while another process computes it, wait for its result."""
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
    """Take one of the `runtime.parallel_stages` places; stopped stages give theirs back soon, so nobody waits long."""
    with slots:
        if stop.is_set():
            raise WorkerStoppedError("stopped before it began")
        yield
