"""What MLflow is to be told, kept on disk until it has been told, exactly once.

Stages only change a record here; one thread in the background brings the server up to date with the records, so a
dead, slow or absent server never stops or delays anything. What could not be sent is sent by the next flow run.
"""

import contextlib
import json
import logging
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

from filelock import FileLock, Timeout
from pydantic import BaseModel, ValidationError

from minillm.artifacts import write_atomically

LOGGER = logging.getLogger("prefect.tracking")
OWNERS = "owners"
"""Folder of the locks that living processes hold."""
EVERY_SECONDS = 2.0
PAUSE_SECONDS = 15.0
"""Between attempts while the server does not answer."""
DRAIN_SECONDS = 60.0
"""At the end of a flow: longest time for what is left, as long as the server answers."""


class RefusedError(Exception):
    """The server answered, and will not take this record however often it is sent."""


class DatasetFacts(BaseModel):
    """A dataset that a run reads."""

    name: str
    digest: str
    source_type: str
    source: str
    context: str


class ModelFacts(BaseModel):
    """A model that a run exported, to be a version of a registered model."""

    name: str
    """Of the registered model."""
    key: str
    """Of the artifact, which becomes one version and no more."""
    source: str
    """Its directory."""
    tags: dict[str, str] = {}
    description: str = ""


class Wanted(BaseModel):
    """What a tracked run should look like."""

    name: str
    experiment: str
    parent: str | None = None
    """Record of the enclosing run."""
    started: float
    """Unix time, seconds."""
    ended: float | None = None
    status: str = "RUNNING"
    tags: dict[str, str] = {}
    params: dict[str, str] = {}
    datasets: list[DatasetFacts] = []
    metrics: dict[str, float] = {}
    """Results, each sent once."""
    live: str | None = None
    """metrics.jsonl of the stage, followed while it grows, and with it system_metrics.jsonl beside it."""
    files: dict[str, str] = {}
    """Files to show with the run: path → folder in the run's artifacts."""
    models: list[ModelFacts] = []
    """To be registered once the run has ended."""
    cached_key: str | None = None
    """Key of the stage, where this run only found its result; the run that computed it is looked up and linked."""


class Sent(BaseModel):
    """How far the server knows it."""

    run_id: str | None = None
    url: str | None = None
    """Of its page."""
    done: list[str] = []
    """Digests of the tags, params, datasets, files and models already there."""
    offsets: dict[str, int] = {}
    """Bytes already sent of metrics.jsonl and system_metrics.jsonl."""
    last_step: dict[str, int] = {}
    """Of each metric; a resumed stage repeats steps, which are not sent again."""
    uncertain: bool = False
    """A sending began and its outcome was not seen: ask the server before sending again."""
    status: str | None = None


class Record(BaseModel):
    """A tracked run, from the first wish to the last confirmation."""

    id: str
    owner: str | None
    """Name of the lock that its process holds for as long as it lives, whatever the clock says. None: anybody's."""
    wanted: Wanted
    sent: Sent = Sent()

    @property
    def settled(self) -> bool:
        """Nothing is left to send."""
        return self.wanted.status != "RUNNING" and self.sent.status == self.wanted.status


