"""The store's commands on a store of two real runs that share stages, with the real MLflow that tracked them."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock
from mlflow import MlflowClient

from minillm.store.artifacts import Store
from minillm.store.inventory import entries
from tests.conftest import ROOT
from tests.small import write_short_experiment

RATE = "methods.minillm.training.learning_rate"


pytestmark = pytest.mark.long


def store_command(store: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "flows.store", "--store", str(store), *arguments]
    environment = {**os.environ, **variables}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def two_runs(tmp_path_factory, prefect_server) -> Path:
    """Run two flows that differ in MiniLLM's learning rate: they share every stage before MiniLLM's training."""
    from flows.distill import distill

    folder = tmp_path_factory.mktemp("two")
    write_short_experiment(folder, ("sft", "minillm"))
    for rate in ("1e-3", "2e-3"):
        assert distill(str(folder / "small.yaml"), (f"{RATE}={rate}",), return_state=True).is_completed()
    return folder / "store"


def names(store: Path) -> set[str]:
    return {entry.name for entry in entries(Store(store))}


def parents(store: Path) -> tuple[MlflowClient, list]:
    client = MlflowClient(f"sqlite:///{store / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("small")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], order_by=["start_time ASC"])
    return client, [run for run in runs if "mlflow.parentRunId" not in run.data.tags]


def contents(store: Path) -> dict[str, str]:
    """Return each artifact's digest, without those that depend on this machine's speed."""
    measured = ("cost", "report", "model")
    finished = [entry for entry in entries(Store(store)) if entry.state == "finished" and entry.kind not in measured]
    found = {entry.name: Store(store).find(entry.kind, entry.key) for entry in finished}
    return {name: artifact.digest for name, artifact in found.items() if artifact is not None}


def test_another_store_gets_the_same_contents_and_a_teacher_that_is_trained_again_moves_nothing(two_runs, tmp_path):
    from flows.distill import distill

    config = write_short_experiment(tmp_path, ("sft", "minillm"))
    overrides, store = (f"{RATE}=1e-3",), tmp_path / "store"
    assert distill(str(config), overrides, return_state=True).is_completed()
    assert contents(store).items() <= contents(two_runs).items()
    before = {entry.name: entry for entry in entries(Store(store))}
    (teacher,) = [entry for entry in before.values() if entry.kind == "train" and entry.role == "teacher"]
    shutil.rmtree(teacher.path)
    assert distill(str(config), overrides, return_state=True).is_completed()
    after = {entry.name: entry for entry in entries(Store(store))}
    assert after.keys() == before.keys()
    assert {name for name, entry in after.items() if entry.changed != before[name].changed} == {teacher.name}


def test_listing_names_who_uses_what(two_runs):
    _, (first, second) = parents(two_runs)
    lines = store_command(two_runs, "ls").stdout.splitlines()
    teacher = next(line for line in lines if line.startswith("train-") and " teacher " in line)
    assert first.info.run_name in teacher
    assert second.info.run_name in teacher
    students = [line for line in lines if line.startswith("train-") and " minillm " in line]
    assert len(students) == 2
    assert [first.info.run_name in line for line in students] == [True, False]
    assert lines[-1].startswith(f"{len(names(two_runs))} entries, ")


def test_an_altered_file_is_found_and_named(two_runs):
    assert store_command(two_runs, "verify").returncode == 0
    table = next(two_runs.glob("artifacts/score-*/table.json"))
    whole = table.read_text(encoding="utf-8")
    table.write_text(whole + " ", encoding="utf-8")
    done = store_command(two_runs, "verify")
    assert done.returncode == 1
    assert table.parent.name in done.stdout
    table.write_text(whole, encoding="utf-8")


def test_nothing_goes_while_runs_need_it_and_only_what_a_deleted_run_needed_afterwards(two_runs):
    before = names(two_runs)
    assert store_command(two_runs, "gc").stdout == "0 removed, 0 Bytes\n"
    client, (first, _) = parents(two_runs)
    client.delete_run(first.info.run_id)
    found = {entry.name: entry for entry in entries(Store(two_runs))}
    students = [entry for entry in found.values() if entry.kind == "train" and entry.role == "minillm"]
    told = store_command(two_runs, "gc", "--dry-run").stdout
    assert names(two_runs) == before
    assert students[0].name in told
    assert students[1].name not in told

    held = next(entry for entry in found.values() if entry.name in told and entry.kind == "report")
    with FileLock(two_runs / "locks" / f"{held.key[:16]}.lock"):  # a flow is about to use it
        store_command(two_runs, "gc")
    gone = before - names(two_runs)
    assert students[0].name in gone
    assert held.name not in gone
    store_command(two_runs, "gc")
    gone = before - names(two_runs)
    assert {found[name].kind for name in gone} == {"train", "generate", "cost", "score", "diversity", "report", "model"}
    assert all(found[name].role in ("minillm", "", "sft") for name in gone)
    assert store_command(two_runs, "verify").returncode == 0


def test_what_a_flow_has_begun_to_use_is_left(two_runs):
    entry = next(entry for entry in entries(Store(two_runs)) if entry.kind == "report")
    client, (second,) = parents(two_runs)
    record = {
        "id": "flow-report",
        "owner": None,
        "desired": {"name": "report", "experiment": "small", "started": 0.0, "tags": {"minillm.key": entry.key}},
    }
    client.delete_run(second.info.run_id)
    path = two_runs / "tracking" / "flow-report.json"
    path.write_text(json.dumps(record), encoding="utf-8")
    store_command(two_runs, "gc")
    assert entry.path.exists(), "and all that it was made from"
    assert store_command(two_runs, "verify").returncode == 0
    path.unlink()


def test_a_server_that_knows_none_of_it_empties_nothing(two_runs, tmp_path):
    before = names(two_runs)
    done = store_command(two_runs, "gc", MLFLOW_TRACKING_URI=f"sqlite:///{tmp_path / 'other.db'}")
    assert done.returncode == 2
    assert "MLFLOW_TRACKING_URI" in done.stderr
    assert names(two_runs) == before
    done = store_command(tmp_path, "ls")
    assert done.returncode == 2
    assert "is not a store" in done.stderr
