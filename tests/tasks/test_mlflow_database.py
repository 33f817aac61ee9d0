"""MLflow's database in a copied or moved store, and in stores whose paths have characters special in addresses."""

import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from mlflow import MlflowClient

from minillm.store.artifacts import Store
from minillm.store.file_versions import file_sha256
from tasks.running.supervision import free_port
from tasks.tracking.client import connect, search_runs
from tasks.tracking.database import database_uri
from tasks.tracking.entries import DesiredRun, ModelFacts
from tasks.tracking.outbox import Outbox
from tests.conftest import ROOT


def track(store: Path, identity: str) -> None:
    """Track a finished run with a file and a model."""
    box = Outbox(store)
    page = store / "artifacts" / "report-1" / "report.md"
    page.parent.mkdir(exist_ok=True)
    page.write_text("# report", encoding="utf-8")
    facts = ModelFacts(name="e-minillm", key=identity, source=str(store / "artifacts" / f"model-{identity}"))
    tags = {"artifact": str(page.parent), "prefect.url": "http://h/runs"}
    desired = DesiredRun(name=identity, experiment="e", started=time.time(), tags=tags, files={str(page): ""})
    desired.models = [facts]
    desired.status, desired.ended = "FINISHED", time.time()
    box.open(identity, desired)
    assert box.close(), box.troubles()


GOES_ON = """
import pathlib, sys
from tasks.tracking.client import connect, search_runs
from tests.tasks.test_mlflow_database import track
store = pathlib.Path(sys.argv[1])
(first,) = search_runs(connect(store), ["1"])
connect(store).log_text(first.info.run_id, "more", "more.txt")
track(store, "second")
"""
"""Program that adds a file to an old run of a copied store and tracks a new run."""


def content(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): file_sha256(path) for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    store = Store(tmp_path_factory.mktemp("original") / "the store").root
    track(store, "first")
    return store


def test_a_copied_store_lives_on_its_own(original: Path, tmp_path: Path):
    before = content(original)
    copy = tmp_path / "50% #2?"
    shutil.copytree(original, copy)
    command = [sys.executable, "-c", GOES_ON, str(copy)]  # within a process, MLflow caches where runs are
    subprocess.run(command, cwd=ROOT, check=True, timeout=120)
    client = connect(copy)
    assert content(original) == before, "not a byte of it changed"
    runs = search_runs(client, ["1"])
    assert {str(run.info.artifact_uri).startswith(f"{copy.as_uri()}/") for run in runs} == {True}
    assert {run.data.tags["artifact"] for run in runs} == {str(copy / "artifacts" / "report-1")}
    names = {file.path for run in runs for file in client.list_artifacts(run.info.run_id)}
    assert names == {"report.md", "more.txt"}
    versions = client.search_model_versions("name = 'e-minillm'")
    assert {version.source for version in versions} == {
        str(copy / "artifacts" / "model-first"),
        str(copy / "artifacts" / "model-second"),
    }


def test_a_moved_store_finds_its_files(original: Path, tmp_path: Path):
    copy, moved = tmp_path / "copy", tmp_path / "moved"
    shutil.copytree(original, copy)
    connect(copy)
    copy.rename(moved)
    client = connect(moved)
    (run,) = search_runs(client, ["1"])
    assert str(run.info.artifact_uri).startswith(f"{moved.as_uri()}/mlartifacts/")
    assert (
        Path(client.download_artifacts(run.info.run_id, "report.md", str(tmp_path))).read_text(encoding="utf-8")
        == "# report"
    )


def test_what_a_copied_store_has_still_to_send_it_sends_from_its_own_files(tmp_path: Path, monkeypatch):
    store, copy = Store(tmp_path / "store").root, tmp_path / "copy"
    page = store / "artifacts" / "report.md"
    page.write_text("# original", encoding="utf-8")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    box = Outbox(store)
    tags = {"artifact": str(store / "artifacts")}
    box.open(
        "flow",
        DesiredRun(name="flow", experiment="e", started=1.0, status="FINISHED", files={str(page): ""}, tags=tags),
    )
    assert not box.close()
    shutil.copytree(store, copy)
    shutil.rmtree(store)
    (copy / "artifacts" / "report.md").write_text("# copy", encoding="utf-8")
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert Outbox(copy).close()
    client = connect(copy)
    (run,) = search_runs(client, ["1"])
    assert run.data.tags["artifact"] == str(copy / "artifacts")
    assert (
        Path(client.download_artifacts(run.info.run_id, "report.md", str(tmp_path))).read_text(encoding="utf-8")
        == "# copy"
    )
    assert not store.exists()


def test_another_name_of_the_same_store_changes_nothing(original: Path, tmp_path: Path):
    before = file_sha256(original / "mlflow.db")
    (tmp_path / "link").symlink_to(original)
    (run,) = search_runs(connect(tmp_path / "link"), ["1"])
    assert str(run.info.artifact_uri).startswith(f"{original.as_uri()}/")
    assert file_sha256(original / "mlflow.db") == before


@pytest.mark.parametrize("name", ["a?b", "a#b", "a%41b", "a b&c=d"])
def test_an_address_of_a_database_leads_to_its_file_and_makes_no_other(
    name: str, original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path = tmp_path / name / "mlflow.db"
    path.parent.mkdir()
    shutil.copy(original / "mlflow.db", path)
    monkeypatch.chdir(path.parent)
    assert [run.info.run_name for run in search_runs(MlflowClient(database_uri(path)), ["1"])] == ["first"]
    assert list(tmp_path.rglob("*")) == [path.parent, path]
