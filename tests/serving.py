"""`make serve` in a folder of its own, with its real servers and worker."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

import psutil
import pytest
from mlflow import MlflowClient
from playwright.sync_api import Browser, Page
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import FlowRun
from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings

from tasks.running.supervision import free_port
from tests.conftest import ROOT
from tests.small import write_short_experiment
from tests.waiting import PATIENCE, wait_for
from tests.workers import is_worker

ENDS = ("Completed", "Failed", "Crashed", "Cancelled")


@dataclass
class Served:
    """A running `minillm serve` and what it serves."""

    process: subprocess.Popen[str]
    prefect: str
    mlflow: str
    folder: Path
    log: list[str]

    @property
    def config(self) -> Path:
        return self.folder / "small.yaml"

    def holding(self, words: str) -> list[Path]:
        """Return the files of its folder that contain some words."""
        files = [path for path in self.folder.rglob("*") if path.is_file()]
        return [path for path in files if words.encode() in path.read_bytes()]

    def processes(self) -> list[psutil.Process]:
        """Return all of its processes, in any session."""
        living = psutil.process_iter(["cmdline", "environ"])
        home = str(self.folder / "prefect")
        return [process for process in living if (process.info["environ"] or {}).get("PREFECT_HOME") == home]

    def family(self) -> list[str]:
        """Return the commands of its processes."""
        return [" ".join(process.info["cmdline"] or []) for process in self.processes()]

    def working(self) -> bool:
        """Return whether a stage is being computed."""
        return any(map(is_worker, self.processes()))

    def running(self, what: str) -> bool:
        return any(what in command for command in self.family())

    @property
    def login(self) -> str:
        """Login as `NAME:PASSWORD`, looked up as its user would."""
        (line,) = [line for line in self.log if "Log in with" in line]
        return json.loads(Path(line.split("what ")[1].split(" says")[0]).read_text(encoding="utf-8"))["login"]

    @property
    def name_and_password(self) -> tuple[str, str]:
        name, _, password = self.login.partition(":")
        return name, password

    @contextlib.contextmanager
    def client(self) -> Iterator[SyncPrefectClient]:
        access: dict[Any, str] = {PREFECT_API_URL: f"{self.prefect}/api", PREFECT_API_AUTH_STRING: self.login}
        with temporary_settings(access), get_client(sync_client=True) as client:
            yield client

    @contextlib.contextmanager
    def tracked(self) -> Iterator[MlflowClient]:
        """Yield MLflow's client, which finds the login only in the environment."""
        with pytest.MonkeyPatch.context() as patch:
            for name, value in zip(("USERNAME", "PASSWORD"), self.name_and_password, strict=True):
                patch.setenv(f"MLFLOW_TRACKING_{name}", value)
            yield MlflowClient(self.mlflow)


def serve(folder: Path, environment: Mapping[str, str] | None = None, worker: bool = True) -> Served:
    """Start it with the short experiment beside its store, and wait until it answers.

    Args:
        folder: Folder for everything that it keeps.
        environment: Further environment variables.
        worker: Whether a worker is started too, as by `make serve` and not by `make ui`.
    """
    if not (folder / "small.yaml").exists():
        write_short_experiment(folder)
    prefect, mlflow = (f"http://127.0.0.1:{free_port()}" for _ in range(2))
    places = {"PREFECT_HOME": str(folder / "prefect"), "MINILLM_PREFECT_UI": prefect, "MINILLM_MLFLOW_UI": mlflow}
    process = subprocess.Popen(
        [sys.executable, "-m", "cli", "serve" if worker else "ui", "--store", str(folder / "store")],
        cwd=ROOT,
        env={**os.environ, "PYTHONUNBUFFERED": "1", **places, **(environment or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    log: list[str] = []
    assert process.stdout is not None
    threading.Thread(target=log.extend, args=(process.stdout,), daemon=True).start()
    served = Served(process, prefect, mlflow, folder, log)
    there = "started!" if worker else "Ctrl-C stops them"
    wait_for(lambda: any(there in line for line in log) or process.poll() is not None)
    assert process.poll() is None, "".join(log)
    return served


@contextlib.contextmanager
def serving(folder: Path, environment: Mapping[str, str] | None = None, worker: bool = True) -> Iterator[Served]:
    """Serve until the block ends."""
    served = serve(folder, environment, worker)
    try:
        yield served
    finally:
        served.process.send_signal(signal.SIGTERM)
        served.process.wait(90)


def logged_in(browser: Browser, served: Served, prefect: str | None = None, **options: Any) -> Page:
    """Return a page in a new browser profile whose user is logged in to Prefect and will log in to MLflow.

    Args:
        browser: Browser to open the page in.
        served: Servers to log in to.
        prefect: Address to use for Prefect instead of its own.
        options: Options of the browser profile.
    """
    name, password = served.name_and_password
    page = browser.new_context(http_credentials={"username": name, "password": password}, **options).new_page()
    page.set_default_timeout(30_000)
    page.goto(prefect or served.prefect)
    page.get_by_placeholder("admin:pass").fill(served.login)
    page.keyboard.press("Enter")
    page.wait_for_url(re.compile("dashboard"))
    return page


def start(client: SyncPrefectClient, served: Served, *overrides: str) -> FlowRun:
    """Have the worker run the experiment."""
    deployment = client.read_deployment_by_name("distill/quickstart")
    parameters = {"config_file": str(served.config), "overrides": list(overrides)}
    return client.create_flow_run_from_deployment(deployment.id, parameters=parameters)


def state(client: SyncPrefectClient, identity: UUID) -> str:
    """Return the name of a run's state."""
    found = client.read_flow_run(identity).state
    assert found is not None
    return str(found.name)


def ended(client: SyncPrefectClient, identity: UUID, seconds: float = PATIENCE) -> str:
    """Wait for a run to end; return the name of its final state."""
    wait_for(lambda: state(client, identity) in ENDS, seconds)
    return state(client, identity)


def retry(served: Served, identity: UUID) -> None:
    """Have the worker retry a run, as one would by hand."""
    environment = os.environ | {"PREFECT_HOME": str(served.folder / "prefect"), "MINILLM_PREFECT_UI": served.prefect}
    command = [sys.executable, "-m", "tasks.serving", "flow-run", "retry", str(identity)]
    subprocess.run(command, env=environment, cwd=ROOT, check=True, capture_output=True, timeout=60)
