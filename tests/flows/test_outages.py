"""Prefect's server dies in the middle of a run, with real servers and a real flow process."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from mlflow import MlflowClient
from prefect.client.orchestration import get_client
from prefect.settings import PREFECT_API_URL, temporary_settings

from tasks.running.supervision import free_port
from tests.chaos import training
from tests.conftest import ROOT
from tests.small import write_short_experiment
from tests.waiting import wait_for

pytestmark = pytest.mark.long


class PrefectServer:
    """Server that can be killed and started again on the same port and database."""

    def __init__(self, folder: Path) -> None:
        self.url = f"http://127.0.0.1:{free_port()}"
        self.environment = os.environ | {"PREFECT_HOME": str(folder / "prefect")}
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        place = ["--host", "127.0.0.1", "--port", self.url.rpartition(":")[2]]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "prefect", "server", "start", *place],
            env=self.environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        wait_for(self.answers)

    def answers(self) -> bool:
        with contextlib.suppress(httpx.HTTPError):
            return httpx.get(f"{self.url}/api/health").status_code == 200
        return False

    def kill(self) -> None:
        assert self.process is not None
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[PrefectServer]:
    server = PrefectServer(tmp_path)
    server.start()
    yield server
    server.kill()


def start_flow(folder: Path, environment: dict[str, str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "flows.distill", str(folder / "small.yaml")],
        cwd=ROOT,
        env=os.environ | {"PREFECT_HOME": str(folder / "prefect")} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_a_server_that_comes_back_sees_the_run_end_well(server: PrefectServer, tmp_path: Path):
    write_short_experiment(tmp_path, steps=60)
    flow = start_flow(tmp_path, {"PREFECT_API_URL": f"{server.url}/api"})
    wait_for(lambda: training(tmp_path / "store"))
    server.kill()
    with pytest.raises(subprocess.TimeoutExpired):
        flow.wait(10)
    server.start()
    output, _ = flow.communicate(timeout=300)
    assert flow.returncode == 0, output[-5000:]
    with temporary_settings({PREFECT_API_URL: f"{server.url}/api"}), get_client(sync_client=True) as client:
        (run,) = client.read_flow_runs()
        assert run.state is not None
        assert run.state.name == "Completed"
        states = [task.state.name for task in client.read_task_runs() if task.state is not None]
        assert set(states) <= {"Completed", "Skipped"}
    tracked = MlflowClient(f"sqlite:///{tmp_path / 'store' / 'mlflow.db'}")
    experiments = [experiment.experiment_id for experiment in tracked.search_experiments()]
    assert {found.info.status for found in tracked.search_runs(experiments)} == {"FINISHED"}


def test_where_it_never_comes_back_every_stage_is_finished_and_the_next_run_finds_them(
    server: PrefectServer, tmp_path: Path
):
    write_short_experiment(tmp_path, steps=60)
    flow = start_flow(tmp_path, {"PREFECT_API_URL": f"{server.url}/api", "PREFECT_CLIENT_MAX_RETRIES": "1"})
    wait_for(lambda: training(tmp_path / "store"))
    server.kill()
    output, _ = flow.communicate(timeout=400)
    assert flow.returncode == 1
    assert f"Prefect's server at {server.url}/api was lost" in output
    assert "the same command goes on from there" in output
    artifacts = {path.name for path in tmp_path.glob("store/artifacts/*")}
    assert {name.split("-")[0] for name in artifacts} >= {"train", "generate", "score", "report", "model"}
    again = start_flow(tmp_path, {})
    output, _ = again.communicate(timeout=300)
    assert again.returncode == 0, output[-5000:]
    assert {path.name for path in tmp_path.glob("store/artifacts/*")} == artifacts
