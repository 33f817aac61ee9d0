"""A real run with passwords in its addresses leaves none of them in files, pages, logs, tags or on the console."""

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from mlflow import MlflowClient
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey
from prefect.settings import PREFECT_API_URL, temporary_settings

from tasks.running.pages import show_page
from tasks.running.supervision import free_port
from tasks.tracking.client import comparison_page, run_page
from tasks.tracking.contents import prefect_page
from tests.conftest import ROOT
from tests.tasks.conftest import TrackingServer

PASSWORDS = ("mlflow-pass-1", "prefect-pass-2", "base-pass-3", "basic-pass-4", "auth-pass-5")
PROGRAM = """
import sys
from pathlib import Path
import flows
from tests.small import small_config
from tests.tasks.stages import benchmark_only, run
run(small_config(Path(sys.argv[1])), benchmark_only)
"""


@dataclass
class Left:
    """Everything that a run with secrets leaves behind."""

    console: str
    folders: tuple[Path, ...]

    def everything(self) -> Iterator[tuple[str, bytes]]:
        """Yield name and content of each thing that could contain a secret."""
        yield "console", self.console.encode()
        for path in (path for folder in self.folders for path in folder.rglob("*")):
            if path.is_file():
                yield str(path), path.read_bytes()
        for kind in ("logs", "artifacts", "flow_runs", "task_runs"):
            yield kind, httpx.post(f"{PREFECT_API_URL.value()}/{kind}/filter", json={"limit": 200}).content


def run_with_secrets(folder: Path, tracking: str) -> str:
    """Run a flow of one stage in a process of its own; return its output."""
    plain = str(PREFECT_API_URL.value())
    environment = {
        "MLFLOW_TRACKING_URI": tracking.replace("http://", f"http://ann:{PASSWORDS[0]}@"),
        "PREFECT_API_URL": plain.replace("http://", f"http://ann:{PASSWORDS[1]}@"),
        "MLFLOW_BACKEND_STORE_URI": f"postgresql://ann:{PASSWORDS[2]}@db/mlflow",
        "MLFLOW_TRACKING_PASSWORD": PASSWORDS[3],
        "MLFLOW_TRACKING_USERNAME": "ann",
        "PREFECT_API_AUTH_STRING": f"ann:{PASSWORDS[4]}",
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
        "PYTHONPATH": str(ROOT),
    }
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(folder)],
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-5000:]
    return done.stdout


def require_no_secret(left: Left) -> None:
    found = [(name, word) for name, content in left.everything() for word in PASSWORDS if word.encode() in content]
    assert found == []


def test_no_password_of_an_address_stands_in_anything_that_a_run_leaves(
    tmp_path: Path, prefect_server: None, tracking_server: TrackingServer
):
    left = Left(run_with_secrets(tmp_path, tracking_server.address), (tmp_path, tracking_server.folder))
    require_no_secret(left)
    client = MlflowClient(tracking_server.address)
    experiment = client.get_experiment_by_name("small")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    assert [run.info.status for run in runs] == ["FINISHED", "FINISHED"], "addresses work as before"
    plain = str(PREFECT_API_URL.value()).removesuffix("/api")
    assert all(run.data.tags["prefect.url"].startswith(plain) for run in runs), "and links lead there"
    assert "MLflow, experiment small" in left.console


def test_a_server_that_does_not_answer_is_named_without_its_password(tmp_path: Path, prefect_server: None):
    address = f"http://127.0.0.1:{free_port()}"
    left = Left(run_with_secrets(tmp_path, address), (tmp_path,))
    require_no_secret(left)
    assert "tracked runs     not all in MLflow" in left.console
    assert address in left.console


@pytest.mark.filterwarnings("ignore:Artifact creation outside of a flow")
def test_texts_of_others_on_a_page_stay_as_they_are(prefect_server: None, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", PASSWORDS[0])
    show_page(f"Write http://NAME:WORD@host/?key=yours, not {PASSWORDS[0]}.", "page of an example", "an example")
    chosen = ArtifactFilter(key=ArtifactFilterKey(any_=["page-of-an-example"]))
    with get_client(sync_client=True) as client:
        (page,) = client.read_artifacts(artifact_filter=chosen)
    assert page.data == "Write http://NAME:WORD@host/?key=yours, not ***."


def test_links_to_pages_have_no_password(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"https://ann:{PASSWORDS[0]}@mlflow.example:5000/")
    assert (
        run_page(Path("/store"), "1", "r")
        == "https://mlflow.example:5000/#/experiments/1/runs/r?workflowType=machine_learning"
    )
    assert comparison_page(Path("/store"), ["1"], ["r"]).startswith("https://mlflow.example:5000/#/compare-runs?runs=")
    with temporary_settings({PREFECT_API_URL: f"https://ann:{PASSWORDS[1]}@prefect.example/api"}):
        assert prefect_page("flow-run", "f") == "https://prefect.example/runs/flow-run/f"