class Outbox:
    """The records of one store and the thread that sends them."""

    def __init__(self, folder: Path, send: Callable[["Outbox", Record, Wanted], None]) -> None:
        """Take over what dead processes have left, and start sending.

        Args:
            folder: Where records are kept, one JSON file each.
            send: Brings the server up to date with what a record wants; raises RefusedError if the server will never
                take it, anything else if it does not answer.
        """
        self.folder = folder
        self.folder.mkdir(parents=True, exist_ok=True)
        self._send = send
        self._records: dict[str, Record] = {}
        self._lock = threading.RLock()
        self._closing = threading.Event()
        self._failed = False
        self._unsaved = False
        (folder / OWNERS).mkdir(exist_ok=True)
        self._name = uuid.uuid4().hex
        self._life = FileLock(folder / OWNERS / self._name)
        self._life.acquire()
        self._adopt()
        self._thread = threading.Thread(target=self._work, name="mlflow", daemon=True)
        self._thread.start()

    def open(self, identity: str, wanted: Wanted) -> None:
        """Begin a record, or continue that of an earlier attempt."""
        with self._lock:
            earlier = self._records.get(identity)
            if earlier is not None:
                wanted = wanted.model_copy(update={"started": earlier.wanted.started})
            sent = earlier.sent if earlier is not None else Sent(uncertain=True)
            self._records[identity] = Record(id=identity, owner=self._name, wanted=wanted, sent=sent)
            self._save(self._records[identity])

    @contextlib.contextmanager
    def change(self, identity: str) -> Iterator[Wanted]:
        """Change what a run should look like."""
        with self._lock:
            record = self._records[identity]
            yield record.wanted
            self._save(record)

    @contextlib.contextmanager
    def progress(self, record: Record) -> Iterator[Sent]:
        """Note what the server has confirmed."""
        with self._lock:
            yield record.sent
            self._save(record)

    def sent(self, identity: str) -> Sent:
        """What the server knows of a record so far; nothing, if there is no such record."""
        with self._lock:
            record = self._records.get(identity)
            return record.sent.model_copy(deep=True) if record is not None else Sent()

    def close(self) -> bool:
        """Send what is left for as long as the server answers, then stop; tells whether all was sent."""
        self._closing.set()
        self._thread.join(DRAIN_SECONDS)
        if self._thread.is_alive():
            return False
        with self._lock:
            for record in self._records.values():
                if not record.settled:
                    record.owner = None
                    self._save(record)
        self._life.release()
        Path(self._life.lock_file).unlink(missing_ok=True)
        return not self._failed

    def _work(self) -> None:
        last = False
        while not last:
            last = self._closing.is_set()
            self._failed = not self._send_all()
            self._closing.wait(PAUSE_SECONDS if self._failed else EVERY_SECONDS)

    def _send_all(self) -> bool:
        """Send everything in the order of starting; False as soon as the server does not answer."""
        with self._lock:
            waiting = sorted((r for r in self._records.values() if not r.settled), key=lambda r: r.wanted.started)
        for record in waiting:
            with self._lock:
                wanted = record.wanted.model_copy(deep=True)
            try:
                self._send(self, record, wanted)
            except RefusedError as error:
                LOGGER.warning("MLflow refused %s: %s", wanted.name, error)
                with self.progress(record) as sent:
                    sent.status = record.wanted.status
            except Exception as error:  # whatever the network or the server does, the flow goes on
                if not self._failed:
                    LOGGER.warning("MLflow: %s; what cannot be sent now is sent later", _first_line(error))
                return False
            with self._lock:
                if record.settled:
                    self._path(record.id).unlink(missing_ok=True)
        return True

    def _adopt(self) -> None:
        with FileLock(self.folder / "adopt.lock"):
            for path in sorted(self.folder.glob("*.json")):
                try:
                    record = Record.model_validate_json(path.read_text())
                except (OSError, ValidationError) as error:
                    LOGGER.warning("%s is unreadable (%s); leaving it", path, _first_line(error))
                    continue
                if self._lives(record.owner):
                    continue
                record.owner = self._name
                if record.wanted.status == "RUNNING":  # its process was killed
                    record.wanted.status, record.wanted.ended = "KILLED", path.stat().st_mtime
                self._records[record.id] = record
                self._save(record)

    def _lives(self, owner: str | None) -> bool:
        """Whether a process holds the lock of that name; one that nobody holds is removed."""
        path = self.folder / OWNERS / (owner or "")
        if owner is None or not path.exists():
            return False
        lock = FileLock(path)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            return True
        path.unlink()
        lock.release()
        return False

    def _save(self, record: Record) -> None:
        """Write a record; where that fails (a full disk), it is sent all the same while this process lives."""
        try:
            write_atomically(self._path(record.id), json.dumps(record.model_dump(mode="json")))
            self._unsaved = False
        except OSError as error:
            if not self._unsaved:
                LOGGER.warning("what MLflow is to be told is not on disk: %s", error)
            self._unsaved = True

    def _path(self, identity: str) -> Path:
        return self.folder / f"{identity}.json"


def records(folder: Path) -> list[Record]:
    """What some process has still to send, or is about to; unreadable ones are left out."""
    found = []
    for path in sorted(folder.glob("*.json")):
        with contextlib.suppress(OSError, ValidationError):
            found.append(Record.model_validate_json(path.read_text()))
    return found


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:300]
