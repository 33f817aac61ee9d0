"""MLflow, imported when it is first needed, since that takes seconds; and a check of its address, which needs none."""

import os
import threading
from typing import TYPE_CHECKING

from minillm.errors import StageError
from minillm.files import local_path
from minillm.worker.startup import load
from tasks.environment.settings import refusing, set_mlflow_defaults

if TYPE_CHECKING:
    from tasks.tracking.tracked_runs import TrackedRuns

SERVERS = ("http", "https", "sqlite", "postgresql", "mysql", "mssql", "databricks", "uc")
"""Schemes of the address of a tracking server."""


def preload() -> None:
    """Import MLflow in the background, while the caller waits for Prefect's server."""
    with refusing():
        set_mlflow_defaults()
    threading.Thread(target=load, args=("tasks.tracking.sender",), daemon=True).start()


def tracked_runs(store: str) -> "TrackedRuns":
    """Return the runs of the tracking server in use, or of a store's database.

    Args:
        store: `runtime.store` of the runs.

    Raises:
        StageError: There is no database, or the server does not answer.
    """
    set_mlflow_defaults()
    from tasks.tracking.tracked_runs import TrackedRuns

    return TrackedRuns(local_path(store).resolve())


def require_server() -> None:
    """Check that MLFLOW_TRACKING_URI is an address that can hold tracked runs, without asking MLflow.

    Raises:
        StageError: The address is malformed, or names a folder.
    """
    uri = os.environ.get("MLFLOW_TRACKING_URI", "")
    scheme = uri.partition(":")[0].partition("+")[0]
    if not uri or scheme in SERVERS:
        return
    files = scheme in ("file", uri)
    if files and os.environ.get("MLFLOW_ALLOW_FILE_STORE", "").lower() == "true":
        return
    raise StageError(
        f"MLFLOW_TRACKING_URI {uri} cannot hold tracked runs{', since MLflow keeps none in files' if files else ''}: "
        "give the address of a server (http://…) or of a database (sqlite:///…, postgresql://…), or unset it for the "
        "database in the store"
    )
