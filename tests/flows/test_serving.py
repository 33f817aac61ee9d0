"""`make serve` with its real servers, worker and schedules, and the pages in a real browser."""

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

import psutil
import pytest
from mlflow import MlflowClient
from playwright.sync_api import expect, sync_playwright
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import FlowRun
from prefect.client.schemas.schedules import CronSchedule
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import Cancelling

from tasks.supervision import free_port
from tests.conftest import ROOT
from tests.small import write_short_experiment

pytestmark = pytest.mark.long

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
PATIENCE = 300.0


@dataclass
class Served:
    """What one `python -m tasks.ui --worker` serves."""

    process: subprocess.Popen[str]
    prefect: str
    mlflow: str
    folder: Path
    log: list[str]

    @property
    def config(self) -> Path:
        return self.folder / "small.yaml"

    def family(self) -> list[str]:
        """Commands of everything that works for it, in whatever session."""
        found = []
        for process in psutil.process_iter(["cmdline", "environ"]):
            if (process.info["environ"] or {}).get("PREFECT_HOME") == str(self.folder / "prefect"):
                found.append(" ".join(process.info["cmdline"] or []))
        return found

    def running(self, what: str) -> bool:
        return any(what in command for command in self.family())


def alive(run: FlowRun) -> bool:
    """Whether the process of a flow run, or one that it started, is there."""
    processes = psutil.process_iter(["environ"])
    return any((found.info["environ"] or {}).get("PREFECT__FLOW_RUN_ID") == str(run.id) for found in processes)


def wait_for(condition: Callable[[], object], seconds: float = PATIENCE) -> float:
    """Seconds until a condition holds."""
    started = time.monotonic()
    while not condition():
        assert time.monotonic() - started < seconds, f"not within {seconds} s"
        time.sleep(0.2)
    return time.monotonic() - started


