"""Clients of MLflow, for the tracking server in use or the database in the store; and addresses of its pages."""

import contextlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from filelock import FileLock
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.exceptions import MlflowException
from mlflow.utils import get_results_from_paginated_fn

from minillm.durable import move, sync_tree
from minillm.errors import StageError, first_line
from minillm.redaction import redacted
from tasks.environment.settings import mlflow_pages
from tasks.tracking.database import DATABASE, database_uri, relocate
from tasks.tracking.entries import LOGGER, server_in_use

TRAINING_PAGES = "workflowType=machine_learning"
"""Query of a page's address. Without it, MLflow opens its pages for applications of language models."""
FINAL_ANSWERS = (400, 404, 409, 413, 422)
"""HTTP statuses that would be the same if the request were sent again."""
UNKNOWN_USER = (401, 403)
"""HTTP statuses of a request without the right login."""


class LoginError(Exception):
    """The server wants a login, or a different one."""

    def __init__(self) -> None:
        super().__init__("it wants a login: set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD")


@contextlib.contextmanager
def logged_in() -> Iterator[None]:
    """Tell a server that wants a login from one that does not answer.

    Raises:
        LoginError: Instead of MLflow's own error.
    """
    try:
        yield
    except MlflowException as error:
        if error.get_http_status_code() in UNKNOWN_USER:
            raise LoginError from error
        raise


def connect(store: Path) -> MlflowClient:
    """Return a client of the tracking server in use, or of the database in the store, which is made if missing."""
    for name, level in (("mlflow", logging.WARNING), ("alembic", logging.WARNING), ("urllib3", logging.ERROR)):
        logging.getLogger(name).setLevel(level)
    server = os.environ.get("MLFLOW_TRACKING_URI")
    if not server:
        return connect_database(store)
    with _making(store):
        client = MlflowClient(server)
        client.search_experiments(max_results=1)
    return client


def connect_database(store: Path) -> MlflowClient:
    """Return a client of the database in the store. It is made if missing, and adapted if the store was moved."""
    database = store / DATABASE
    with _making(store):
        if not database.exists():
            _make_database(database)
        elif relocate(store):
            LOGGER.info("%s was copied or moved here: MLflow's addresses of its files now name this folder", store)
        client = MlflowClient(database_uri(database))
        client.search_experiments(max_results=1)
    return client


def _making(store: Path) -> FileLock:
    """Return the lock for making a database: its first client makes it, and two at once would spoil it."""
    return FileLock(store / "locks" / "mlflow.lock")


def _make_database(path: Path) -> None:
    """Make a whole database or none. MLflow cannot use or mend one of which a killed process made only some tables."""
    unfinished = path.with_name("mlflow.new")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir()
    MlflowClient(database_uri(unfinished / path.name)).search_experiments(max_results=1)
    sync_tree(unfinished)
    move(unfinished / path.name, path)
    unfinished.rmdir()


def search_runs(
    client: MlflowClient, experiments: Sequence[str], query: str = "", order: Sequence[str] = ()
) -> list[Run]:
    """Return all runs that a query finds in some experiments, which are given by their ids."""
    if not experiments:
        return []
    return all_pages(client.search_runs, experiment_ids=list(experiments), filter_string=query, order_by=list(order))


def all_pages(search: Callable[..., Sequence[Any]], **query: Any) -> list[Any]:
    """Return everything that one of the client's searches finds, page after page."""
    return get_results_from_paginated_fn(lambda size, token: search(max_results=size, page_token=token, **query), 1000)


@contextlib.contextmanager
def answering() -> Iterator[None]:
    """Turn the errors of a server that cannot be read into one that says what to do.

    Raises:
        StageError: Instead of MLflow's own error.
    """
    try:
        with logged_in():
            yield
    except LoginError as error:
        raise StageError(f"MLflow ({server_in_use()}) cannot be read: {error}") from error
    except MlflowException as error:
        raise StageError(
            f"MLflow ({server_in_use()}) cannot be read: {first_line(error)}; start it, or mend MLFLOW_TRACKING_URI"
        ) from error


def run_page(store: Path, experiment: str, run_id: str) -> str:
    """Return the page of a run on the tracking server, or among the pages that `make ui` serves."""
    return f"{_server(store)}/#/experiments/{experiment}/runs/{run_id}?{TRAINING_PAGES}"


def comparison_page(store: Path, experiments: Sequence[str], run_ids: Sequence[str]) -> str:
    """Return the address of MLflow's own comparison of runs."""
    chosen = f"runs={quote(json.dumps(list(run_ids)))}&experiments={quote(json.dumps(list(experiments)))}"
    return f"{_server(store)}/#/compare-runs?{chosen}&{TRAINING_PAGES}"


def _server(store: Path) -> str:
    uri = os.environ.get("MLFLOW_TRACKING_URI", "")
    return redacted(uri).rstrip("/") if uri.startswith("http") else mlflow_pages(store)


def is_final(error: Exception) -> bool:
    """Return whether sending again would change nothing."""
    return isinstance(error, MlflowException) and error.get_http_status_code() in FINAL_ANSWERS


def milliseconds(seconds: float) -> int:
    """Return a time in seconds as MLflow counts it."""
    return round(1000 * seconds)
