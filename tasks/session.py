"""What the stages of one flow run share: store, tracked run, limit on parallel work, and the way to stop."""

import contextlib
import contextvars
import itertools
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType
from typing import Any

from prefect.futures import PrefectFuture
from prefect.runtime import flow_run

from minillm.artifacts import Store
from minillm.config import Tracked
from minillm.redaction import redact_error
from tasks import tracking
from tasks.outbox import Outbox
from tasks.planner import Planner
from tasks.records import Sent, server_in_use
from tasks.supervision import GRACE_SECONDS

TOLD = 10
"""Tracked runs that MLflow has not got whole and that are named at the end."""
_SESSIONS: "dict[str, Session | Planner]" = {}
_AROUND: contextvars.ContextVar["Session | None"] = contextvars.ContextVar("around", default=None)


class Stop(threading.Event):
    """Set by itself, or with that of the flow run around it."""

    def __init__(self, around: threading.Event | None) -> None:
        super().__init__()
        self._around = around

    def is_set(self) -> bool:
        """Whether work is to end."""
        return super().is_set() or (self._around is not None and self._around.is_set())


class Session:
    """One flow run's shared state; `tracked` opens it, and stages find it by the flow run's id."""

    def __init__(
        self, config: Tracked, flow_run_id: str, flow_run_name: str, at_once: int, around: "Session | None"
    ) -> None:
        self.flow_run_id = flow_run_id
        self.flow_run_name = flow_run_name
        self.around = around
        """Session of the flow run that started this one."""
        self._name = config.name
        self.store = Store(config.runtime.store)
        self.outbox = Outbox(self.store.root / "tracking", tracking.Tracker(self.store.root))
        self.outbox.open(flow_run_id, tracking.flow_run(config, flow_run_id, flow_run_name))
        self.slots = threading.BoundedSemaphore(at_once)
        self.stop = Stop(around.stop if around is not None else None)
        self.futures: list[PrefectFuture[Any]] = []
        """Of all stages submitted."""
        self.failures: dict[str, str] = {}
        """What went wrong, by the name of the stage."""
        self.stages: dict[str, str] = {}
        """Record of each stage's tracked run, by the name of the stage."""
        self.computed: set[str] = set()
        """Names of the stages that were not in the store."""
        self.started = time.monotonic()
        self.runs: dict[str, Sent] = {}
        """Tracked runs of the flow runs started by this one, by their names."""
        self.troubles: dict[str, str] = {}
        """Why MLflow has not all of the tracked runs, those of flow runs started by this one among them."""
        self.next_step = ""
        """What to type next: the last line on the console."""
        self._idle = threading.Condition()
        self._running = 0

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Counts a stage that is being looked up or computed."""
        with self._idle:
            self._running += 1
        try:
            yield
        finally:
            with self._idle:
                self._running -= 1
                self._idle.notify_all()

    def close(self, status: str) -> None:
        """Wait for stages that are being stopped, give the tracked run its end, and send what is left."""
        with self._idle:
            self._idle.wait_for(lambda: self._running == 0, GRACE_SECONDS + 10)
        with self.outbox.change(self.flow_run_id) as wanted:
            wanted.status, wanted.ended = status, time.time()
        self.outbox.close()
        self.troubles |= self.outbox.troubles()
        if self.around is not None:
            self.around.runs[self.flow_run_name] = self.outbox.sent(self.flow_run_id)
            self.around.troubles |= self.troubles
        else:
            self._tell_where_runs_are()
            if self.next_step:
                print(f"\n{self.next_step}\n")

    def _tell_where_runs_are(self) -> None:
        """The last lines on the console: what became of the tracked runs."""
        if not self.troubles:
            print(f"{'tracked runs':<16} MLflow, experiment {self._name}; `make ui` shows them beside Prefect's")
            return
        print(f"{'tracked runs':<16} not all in MLflow ({server_in_use()}):")
        for name, why in itertools.islice(self.troubles.items(), TOLD):
            print(f"{'':<16} {name}: {why}")
        print(
            f"{'':<16} {len(self.troubles)} in all; `python -m flows.store --store {self.store.root} ls` lists them, "
            "the next run sends them again, and their results stay in the store"
        )


def current() -> Session | Planner:
    """The session of the flow run that the calling task belongs to; outside of flow runs, the planner's."""
    identity = str(flow_run.id)
    if identity not in _SESSIONS:
        raise RuntimeError("stages run inside `with tracked(config)` in the flow's body")
    return _SESSIONS[identity]


def require_store(config: Tracked) -> None:
    """Look, before anything starts, whether results and tracked runs can be kept.

    Raises:
        StageError: The store cannot be written to, or MLFLOW_TRACKING_URI is no place for tracked runs.
    """
    Store(config.runtime.store)
    tracking.require_server()


@contextlib.contextmanager
def planned(planner: Planner) -> Iterator[None]:
    """Stages submitted inside are looked up by a planner, and none that takes long is computed."""
    identity = str(flow_run.id)
    _SESSIONS[identity] = planner
    try:
        yield
    finally:
        del _SESSIONS[identity]


@contextlib.contextmanager
def tracked(config: Tracked, at_once: int | None = None) -> Iterator[Session]:
    """Open the session of this flow run: a tracked run around its stages, and workers that end with it.

    Args:
        config: What the tracked run is called, and where it runs.
        at_once: Stages or flow runs that may be under way at once; without it, `runtime.parallel_stages`.
    """
    identity, around = str(flow_run.id), _AROUND.get()
    places = config.runtime.parallel_stages if at_once is None else at_once
    session = _SESSIONS[identity] = Session(config, identity, str(flow_run.name), places, around)
    inside = _AROUND.set(session)  # Prefect's tasks, and what they start, run in copies of this context
    status = "KILLED"  # unless it ends in a way of its own
    try:
        with _stopped_by_signals(session.stop):
            yield session
        if not session.stop.is_set():
            status = "FAILED" if session.failures else "FINISHED"
    except Exception as error:
        redact_error(error)  # its words go into Prefect's states
        status = "FAILED"
        raise
    finally:
        _AROUND.reset(inside)
        session.stop.set()
        session.close(status)
        del _SESSIONS[identity]


@contextlib.contextmanager
def _stopped_by_signals(stop: threading.Event) -> Iterator[None]:
    """Ctrl-C and SIGTERM first stop the workers, then do what they would have done."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous: dict[int, Any] = {}

    def handle(number: int, frame: FrameType | None) -> None:
        stop.set()
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