def serve(folder: Path) -> Served:
    prefect, mlflow = (f"http://127.0.0.1:{free_port()}" for _ in range(2))
    environment = os.environ | {"PREFECT_HOME": str(folder / "prefect"), "PYTHONUNBUFFERED": "1"}
    environment |= {"MINILLM_PREFECT_UI": prefect, "MINILLM_MLFLOW_UI": mlflow}
    process = subprocess.Popen(
        [sys.executable, "-m", "tasks.ui", "--worker", "--store", str(folder / "store")],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    log: list[str] = []
    assert process.stdout is not None
    threading.Thread(target=log.extend, args=(process.stdout,), daemon=True).start()
    served = Served(process, prefect, mlflow, folder, log)
    wait_for(lambda: any("started!" in line for line in log) or process.poll() is not None)
    assert process.poll() is None, "".join(log)
    return served


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("serving")
    write_short_experiment(folder)
    served = serve(folder)
    yield served
    served.process.send_signal(signal.SIGTERM)
    served.process.wait(90)


@pytest.fixture
def client(served: Served) -> Iterator[SyncPrefectClient]:
    api = f"{served.prefect}/api"
    with temporary_settings({PREFECT_API_URL: api}), get_client(sync_client=True) as client:
        yield client


def start(client: SyncPrefectClient, served: Served, *overrides: str) -> FlowRun:
    deployment = client.read_deployment_by_name("distill/quickstart")
    parameters = {"config_file": str(served.config), "overrides": list(overrides)}
    return client.create_flow_run_from_deployment(deployment.id, parameters=parameters)


def state(client: SyncPrefectClient, identity: UUID) -> str:
    found = client.read_flow_run(identity).state
    assert found is not None
    return str(found.name)


def test_a_schedule_fires_and_the_run_is_in_both_pages(served: Served, client: SyncPrefectClient):
    nightly = client.read_deployment_by_name("distill/nightly")
    (cron,) = [schedule.schedule for schedule in nightly.schedules]
    assert isinstance(cron, CronSchedule)
    assert (cron.cron, cron.timezone) == ("0 2 * * *", "Europe/Paris")
    often = {"schedule": {"interval": 30}, "active": True, "parameters": {"config_file": str(served.config)}}
    place = {"path_params": {"id": nightly.id}}
    (made,) = client.request("POST", "/deployments/{id}/schedules", **place, json=[often]).json()

    def fired() -> list[FlowRun]:
        return [run for run in client.read_flow_runs() if run.deployment_id == nightly.id and run.start_time]

    wait_for(fired)
    (run,) = fired()
    client.delete_deployment_schedule(nightly.id, UUID(made["id"]))  # with what it had scheduled
    wait_for(lambda: state(client, run.id) in ("Completed", "Failed", "Crashed"))
    assert state(client, run.id) == "Completed", "".join(served.log[-60:])
    assert (run.auto_scheduled, run.work_queue_name) == (True, "accelerator")
    assert set(client.read_flow_run(run.id).tags) >= {"distillation", "scheduled"}
    tracked = MlflowClient(served.mlflow)
    (experiment,) = [found for found in tracked.search_experiments() if found.name == "small"]
    runs = tracked.search_runs([experiment.experiment_id])
    (parent,) = [found for found in runs if "mlflow.parentRunId" not in found.data.tags]
    assert (parent.info.run_name, parent.info.status) == (f"small {run.name}", "FINISHED")
    if CHROMIUM is None:
        pytest.skip("the run is there; its pages need a browser: apt-get install chromium")
    with sync_playwright() as playwright:
        page = playwright.chromium.launch(executable_path=CHROMIUM).new_page(viewport={"width": 1400, "height": 1000})
        page.set_default_timeout(30_000)
        page.goto(f"{served.prefect}/runs/flow-run/{run.id}")
        expect(page.get_by_text(run.name).first).to_be_visible()
        expect(page.get_by_text("Completed").first).to_be_visible()
        page.goto(f"{served.prefect}/deployments/deployment/{nightly.id}?tab=Parameters")
        expect(page.get_by_text("config_file").first).to_be_visible()
        page.goto(f"{served.mlflow}/#/experiments/{experiment.experiment_id}/runs/{parent.info.run_id}")
        expect(page.get_by_text("rouge_l/sft/mean").first).to_be_visible()


def test_runs_wait_for_each_other_and_one_that_is_cancelled_ends_within_ten_seconds(
    served: Served, client: SyncPrefectClient
):
    first = start(client, served, "seed=2")
    second = start(client, served, "seed=2")
    wait_for(lambda: served.running("minillm.worker"))
    assert sorted(state(client, run.id) == "Running" for run in (first, second)) == [False, True]
    running, waiting = (first, second) if state(client, first.id) == "Running" else (second, first)
    assert alive(running)
    client.set_flow_run_state(running.id, Cancelling())
    assert wait_for(lambda: not alive(running)) < 10
    wait_for(lambda: state(client, running.id) == "Cancelled", 20)
    wait_for(lambda: state(client, waiting.id) in ("Completed", "Failed", "Crashed"))
    assert state(client, waiting.id) == "Completed", "it goes on where the other was cancelled"


def test_a_taken_port_is_named_with_the_remedy(served: Served, tmp_path: Path):
    taken = {"MINILLM_PREFECT_UI": served.mlflow, "MINILLM_MLFLOW_UI": served.mlflow}
    done = subprocess.run(
        [sys.executable, "-m", "tasks.ui", "--store", str(tmp_path)],
        cwd=ROOT,
        env=os.environ | taken,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2
    assert f"Prefect {served.mlflow}: something else listens there" in done.stderr
    assert "MINILLM_MLFLOW_UI" in done.stderr


def test_what_is_stopped_leaves_nothing_behind_and_goes_on_when_served_again(served: Served, client: SyncPrefectClient):
    run = start(client, served, "seed=3")
    wait_for(lambda: served.running("minillm.worker"))
    served.process.send_signal(signal.SIGINT)
    assert served.process.wait(60) == 0
    wait_for(lambda: served.family() == [], 5)
    assert re.search(r"Ctrl-C stops them", "".join(served.log))

    again = serve(served.folder)
    try:
        with temporary_settings({PREFECT_API_URL: f"{again.prefect}/api"}), get_client(sync_client=True) as there:
            assert state(there, run.id) == "Crashed"
            retry = [sys.executable, "-m", "prefect", "flow-run", "retry", str(run.id)]
            environment = os.environ | {"PREFECT_API_URL": f"{again.prefect}/api"}
            subprocess.run(retry, env=environment, check=True, capture_output=True, timeout=60)
            wait_for(lambda: state(there, run.id) in ("Completed", "Failed"))
            assert state(there, run.id) == "Completed", "".join(again.log[-60:])
    finally:
        again.process.send_signal(signal.SIGTERM)
        assert again.process.wait(60) == 0
