"""Outbox of MLflow: what tracked runs should look like, kept on disk until MLflow has it, and sent exactly once.

Stages only change an entry here. One background thread brings the server up to date with the entries, so a dead, slow
or absent server never stops or delays anything. The next flow run sends what this one could not.
"""

import contextlib
import json
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout
from pydantic import ValidationError

from minillm.durable import make_folder, write_atomically
from minillm.errors import StageError, first_line
from minillm.redaction import redacted
from tasks.environment.settings import set_mlflow_defaults
from tasks.tracking.entries import LOGGER, RUN, STORE, Delivered, DesiredRun, OutboxEntry, server_in_use
from tasks.tracking.uses import note_use

if TYPE_CHECKING:
    from tasks.tracking.sender import Sender

OWNERS = "owners"
"""Folder of the locks that living processes hold."""
EVERY_SECONDS = 2.0
PAUSE_SECONDS = 15.0
"""Pause between attempts while the server does not answer."""
DRAIN_SECONDS = 60.0
"""Longest time to send what is left at the end of a flow, as long as the server answers."""


class RefusedError(Exception):
    """The server answered, and will not take this entry however often it is sent."""


class DeletedError(RefusedError):
    """A person has deleted the run on the server: nothing more of it is wanted."""


class UnsentError(Exception):
    """This entry could not be sent, though the server answers: the others can."""


