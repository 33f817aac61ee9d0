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
from pydantic import TypeAdapter, ValidationError

from minillm.durable import make_folder, write_atomically
from minillm.errors import StageError, first_line
from minillm.redaction import redacted
from tasks.tracking.records import RUN, STORE, Record, Sent, Wanted, server_in_use

LOGGER = logging.getLogger("prefect.tracking")
OWNERS = "owners"
"""Folder of the locks that living processes hold."""
USES = "servers/uses.json"
"""Results that runs on servers use: {server: {key: name of a run}}. The store's own database is asked instead."""
NOTED = TypeAdapter(dict[str, dict[str, str]])
EVERY_SECONDS = 2.0
PAUSE_SECONDS = 15.0
"""Between attempts while the server does not answer."""
DRAIN_SECONDS = 60.0
"""At the end of a flow: longest time for what is left, as long as the server answers."""


class RefusedError(Exception):
    """The server answered, and will not take this record however often it is sent."""


class DeletedError(Exception):
    """A person has deleted the run on the server: nothing more of it is wanted."""


class UnsentError(Exception):
    """This record could not be sent, though the server answers: the others can."""


class Outbox:
    """The records of one store and the thread that sends them."""

    def __init__(self, folder: Path, send: Callable[["Outbox", Record, Wanted], None]) -> None:
        """Take over what dead processes have left, and start sending.

        Args:
            folder: Where records are kept, one JSON file each.
            send: Brings the server up to date with what a record wants; raises RefusedError, DeletedError or
                UnsentError for reasons of this record, anything else if the server does not answer.
        """
        self.folder = folder
        self._send = send
        self._records: dict[str, Record] = {}
        self._lock = threading.RLock()
        self._closing = threading.Event()
        self._failed = False
        self._unsaved = False
        self._server = server_in_use()
        self._opened: dict[str, None] = {}
        """Records that this process opened, in their order; the others it took over."""
        make_folder(folder / OWNERS)
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
            sent = earlier.sent if earlier is not None else Sent(uncertain=True, server=self.sent(wanted.parent).server)
            wanted.clean()
            self._opened[identity] = None
            store = str(self.folder.parent)
            self._records[identity] = Record(id=identity, owner=self._name, wanted=wanted, sent=sent, store=store)
            self._save(self._records[identity])

    @contextlib.contextmanager
    def change(self, identity: str) -> Iterator[Wanted]:
        """Change what a run should look like."""
        with self._lock:
            record = self._records[identity]
            yield record.wanted
            record.wanted.clean()
            self._save(record)

    @contextlib.contextmanager
    def progress(self, record: Record) -> Iterator[Sent]:
        """Note what the server has confirmed."""
        with self._lock:
            yield record.sent
            self._save(record)

    def place(self, record: Record, run_id: str, url: str, created: bool) -> None:
        """Note where the run of a record is: those inside it belong there, too, and its result is in use there."""
        if record.wanted.key is not None and self._server != STORE:
            _note_use(self.folder, self._server, record.wanted.key, record.wanted.name)
        with self.progress(record) as sent:
            sent.run_id, sent.url, sent.server = run_id, url, self._server
            sent.uncertain, sent.status = not created, "RUNNING" if created else None
        with self._lock:
            inside = [r for r in self._records.values() if r.wanted.parent == record.id and r.sent.server is None]
        for one in inside:
            with self.progress(one) as sent:
                sent.server = self._server

    def refuse(self, record: Record, what: str, reason: str) -> None:
        """Set aside what the server does not take: it stays on disk with its reason, for people and for the next flow.

        Args:
            record: Whose.
            what: RUN, or the kind and name of what it is of the run.
            reason: The server's.
        """
        if what not in record.sent.refused:
            LOGGER.warning("MLflow refused %s of %s: %s", what, record.wanted.name, reason)
            with self.progress(record) as sent:
                sent.refused[what] = redacted(reason)

    def troubles(self) -> dict[str, str]:
        """Why MLflow has not got all of a run, by the name of each such run that was begun or continued here."""
        with self._lock:
            found = [(record.wanted.name, record.trouble) for record in map(self._records.__getitem__, self._opened)]
        return {name: trouble for name, trouble in found if trouble is not None}

    def sent(self, identity: str | None) -> Sent:
        """What the server knows of a record so far; nothing, if there is no such record."""
        with self._lock:
            record = self._records.get(identity or "")
            return record.sent.model_copy(deep=True) if record is not None else Sent()

    def close(self) -> bool:
        """Send what is left for as long as the server answers, then stop; tells whether MLflow has all of it."""
        self._closing.set()
        self._thread.join(DRAIN_SECONDS)
        if self._thread.is_alive():
            return False
        with self._lock:
            for record in self._records.values():
                if record.sent.deleted:  # its results are free to go, too
                    self._path(record.id).unlink(missing_ok=True)
                elif not record.settled or record.sent.refused:
                    record.owner = None
                    self._save(record)
        self._life.release()
        Path(self._life.lock_file).unlink(missing_ok=True)
        return not self._failed and not self.troubles()

    def _work(self) -> None:
        last = False
        while not last:
            last = self._closing.is_set()
            self._failed = not self._send_all()
            self._closing.wait(PAUSE_SECONDS if self._failed else EVERY_SECONDS)

    def _send_all(self) -> bool:
        """Send everything in the order of starting; False as soon as the server does not answer."""
        with self._lock:
            active = [r for r in self._records.values() if not r.settled and RUN not in r.sent.refused]
        for record in sorted(active, key=lambda r: r.wanted.started):
            with self._lock:
                wanted = record.wanted.model_copy(deep=True)
            failed = None
            try:
                self._send(self, record, wanted)
            except RefusedError as error:
                self.refuse(record, RUN, str(error))
            except DeletedError:
                self.refuse(record, RUN, "it was deleted there")
                record.sent.deleted = True
            except UnsentError as error:
                failed = redacted(first_line(error))
                if record.sent.failed is None:
                    LOGGER.warning("MLflow: %s cannot be sent now: %s", wanted.name, failed)
            except Exception as error:  # whatever the network or the server does, the flow goes on
                why = first_line(error)
                if not self._failed:
                    LOGGER.warning("MLflow: %s; what cannot be sent now is sent later", why)
                with self._lock:
                    for unsent in active:
                        unsent.sent.unanswered = redacted(why)  # on disk with the record's next change, or in the end
                return False
            if failed != record.sent.failed or record.sent.unanswered is not None:
                with self.progress(record) as sent:
                    sent.failed, sent.unanswered = failed, None
            with self._lock:
                if record.settled and not record.sent.refused:
                    self._path(record.id).unlink(missing_ok=True)
        return True

    def _adopt(self) -> None:
        with FileLock(self.folder / "adopt.lock"):
            for path in sorted(self.folder.glob("*.json")):
                try:
                    record = Record.model_validate_json(path.read_bytes())
                except (OSError, ValidationError) as error:
                    LOGGER.warning("%s is unreadable (%s); leaving it", path, first_line(error))
                    continue
                if lives(self.folder, record.owner):
                    continue
                if record.sent.server not in (None, self._server):
                    LOGGER.warning("%s: its run is on %s, which gets the rest", record.wanted.name, record.sent.server)
                    continue
                record.owner = self._name
                record.move(str(self.folder.parent))
                if record.sent.refused:  # what kept it out may have been mended since
                    record.sent.refused, record.sent.offsets, record.sent.status = {}, {}, None
                if record.wanted.status == "RUNNING":  # its process was killed
                    record.wanted.status, record.wanted.ended = "KILLED", path.stat().st_mtime
                self._records[record.id] = record
                self._save(record)

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


