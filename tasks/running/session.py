"""State that the stages of a flow run share: store, tracked run, limit on parallel work, and the way to stop."""

import contextlib
import contextvars
import inspect
import itertools
import signal
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from types import FrameType
from typing import Any

from prefect import State, Task
from prefect.futures import PrefectFuture
from prefect.logging import get_run_logger
from prefect.runtime import flow_run, task_run

from minillm.config import Tracked
from minillm.errors import StageError
from minillm.redaction import redact_error
from minillm.stages.base import Stage
from minillm.store.artifacts import Store
from minillm.store.manifest import Artifact
from minillm.worker.template import GRACE_SECONDS
from tasks.running.board import State as StageState
from tasks.running.computation import Computation, Input
from tasks.running.console import Console, followed
from tasks.running.cores import CpuShare, cpu_share
from tasks.running.dry_run import DryRun
from tasks.running.stage_run import StageRun
from tasks.running.supervision import WorkerStoppedError
from tasks.tracking import contents
from tasks.tracking.connection import require_server
from tasks.tracking.entries import Delivered, server_in_use
from tasks.tracking.outbox import Outbox

TOLD = 10
"""Most tracked runs named at the end as incomplete in MLflow."""
_CURRENT: contextvars.ContextVar["Session | DryRun | None"] = contextvars.ContextVar("session", default=None)
"""Session of the enclosing flow run. Prefect's tasks, and what they start, run in copies of its context."""


class Stop(threading.Event):
    """Event that is set on its own, or with that of the flow run that started this one."""

    def __init__(self, parent: threading.Event | None) -> None:
        super().__init__()
        self._parent = parent

    def is_set(self) -> bool:
        """Return whether work is to end."""
        return super().is_set() or (self._parent is not None and self._parent.is_set())


class Session:
    """Shared state of the flow run that is under way; `tracked` opens it."""

    def __init__(self, config: Tracked, cores: CpuShare, parent: "Session | None", console: Console) -> None:
        self.flow_run_id, self.flow_run_name = str(flow_run.id), str(flow_run.name)
        self.parent = parent
        """Session of the flow run that started this one."""
        self._name = config.name
        self.run = "" if parent is None else self.flow_run_name
        """Name of the flow run, if it is one of several on the console."""
        self.board = console.board
        self._log = console.log.path
        self.store = Store(config.runtime.store)
        self.outbox = Outbox(self.store.root)
        self.outbox.open(self.flow_run_id, contents.flow_run(config, self.flow_run_id, self.flow_run_name))
        self.cores = cores
        """Share of this machine's cores that its stages have."""
        self.slots = threading.BoundedSemaphore(cores.stages)
        self.stop = Stop(parent.stop if parent is not None else None)
        self.futures: list[PrefectFuture[Any]] = []
        """Futures of all stages submitted."""
        self.failures: dict[str, str] = {}
        """Errors by the name of the stage."""
        self.stages: dict[str, str] = {}
        """Outbox entries of the stages' tracked runs, by the name of the stage."""
        self.computed: set[str] = set()
        """Names of the stages that were not in the store."""
        self.started = time.monotonic()
        self.runs: dict[str, Delivered] = {}
        """Tracked runs of the flow runs that this one started, by their names."""
        self.troubles: dict[str, str] = {}
        """Reasons why MLflow lacks something, by the tracked run's name; flow runs that this one started add theirs."""
        self.next_step = ""
        """Command to type next, the last line on the console."""
        self._idle = threading.Condition()
        self._running = 0

    def submit(
        self, task: Task[..., Any], label: str, call: inspect.BoundArguments, wait_for: Iterable[Any]
    ) -> PrefectFuture[Any]:
        """Start a stage's task in the background, once its inputs and `wait_for` are there."""
        self.board.submit(label, self.run)
        retries = call.args[0].runtime.retries
        future = task.with_options(retries=retries).submit(*call.args, wait_for=wait_for, **call.kwargs)
        self.futures.append(future)
        future.add_done_callback(lambda _: self.board.never_began(label, self.run))
        return future

    def skip(self, state: State, label: str) -> State:
        """Pass on the state of a stage that has nothing to do."""
        self.board.end(label, self.run, "skipped", state.message or "")
        return state

    def compute(self, stage: Stage, inputs: Mapping[str, Input], config: Tracked, label: str) -> Artifact | State:
        """Find the artifact of a stage in the store, or compute it. A found one comes in a state named Cached.

        Args:
            stage: Settings that decide the result.
            inputs: Inputs by the names that the stage declares.
            config: Settings of the run, which are kept with the result.
            label: Name of the stage in logs and pages.

        Raises:
            StageError: Bad input; retrying does not help.
            WorkerError: The worker died; a retry continues from its last checkpoint.
        """
        with self.counted():
            try:
                result = StageRun(self, Computation(stage, inputs, config, label, self.store)).result()
            except Exception as error:
                redact_error(error)  # its words go into Prefect's states
                self.failures[label] = str(error) if isinstance(error, StageError) else repr(error)
                self.board.end(label, self.run, self._ended_by(error, config), self.failures[label])
                raise
            self.failures.pop(label, None)  # left by an earlier attempt
            if isinstance(result, State):
                self.board.end(label, self.run, "cached")
            else:
                self.board.end(label, self.run, "done", stage.shown_words(result.manifest().summary))
            return result

    def _ended_by(self, error: Exception, config: Tracked) -> StageState:
        if isinstance(error, WorkerStoppedError):
            return "stopped"
        again = may_retry(error) and int(task_run.run_count or 0) <= config.runtime.retries
        return "retrying" if again and not self.stop.is_set() else "failed"

    @contextlib.contextmanager
    def counted(self) -> Iterator[None]:
        """Count a stage as being looked up or computed while the block runs."""
        with self._idle:
            self._running += 1
        try:
            yield
        finally:
            with self._idle:
                self._running -= 1
                self._idle.notify_all()

    def close(self, status: str) -> None:
        """Wait for stages that are being stopped, end the tracked run, and send what is left."""
        with self._idle:
            self._idle.wait_for(lambda: self._running == 0, GRACE_SECONDS + 10)
        with self.outbox.change(self.flow_run_id) as desired:
            desired.status, desired.ended = status, time.time()
        self.outbox.close()
        self.troubles |= self.outbox.troubles()
        if self.parent is not None:
            self.parent.runs[self.flow_run_name] = self.outbox.delivered(self.flow_run_id)
            self.parent.troubles |= self.troubles
        else:
            print(f"{'log':<16} {self._log}")
            self._tell_where_runs_are()
            if self.next_step:
                print(f"\n{self.next_step}\n")

    def _tell_where_runs_are(self) -> None:
        """Print the last lines on the console: what became of the tracked runs."""
        if not self.troubles:
            print(f"{'tracked runs':<16} MLflow, experiment {self._name}; `make ui` shows them beside Prefect's")
            return
        print(f"{'tracked runs':<16} not all in MLflow ({server_in_use()}):")
        for name, why in itertools.islice(self.troubles.items(), TOLD):
            print(f"{'':<16} {name}: {why}")
        print(
            f"{'':<16} {len(self.troubles)} in all; `minillm store --store {self.store.root} ls` lists them, "
            "the next run sends them again, and their results stay in the store"
        )