class Outbox:
    """The entries of one store and the thread that sends them."""

    def __init__(self, store: Path) -> None:
        """Take over the entries that dead processes have left, and start sending."""
        self.store, self.folder = store, store / "tracking"
        self._sender: Sender | None = None
        self._entries: dict[str, OutboxEntry] = {}
        self._lock = threading.RLock()
        self._closing = threading.Event()
        self._failed = False
        self._unsaved = False
        self._server = server_in_use()
        self._opened: dict[str, None] = {}
        """Entries that this process opened, in their order; it took over the others."""
        make_folder(self.folder / OWNERS)
        self._name = uuid.uuid4().hex
        self._life = FileLock(self.folder / OWNERS / self._name)
        self._life.acquire()
        self._adopt()
        self._thread = threading.Thread(target=self._work, name="mlflow", daemon=True)
        self._thread.start()

    def open(self, identity: str, desired: DesiredRun) -> None:
        """Begin an entry, or continue that of an earlier attempt."""
        with self._lock:
            earlier = self._entries.get(identity)
            if earlier is None:
                delivered = Delivered(uncertain=True, server=self.delivered(desired.parent).server)
            else:
                delivered = earlier.delivered
                desired = desired.model_copy(update={"started": earlier.desired.started})
            desired.clean()
            entry = OutboxEntry(
                id=identity, owner=self._name, desired=desired, delivered=delivered, store=str(self.store)
            )
            self._opened[identity] = None
            self._entries[identity] = entry
            self._save(entry)

    @contextlib.contextmanager
    def change(self, identity: str) -> Iterator[DesiredRun]:
        """Change what a run should look like."""
        with self._lock:
            entry = self._entries[identity]
            yield entry.desired
            entry.desired.clean()
            self._save(entry)

    @contextlib.contextmanager
    def progress(self, entry: OutboxEntry) -> Iterator[Delivered]:
        """Note what the server has confirmed."""
        with self._lock:
            yield entry.delivered
            self._save(entry)

    def place(self, entry: OutboxEntry, run_id: str, url: str, created: bool) -> None:
        """Note where the run of an entry is. The runs inside it belong there too, and its result is in use there.

        Args:
            entry: Entry of the run.
            run_id: Id of the run on the server.
            url: Page of the run.
            created: Whether the run has just been made, so that the server knows nothing else of it.
        """
        if entry.desired.key is not None and self._server != STORE:
            note_use(self.folder, self._server, entry.desired.key, entry.desired.name)
        with self.progress(entry) as delivered:
            delivered.run_id, delivered.url, delivered.server = run_id, url, self._server
            delivered.uncertain, delivered.status = not created, "RUNNING" if created else None
        with self._lock:
            inside = [r for r in self._entries.values() if r.desired.parent == entry.id and r.delivered.server is None]
        for one in inside:
            with self.progress(one) as delivered:
                delivered.server = self._server

    def refuse(self, entry: OutboxEntry, what: str, reason: str) -> None:
        """Set aside what the server refuses. It stays on disk with its reason, for people and for the next flow run.

        Args:
            entry: Entry that it belongs to.
            what: RUN, or the kind and name of the refused part of the run.
            reason: The server's reason.
        """
        if what not in entry.delivered.refused:
            LOGGER.warning("MLflow refused %s of %s: %s", what, entry.desired.name, reason)
            with self.progress(entry) as delivered:
                delivered.refused[what] = redacted(reason)

    def troubles(self) -> dict[str, str]:
        """Return why MLflow lacks something of a run, by the name of each such run that this process opened."""
        with self._lock:
            found = [(entry.desired.name, entry.trouble) for entry in map(self._entries.__getitem__, self._opened)]
        return {name: trouble for name, trouble in found if trouble is not None}

    def delivered(self, identity: str | None) -> Delivered:
        """Return what the server knows of an entry so far: nothing, if there is no such entry."""
        with self._lock:
            entry = self._entries.get(identity or "")
            return entry.delivered.model_copy(deep=True) if entry is not None else Delivered()

    def close(self) -> bool:
        """Send what is left for as long as the server answers, then stop. Return whether MLflow has everything."""
        self._closing.set()
        self._thread.join(DRAIN_SECONDS)
        if self._thread.is_alive():
            return False
        with self._lock:
            for entry in self._entries.values():
                if entry.delivered.deleted:  # its results are free to go, too
                    self._path(entry.id).unlink(missing_ok=True)
                elif not entry.settled or entry.delivered.refused:
                    entry.owner = None
                    self._save(entry)
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
        """Send everything in the order of starting; return False as soon as the server does not answer."""
        with self._lock:
            active = [r for r in self._entries.values() if not r.settled and RUN not in r.delivered.refused]
        for entry in sorted(active, key=lambda r: r.desired.started):
            failed = None
            try:
                self._send(entry)
            except RefusedError as error:
                self.refuse(entry, RUN, str(error))
                entry.delivered.deleted = isinstance(error, DeletedError)
            except UnsentError as error:
                failed = redacted(first_line(error))
                if entry.delivered.failed is None:
                    LOGGER.warning("MLflow: %s cannot be sent now: %s", entry.desired.name, failed)
            except Exception as error:  # whatever the network or the server does, the flow goes on
                why = first_line(error)
                if not self._failed:
                    LOGGER.warning("MLflow: %s; what cannot be sent now is sent later", why)
                with self._lock:
                    for unsent in active:  # saved with the entry's next change, or in the end
                        unsent.delivered.unanswered = redacted(why)
                return False
            if failed != entry.delivered.failed or entry.delivered.unanswered is not None:
                with self.progress(entry) as delivered:
                    delivered.failed, delivered.unanswered = failed, None
            with self._lock:
                if entry.settled and not entry.delivered.refused:
                    self._path(entry.id).unlink(missing_ok=True)
        return True

    def _send(self, entry: OutboxEntry) -> None:
        """Send an entry over a connection made when first needed, as MLflow takes seconds to import and to connect."""
        with self._lock:
            desired = entry.desired.model_copy(deep=True)
        if self._sender is None:
            set_mlflow_defaults()
            from tasks.tracking.sender import Sender

            self._sender = Sender(self.store)
        self._sender.send(self, entry, desired)

    def _adopt(self) -> None:
        with FileLock(self.folder / "adopt.lock"):
            for path in sorted(self.folder.glob("*.json")):
                try:
                    entry = OutboxEntry.model_validate_json(path.read_bytes())
                except (OSError, ValidationError) as error:
                    LOGGER.warning("%s is unreadable (%s) and stays as it is", path, first_line(error))
                    continue
                if lives(self.folder, entry.owner):
                    continue
                name, server = entry.desired.name, entry.delivered.server
                if server not in (None, self._server):
                    LOGGER.warning("%s: its run is on %s, and only that server gets the rest", name, server)
                    continue
                entry.owner = self._name
                entry.move(str(self.store))
                if entry.delivered.refused:  # the cause may be gone by now
                    entry.delivered.refused, entry.delivered.offsets, entry.delivered.status = {}, {}, None
                if entry.desired.status == "RUNNING":  # its process was killed
                    entry.desired.status, entry.desired.ended = "KILLED", path.stat().st_mtime
                self._entries[entry.id] = entry
                self._save(entry)

    def _save(self, entry: OutboxEntry) -> None:
        """Write an entry. If that fails (a full disk), it is still sent while this process lives."""
        try:
            write_atomically(self._path(entry.id), json.dumps(entry.model_dump(mode="json")))
            self._unsaved = False
        except OSError as error:
            if not self._unsaved:
                LOGGER.warning("the outbox of MLflow cannot be written: %s", error)
            self._unsaved = True

    def _path(self, identity: str) -> Path:
        return self.folder / f"{identity}.json"


def lives(folder: Path, owner: str | None) -> bool:
    """Return whether a process holds the lock of this name. A lock that nobody holds is removed."""
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


def waiting_entries(folder: Path) -> list[OutboxEntry]:
    """Return the entries that some process has still to send, and those that were refused.

    Raises:
        StageError: An entry cannot be read, so that nobody knows what its run uses.
    """
    found = []
    for path in sorted(folder.glob("*.json")):
        with contextlib.suppress(FileNotFoundError):  # sent meanwhile
            try:
                found.append(OutboxEntry.model_validate_json(path.read_bytes()))
            except ValidationError as error:
                raise StageError(
                    f"{path} cannot be read ({first_line(error)}), so what its run uses is not known: restore the "
                    "file or, if that run is not wanted, delete it"
                ) from error
    return found