def lives(folder: Path, owner: str | None) -> bool:
    """Whether a process holds the lock of that name; one that nobody holds is removed."""
    path = folder / OWNERS / (owner or "")
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


def records(folder: Path) -> list[Record]:
    """What some process has still to send, or is about to, and what was refused.

    Raises:
        StageError: One cannot be read, so that nobody knows what its run uses.
    """
    found = []
    for path in sorted(folder.glob("*.json")):
        with contextlib.suppress(FileNotFoundError):  # sent meanwhile
            try:
                found.append(Record.model_validate_json(path.read_bytes()))
            except ValidationError as error:
                raise StageError(
                    f"{path} cannot be read ({first_line(error)}), so what its run uses is not known: restore the "
                    "file or, if that run is not wanted, delete it"
                ) from error
    return found


def uses_elsewhere(folder: Path) -> dict[str, dict[str, str]]:
    """Results that runs on servers other than the one in use need: {server: {key: name of a run}}.

    Raises:
        StageError: The note of them cannot be read.
    """
    return {server: keys for server, keys in _noted_uses(folder / USES).items() if server != server_in_use()}


def _note_use(folder: Path, server: str, key: str, name: str) -> None:
    path = folder / USES
    make_folder(path.parent)
    with FileLock(path.with_suffix(".lock")):
        uses = _noted_uses(path)
        if key not in uses.setdefault(server, {}):
            uses[server][key] = name
            write_atomically(path, json.dumps(uses, indent=1))


def _noted_uses(path: Path) -> dict[str, dict[str, str]]:
    try:
        return NOTED.validate_json(path.read_bytes()) if path.exists() else {}
    except ValidationError as error:
        raise StageError(
            f"{path} cannot be read ({first_line(error)}), so what runs on other servers use is not known: restore "
            "the file or, if nothing of theirs is wanted, delete it"
        ) from error