def current() -> "Session | DryRun":
    """Return the session of the flow run that the calling task belongs to, or the dry run that calls it.

    Raises:
        RuntimeError: There is neither.
    """
    session = _CURRENT.get()
    if session is None:
        raise RuntimeError("stages run inside `with tracked(config)` in the flow's body")
    return session


def may_retry(error: object) -> bool:
    """Return whether another attempt may end differently: not on bad input, and not if stopped on purpose."""
    return not isinstance(error, StageError | WorkerStoppedError)


def require_store(config: Tracked) -> None:
    """Check, before anything starts, that results and tracked runs can be kept.

    Raises:
        StageError: The store cannot be written to, or MLFLOW_TRACKING_URI cannot hold tracked runs.
    """
    Store(config.runtime.store)
    require_server()


@contextlib.contextmanager
def walked(session: Session | DryRun) -> Iterator[None]:
    """Hand the stages submitted in the block to a session, or to a dry run."""
    token = _CURRENT.set(session)
    try:
        yield
    finally:
        _CURRENT.reset(token)


@contextlib.contextmanager
def tracked(config: Tracked, at_once: int | None = None) -> Iterator[Session]:
    """Open the session of this flow run: a tracked run around its stages, and workers that end with it.

    Args:
        config: Name of the experiment, and settings of the run.
        at_once: Most stages or flow runs under way at once; `runtime.parallel_stages` if absent.
    """
    around = _CURRENT.get()
    parent = around if isinstance(around, Session) else None
    runtime = config.runtime if at_once is None else config.runtime.model_copy(update={"parallel_stages": at_once})
    cores = cpu_share(runtime, 1 if parent is None else parent.cores.stages)
    with followed(config.name, str(flow_run.name), Store(config.runtime.store).root) as console:
        session = Session(config, cores, parent, console)
        if parent is None:
            get_run_logger().info("log file %s", console.log.path)
            get_run_logger().info("%s", cores.words)
        status = "KILLED"  # unless it ends in a way of its own
        try:
            with walked(session), _stopped_by_signals(session):
                yield session
            if not session.stop.is_set():
                status = "FAILED" if session.failures else "FINISHED"
        except Exception as error:
            redact_error(error)  # its words go into Prefect's states
            status = "FAILED"
            raise
        finally:
            session.stop.set()
            session.close(status)


@contextlib.contextmanager
def _stopped_by_signals(session: Session) -> Iterator[None]:
    """Let Ctrl-C and SIGTERM stop the workers first, and then do what they would have done."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous: dict[int, Any] = {}

    def handle(number: int, frame: FrameType | None) -> None:
        session.stop.set()
        session.board.stop()
        before = previous[number]
        if not callable(before):
            raise SystemExit(128 + number)
        before(number, frame)

    for number in (signal.SIGINT, signal.SIGTERM):
        previous[number] = signal.signal(number, handle)
    try:
        yield
    finally:
        for number, before in previous.items():
            signal.signal(number, before)
