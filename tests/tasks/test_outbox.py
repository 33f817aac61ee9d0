"""Against a real MLflow database: everything arrives, once, in spite of crashes, retries and servers that are away."""

import json
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from minillm.artifacts import Store
from tasks.mlflow_client import Sender, connect
from tasks.outbox import DatasetFacts, ModelFacts, Outbox, Record, Wanted
from tasks.tracking import Tracker
from tests.conftest import ROOT
from tests.waiting import wait_for


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return Store(tmp_path / "store").root


def outbox(store: Path) -> Outbox:
    return Outbox(store / "tracking", Tracker(store))


def wanted(**changes: object) -> Wanted:
    return Wanted(name="train x", experiment="e", started=time.time(), **changes)  # type: ignore[arg-type]


def finish(box: Outbox, identity: str, status: str = "FINISHED") -> None:
    with box.change(identity) as record:
        record.status, record.ended = status, time.time()


def write_points(path: Path, steps: range) -> None:
    with path.open("a") as stream:
        for step in steps:
            point = {"time": time.time(), "step": step, "total": 100, "metrics": {"train/loss": 1.0 / (step + 1)}}
            stream.write(json.dumps(point) + "\n")


def runs(store: Path) -> list[Run]:
    client = MlflowClient(f"sqlite:///{store / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("e")
    return client.search_runs([experiment.experiment_id], order_by=["attribute.start_time"]) if experiment else []


def steps(store: Path, run: Run) -> list[int]:
    client = MlflowClient(f"sqlite:///{store / 'mlflow.db'}")
    return [point.step for point in client.get_metric_history(run.info.run_id, "train/loss")]


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def test_a_run_arrives_whole_with_its_parent(store: Path, tmp_path: Path):
    page = tmp_path / "report.md"
    page.write_text("# report")
    box = outbox(store)
    many = {f"section.field{number}": "1" for number in range(250)}
    facts = DatasetFacts(name="dolly", digest="abc", source_type="local", source="{}", context="training")
    box.open("flow", wanted(params=many))
    box.open("stage", wanted(parent="flow", metrics={"rouge_l/dolly": 12.5}, tags={"stage": "score"}, datasets=[facts]))
    with box.change("stage") as record:
        record.files = {str(page): "pages"}
    finish(box, "stage")
    finish(box, "flow", "FAILED")
    assert box.close()
    parent, stage = runs(store)
    assert parent.data.params == many, "more than MLflow takes at once"
    assert parent.info.status == "FAILED"
    assert stage.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert stage.data.metrics == {"rouge_l/dolly": 12.5}
    assert stage.inputs is not None
    assert [entry.dataset.name for entry in stage.inputs.dataset_inputs] == ["dolly"]
    client = MlflowClient(f"sqlite:///{store / 'mlflow.db'}")
    assert [f.path for f in client.list_artifacts(stage.info.run_id, "pages")] == ["pages/report.md"]
    assert not list((store / "tracking").glob("*.json")), "nothing is left to send"


def test_points_are_followed_and_repeated_steps_are_sent_once(store: Path, tmp_path: Path):
    metrics = tmp_path / "metrics.jsonl"
    write_points(metrics, range(8))
    box = outbox(store)
    box.open("stage", wanted(live=str(metrics)))
    finish(box, "stage", "FAILED")
    box.close()
    assert runs(store)[0].info.status == "FAILED"
    write_points(metrics, range(5, 12))  # resumed from a checkpoint at step 5
    again = outbox(store)
    again.open("stage", wanted(live=str(metrics)))  # the record is gone: what was sent is learnt from the server
    finish(again, "stage")
    again.close()
    (run,) = runs(store)
    assert run.info.status == "FINISHED"
    assert steps(store, run) == list(range(12))


def test_a_crash_between_sending_and_noting_it_sends_nothing_twice(store: Path, tmp_path: Path):
    metrics = tmp_path / "metrics.jsonl"
    write_points(metrics, range(10))
    box = outbox(store)
    box.open("stage", wanted(live=str(metrics)))
    before = json.loads((store / "tracking" / "stage.json").read_text())
    finish(box, "stage")
    box.close()
    assert steps(store, runs(store)[0]) == list(range(10))
    left = Record.model_validate({**before, "owner": "of-a-dead-process"})
    left.sent.uncertain = True
    (store / "tracking" / "stage.json").write_text(left.model_dump_json())
    assert outbox(store).close()
    (run,) = runs(store)
    assert steps(store, run) == list(range(10))
    assert run.info.status == "KILLED", "its process died before it could say how it ended"


def test_what_a_dead_server_missed_is_sent_by_the_next_flow(store: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{free_port()}")
    metrics = tmp_path / "metrics.jsonl"
    write_points(metrics, range(5))
    script = f"""
import time
from pathlib import Path
from tasks.outbox import Outbox, Wanted
from tasks.tracking import Tracker
box = Outbox(Path({str(store)!r}) / "tracking", Tracker(Path({str(store)!r})))
box.open("stage", Wanted(name="train x", experiment="e", started=time.time(), live={str(metrics)!r}))
with box.change("stage") as record:
    record.status, record.ended = "FINISHED", time.time()
assert not box.close()
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert outbox(store).close()
    (run,) = runs(store)
    assert (run.info.status, steps(store, run)) == ("FINISHED", list(range(5)))


def test_a_server_that_never_replies_delays_no_stage(store: Path, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{listener.getsockname()[1]}")
        box = outbox(store)
        started = time.monotonic()
        for number in range(20):
            box.open(f"stage{number}", wanted())
            finish(box, f"stage{number}")
        assert time.monotonic() - started < 2.0
        assert not box.close()
    assert len(list((store / "tracking").glob("*.json"))) == 20


def test_a_record_that_the_server_refuses_does_not_block_the_others(store: Path):
    box = outbox(store)
    box.open("bad", wanted(params={"name with * in it": "1"}))
    finish(box, "bad")
    box.open("good", wanted(metrics={"rouge_l/mean": 1.0}))
    finish(box, "good")
    assert box.close()
    assert [run.data.metrics for run in runs(store) if run.data.metrics] == [{"rouge_l/mean": 1.0}]


def test_a_found_result_is_linked_to_the_run_that_computed_it(store: Path):
    box = outbox(store)
    box.open("computed", wanted(tags={"minillm.key": "k", "cached": "false"}))
    finish(box, "computed")
    box.close()
    again = outbox(store)
    found = {"tags": {"minillm.key": "k", "cached": "true"}, "cached_key": "k"}
    again.open("computed", wanted(**found))  # the same flow run, run again
    finish(again, "computed")
    again.open("elsewhere", wanted(**found))
    finish(again, "elsewhere")
    again.close()
    computed, elsewhere = runs(store)
    assert computed.data.tags["cached"] == "false"
    assert "computed_by" not in computed.data.tags
    assert elsewhere.data.tags["cached"] == "true"
    assert elsewhere.data.tags["computed_by"] == computed.info.run_id


def test_an_exported_model_is_registered_once_though_mlflow_was_away(store: Path, monkeypatch: pytest.MonkeyPatch):
    def flow_run(identity: str, *keys: str) -> Outbox:
        box = outbox(store)
        box.open(identity, wanted())
        facts = [ModelFacts(name="e-minillm", key=key, source=f"/models/{key}", tags={"mean": "1.5"}) for key in keys]
        with box.change(identity) as record:
            record.models = facts
        finish(box, identity)
        return box

    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{free_port()}")
    away = flow_run("first", "a")
    assert not away.close()
    left = json.loads((store / "tracking" / "first.json").read_text())
    (store / "tracking" / "first.json").write_text(json.dumps({**left, "owner": "of-a-dead-process"}))
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert flow_run("second", "a").close(), "sends what the first could not, too"
    assert flow_run("third", "a", "b").close()
    client = MlflowClient(f"sqlite:///{store / 'mlflow.db'}")
    versions = client.search_model_versions("name = 'e-minillm'")
    assert sorted((version.source, version.tags["minillm.key"]) for version in versions) == [
        ("/models/a", "a"),
        ("/models/b", "b"),
    ]
    (registered,) = [version for version in versions if version.source == "/models/a"]
    assert registered.run_id == runs(store)[0].info.run_id, "the one that exported it"
    assert registered.tags["mean"] == "1.5"


def test_a_process_killed_while_it_makes_the_database_leaves_nothing_in_the_way(store: Path):
    program = f"import pathlib, tasks.mlflow_client; tasks.mlflow_client.connect(pathlib.Path({str(store)!r}))"
    maker = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT)
    wait_for(lambda: any(path.stat().st_size > 100_000 for path in store.rglob("mlflow.db")), 60)
    maker.kill()
    maker.wait()
    assert not (store / "mlflow.db").exists(), "it was not finished"
    assert [found.name for found in connect(store).search_experiments()] == ["Default"]
    assert [path.name for path in store.glob("mlflow*")] == ["mlflow.db"]


def test_first_use_by_several_threads_makes_one_database(store: Path):
    failures: list[BaseException] = []

    def begin() -> None:
        try:
            Sender(store)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=begin) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
