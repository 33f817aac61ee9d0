"""The way to MLflow: whether the address in use can hold tracked runs, and connections that are made when first needed.

MLflow takes seconds to import, so nothing here imports it before it is used.
"""

import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minillm.errors import StageError
from minillm.files import local_path
from minillm.worker.startup import load
from tasks.environment.settings import refusing, set_mlflow_defaults
from tasks.tracking.entries import DesiredRun, OutboxEntry
from tasks.tracking.outbox import Outbox

if TYPE_CHECKING:
    from tasks.tracking.tracked_runs import TrackedRuns

SERVERS = ("http", "https", "sqlite", "postgresql", "mysql", "mssql", "databricks", "uc")
"""What the address of a tracking server can begin with."""


class Tracker:
    """Sends records over one connection, made when first needed.

    MLflow takes seconds to import and to connect, so both happen on the sending thread.
    """

    def __init__(self, store: Path) -> None:
        self._store = store
        self._sender: Any = None

    def __call__(self, outbox: Outbox, record: OutboxEntry, desired: DesiredRun) -> None:
        """Send a record; see `tasks.tracking.sender.Sender.send`."""
        if self._sender is None:
            set_mlflow_defaults()
            from tasks.tracking.sender import Sender

            self._sender = Sender(self._store)
        self._sender.send(outbox, record, desired)


def preload() -> None:
    """Import MLflow in the background, while the caller waits for Prefect's server."""
    with refusing():
        set_mlflow_defaults()
    threading.Thread(target=load, args=("tasks.tracking.sender",), daemon=True).start()


def tracked_runs(store: str) -> "TrackedRuns":
    """The runs of the tracking server in use, or of a store's database.

    Args:
        store: `runtime.store` of the runs.

    Raises:
        StageError: There is no database, or the server does not answer.
    """
    set_mlflow_defaults()
    from tasks.tracking.tracked_runs import TrackedRuns

    return TrackedRuns(local_path(store).resolve())


def require_server() -> None:
    """Look whether MLFLOW_TRACKING_URI is an address that tracked runs can go to; MLflow itself is not asked.

    Raises:
        StageError: The address is malformed, or that of a folder.
    """
    uri = os.environ.get("MLFLOW_TRACKING_URI", "")
    scheme = uri.partition(":")[0].partition("+")[0]
    if not uri or scheme in SERVERS:
        return
    files = scheme in ("file", uri)
    if files and os.environ.get("MLFLOW_ALLOW_FILE_STORE", "").lower() == "true":
        return
    raise StageError(
        f"MLFLOW_TRACKING_URI {uri} is no place for tracked runs{', as MLflow keeps none in files' if files else ''}: "
        "give the address of a server (http://…) or of a database (sqlite:///…, postgresql://…), or unset it for the "
        "database in the store"
    )
