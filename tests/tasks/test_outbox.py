"""The outbox against a real MLflow database: everything arrives once, despite crashes, retries and server outages."""

import contextlib
import http.server
import json
import os
import shutil
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from minillm.errors import StageError
from minillm.store.artifacts import Store
from minillm.worker.progress import append_line
from tasks.running.supervision import free_port
from tasks.store import listing, users
from tasks.tracking.client import connect
from tasks.tracking.connection import require_server
from tasks.tracking.database import DATABASE
from tasks.tracking.entries import DatasetFacts, DesiredRun, ModelFacts, OutboxEntry
from tasks.tracking.outbox import Outbox, waiting_entries
from tasks.tracking.sender import Sender
from tests.conftest import ROOT
from tests.tasks.conftest import TrackingServer
from tests.waiting import wait_for


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make an empty MLflow database to copy: making one takes seconds, copying it almost none."""
    store = Store(tmp_path_factory.mktemp("database")).root
    connect(store)
    return store / DATABASE


@pytest.fixture
def new_store(tmp_path: Path) -> Path:
    return Store(tmp_path / "store").root


@pytest.fixture
def store(new_store: Path, database: Path) -> Path:
    shutil.copy(database, new_store)
    return new_store


def outbox(store: Path) -> Outbox:
    return Outbox(store)


def desired(**changes: object) -> DesiredRun:
    return DesiredRun(name="train x", experiment="e", started=time.time(), **changes)  # type: ignore[arg-type]


def finish(box: Outbox, identity: str, status: str = "FINISHED") -> None:
    with box.change(identity) as record:
        record.status, record.ended = status, time.time()


def write_points(path: Path, steps: range) -> None:
    with path.open("a", encoding="utf-8") as stream:
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


@contextlib.contextmanager
def refusing(status: int) -> Iterator[str]:
    """Run a server that answers everything with one status; yield its address."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def answer(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_GET = do_POST = answer  # noqa: N815

        def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002
            """Log nothing."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@contextlib.contextmanager
def nobody() -> Iterator[str]:
    yield f"http://127.0.0.1:{free_port()}"


def test_a_run_arrives_whole_with_its_parent(store: Path, tmp_path: Path):
    page = tmp_path / "report.md"
    page.write_text("# report", encoding="utf-8")
    box = outbox(store)
    many = {f"section.field{number}": "1" for number in range(250)}
    facts = DatasetFacts(name="dolly", digest="abc", source_type="local", source="{}", context="training")
    box.open("flow", desired(params=many))
    box.open(
        "stage", desired(parent="flow", metrics={"rouge_l/dolly": 12.5}, tags={"stage": "score"}, datasets=[facts])
    )
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
    box.open("stage", desired(live=str(metrics)))
    finish(box, "stage", "FAILED")
    box.close()
    assert runs(store)[0].info.status == "FAILED"
    with metrics.open("a", encoding="utf-8") as stream:
        stream.write('{"time": 1.0, "st')  # the disk was full here
    for step in range(5, 12):  # resumed from a checkpoint at step 5
        append_line(metrics, {"time": time.time(), "step": step, "metrics": {"train/loss": 1.0 / (step + 1)}})
    again = outbox(store)
    again.open("stage", desired(live=str(metrics)))  # the record is gone, so the server is asked what was sent
    finish(again, "stage")
    again.close()
    (run,) = runs(store)
    assert run.info.status == "FINISHED"
    assert steps(store, run) == list(range(12))


def test_a_crash_between_sending_and_noting_it_sends_nothing_twice(store: Path, tmp_path: Path):
    metrics = tmp_path / "metrics.jsonl"
    write_points(metrics, range(10))
    box = outbox(store)
    box.open("stage", desired(live=str(metrics)))
    before = json.loads((store / "tracking" / "stage.json").read_text(encoding="utf-8"))
    finish(box, "stage")
    box.close()
    assert steps(store, runs(store)[0]) == list(range(10))
    left = OutboxEntry.model_validate({**before, "owner": "of-a-dead-process"})
    left.delivered.uncertain = True
    (store / "tracking" / "stage.json").write_text(left.model_dump_json(), encoding="utf-8")
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
from collections.abc import Iterator
from pathlib import Path
from tasks.tracking.outbox import Outbox
from tasks.tracking.entries import DesiredRun
box = Outbox(Path({str(store)!r}))
box.open("stage", DesiredRun(name="train x", experiment="e", started=time.time(), live={str(metrics)!r}))
with box.change("stage") as record:
    record.status, record.ended = "FINISHED", time.time()
assert not box.close()
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert outbox(store).close()
    (run,) = runs(store)
    assert (run.info.status, steps(store, run)) == ("FINISHED", list(range(5)))


def test_folders_of_what_is_to_be_told_are_open_to_their_user_alone(store: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'other.db'}")
    shutil.copy(store / DATABASE, tmp_path / "other.db")
    before = os.umask(0)
    try:
        box = outbox(store)
        box.open("stage", desired(tags={"minillm.key": "a" * 64}))
        finish(box, "stage")
        assert box.close()
    finally:
        os.umask(before)
    folders = [store / "tracking", *(path for path in (store / "tracking").rglob("*") if path.is_dir())]
    assert {path.name: stat.S_IMODE(path.stat().st_mode) for path in folders} == dict.fromkeys(
        ("tracking", "owners", "servers"), 0o700
    )


def test_a_server_that_never_replies_delays_no_stage(store: Path, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{listener.getsockname()[1]}")
        box = outbox(store)
        started = time.monotonic()
        for number in range(20):
            box.open(f"stage{number}", desired())
            finish(box, f"stage{number}")
        assert time.monotonic() - started < 2.0
        assert not box.close()
    assert len(list((store / "tracking").glob("*.json"))) == 20


def test_what_the_server_refuses_of_a_run_is_set_aside_and_all_else_arrives(store: Path, tmp_path: Path):
    metrics = tmp_path / "metrics.jsonl"
    with metrics.open("w", encoding="utf-8") as stream:
        for step in range(150):
            values = {"train/loss": 1.0, "recall@5": 0.5}
            stream.write(json.dumps({"time": time.time(), "step": step, "metrics": values}) + "\n")
    box = outbox(store)
    many = {f"field{number}": "1" for number in range(120)}
    box.open(
        "bad", desired(params=many | {"name with * in it": "1"}, metrics={"ok": 1.0, "no@": 2.0}, live=str(metrics))
    )
    finish(box, "bad")
    box.open("good", desired(metrics={"rouge_l/mean": 1.0}))
    finish(box, "good")
    assert not box.close(), "MLflow has not all of it"
    assert list(box.troubles()) == ["train x"]
    bad, good = runs(store)
    assert (bad.info.status, good.info.status) == ("FINISHED", "FINISHED")
    assert bad.data.params == many
    assert bad.data.metrics == {"ok": 1.0, "train/loss": 1.0}
    assert steps(store, bad) == list(range(150))
    assert good.data.metrics == {"rouge_l/mean": 1.0}
    (left,) = waiting_entries(store / "tracking")
    assert sorted(left.delivered.refused) == ["metric recall@5", "param name with * in it", "result no@"]
    assert "alphanumerics" in left.delivered.refused["result no@"]


def test_the_next_flow_tries_again_what_was_refused(store: Path):
    client = connect(store)
    experiment = client.create_experiment("e")
    client.delete_experiment(experiment)
    box = outbox(store)
    box.open("stage", desired(tags={"minillm.key": "k" * 64}, metrics={"score": 1.0}))
    box.open("elsewhere", desired().model_copy(update={"experiment": "other"}))
    finish(box, "stage")
    finish(box, "elsewhere")
    assert not box.close()
    assert "mlflow experiments restore --experiment-id 1" in box.troubles()["train x"]
    assert "k" * 64 in users(Store(store)), "gc leaves its result"
    assert "train x: MLflow refused the run: the experiment 'e' was deleted" in listing(str(store))
    other = client.get_experiment_by_name("other")
    assert other is not None
    assert [run.info.status for run in client.search_runs([other.experiment_id])] == ["FINISHED"], "not held up"
    client.restore_experiment(experiment)
    assert outbox(store).close()
    (run,) = runs(store)
    assert (run.info.status, run.data.metrics) == ("FINISHED", {"score": 1.0})
    assert waiting_entries(store / "tracking") == []
    assert "Not in MLflow" not in listing(str(store))


def test_an_experiment_deleted_in_the_middle_of_a_run_gets_the_rest_once_it_is_restored(store: Path):
    box = outbox(store)
    box.open("stage", desired())
    wait_for(lambda: box.delivered("stage").status == "RUNNING")
    client = connect(store)
    client.delete_experiment("1")
    with box.change("stage") as record:
        record.metrics = {"score": 1.0}
    finish(box, "stage")
    assert not box.close()
    assert "mlflow experiments restore --experiment-id 1" in box.troubles()["train x"]
    client.restore_experiment("1")
    assert outbox(store).close()
    (run,) = runs(store)
    assert (run.info.status, run.data.metrics) == ("FINISHED", {"score": 1.0})


def test_a_run_that_the_server_does_not_know_holds_up_no_other(store: Path):
    (store / "tracking").mkdir()
    lost = OutboxEntry(id="lost", owner=None, desired=desired(metrics={"score": 2.0}), store=str(store))
    lost.desired.status, lost.desired.ended, lost.delivered.run_id = "FINISHED", time.time(), "f" * 32
    (store / "tracking" / "lost.json").write_text(lost.model_dump_json(), encoding="utf-8")
    box = outbox(store)
    box.open("stage", desired(metrics={"score": 1.0}))
    finish(box, "stage")
    assert box.close()
    assert [run.data.metrics for run in runs(store)] == [{"score": 1.0}]
    assert f"train x: MLflow refused the run: it knows no run {'f' * 32}" in listing(str(store))


def test_nothing_more_is_sent_of_a_run_that_was_deleted(store: Path):
    box = outbox(store)
    box.open("stage", desired(tags={"minillm.key": "k" * 64}))
    wait_for(lambda: box.delivered("stage").status == "RUNNING")
    connect(store).delete_run(str(box.delivered("stage").run_id))
    with box.change("stage") as record:
        record.metrics = {"score": 1.0}
    finish(box, "stage")
    assert not box.close()
    assert "it was deleted there" in box.troubles()["train x"]
    assert waiting_entries(store / "tracking") == [], "whoever deletes a run frees its results"


def test_texts_that_no_database_holds_arrive_as_escapes(store: Path):
    box = outbox(store)
    box.open("stage", desired(tags={"zero": "a\0b", "half": "a\ud800b"}, params={"p": "\udfff"}))
    finish(box, "stage")
    assert box.close()
    (run,) = runs(store)
    assert (run.data.tags["zero"], run.data.tags["half"], run.data.params["p"]) == ("a\\x00b", "a\\ud800b", "\\udfff")


def test_what_cannot_be_sent_just_now_holds_up_nothing_and_is_told(store: Path, tmp_path: Path):
    box = outbox(store)
    box.open("stage", desired())
    wait_for(lambda: box.delivered("stage").status == "RUNNING")
    files = store / "mlartifacts"
    files.write_text("no folder: nothing can be written into it", encoding="utf-8")
    page = tmp_path / "report.md"
    page.write_text("# report", encoding="utf-8")
    with box.change("stage") as record:
        record.files = {str(page): ""}
    finish(box, "stage")
    box.open("later", desired(metrics={"score": 1.0}))
    finish(box, "later")
    assert not box.close()
    assert [run.data.metrics for run in runs(store) if run.data.metrics] == [{"score": 1.0}]
    assert "could not be sent: " in box.troubles()["train x"]
    files.unlink()
    assert outbox(store).close()
    assert {run.info.status for run in runs(store)} == {"FINISHED"}


def test_a_run_of_another_server_waits_for_it_and_its_results_stay(store: Path, tmp_path: Path, monkeypatch):
    first, second = (f"sqlite:///{tmp_path / name}.db" for name in ("first", "second"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", first)
    box = outbox(store)
    box.open("flow", desired())
    box.open("stage", desired(parent="flow", tags={"minillm.key": "a" * 64}))
    wait_for(lambda: box.delivered("stage").status == "RUNNING")
    finish(box, "stage")
    box.close()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", second)
    other = outbox(store)
    other.close()
    assert first in listing(str(store)), "where the flow's run waits for its end"
    assert "a" * 64 in users(Store(store)), "though nobody has still to send it"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", first)
    assert outbox(store).close()
    client = MlflowClient(first)
    experiment = client.get_experiment_by_name("e")
    assert experiment is not None
    statuses = {run.info.status for run in client.search_runs([experiment.experiment_id])}
    assert statuses == {"FINISHED", "KILLED"}


@pytest.mark.parametrize("content", [b"", b"\xff", b'{"id": "\xff"}'])
def test_a_record_that_cannot_be_read_stops_gc_but_no_run(store: Path, content: bytes):
    (store / "tracking").mkdir()
    (store / "tracking" / "flow-train.json").write_bytes(content)
    with pytest.raises(StageError, match=r"flow-train\.json cannot be read .* delete it"):
        users(Store(store))
    assert outbox(store).close()
    assert (store / "tracking" / "flow-train.json").read_bytes() == content


@pytest.mark.parametrize("content", [b"", b"\xff", b"[]", b'{"http://h": ["key"]}'])
def test_a_note_of_uses_that_cannot_be_read_stops_gc_and_is_not_written_over(
    store: Path, tmp_path: Path, content: bytes, monkeypatch: pytest.MonkeyPatch
):
    note = store / "tracking" / "servers" / "uses.json"
    note.parent.mkdir(parents=True)
    note.write_bytes(content)
    with pytest.raises(StageError, match=r"uses\.json cannot be read .* delete it"):
        users(Store(store))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'other.db'}")
    shutil.copy(store / DATABASE, tmp_path / "other.db")
    box = outbox(store)
    box.open("stage", desired(tags={"minillm.key": "a" * 64}))
    finish(box, "stage")
    assert not box.close()
    assert "uses.json cannot be read" in box.troubles()["train x"]
    assert note.read_bytes() == content
    note.unlink()
    assert outbox(store).close()
    assert "a" * 64 in note.read_text(encoding="utf-8"), "what waited is noted, too"


def test_a_server_that_wants_a_login_is_told_from_one_that_does_not_answer(
    store: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    wants = "it wants a login: set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
    for server, why in ((refusing(401), wants), (refusing(403), wants), (nobody(), "API request to http://127.0.0.1")):
        with server as address:
            monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
            box = outbox(store)
            for identity in ("first", "second"):
                box.open(identity, desired().model_copy(update={"name": identity}))
                finish(box, identity)
            assert not box.close()
            assert len(box.troubles()) == 2
            assert all(trouble.startswith(f"not sent yet: {why}") for trouble in box.troubles().values())
            assert all(
                entry.trouble == box.troubles()[entry.desired.name] for entry in waiting_entries(store / "tracking")
            )
            with pytest.raises(StageError, match="MLFLOW_TRACKING_"):
                users(Store(store))
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert outbox(store).close()
    assert len(runs(store)) == 2


@pytest.mark.parametrize("uri", ["nonsense://host", "mlruns", "file:///tmp/mlruns"])
def test_an_address_that_is_no_place_for_runs_is_refused_before_the_flow(uri: str, store: Path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(StageError, match=rf"MLFLOW_TRACKING_URI {uri} cannot hold .*unset it"):
        require_server()
    box = outbox(store)
    box.open("stage", desired())
    finish(box, "stage")
    assert not box.close()
    assert "cannot hold tracked runs" in box.troubles()["train x"]


def test_a_refusal_is_told_by_a_server_too(store: Path, tracking_server: TrackingServer, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracking_server.address)
    box = outbox(store)
    box.open("bad", desired(metrics={"ok": 1.0, "no@": 2.0}))
    finish(box, "bad")
    assert not box.close()
    client = MlflowClient(tracking_server.address)
    experiment = client.get_experiment_by_name("e")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert (run.info.status, run.data.metrics) == ("FINISHED", {"ok": 1.0})
    assert list(waiting_entries(store / "tracking")[0].delivered.refused) == ["result no@"]


def test_a_found_result_is_linked_to_the_run_that_computed_it(store: Path):
    box = outbox(store)
    box.open("computed", desired(tags={"minillm.key": "k", "cached": "false"}))
    finish(box, "computed")
    box.close()
    again = outbox(store)
    found = {"tags": {"minillm.key": "k", "cached": "true"}, "cached_key": "k"}
    again.open("computed", desired(**found))  # the same flow run, run again
    finish(again, "computed")
    again.open("elsewhere", desired(**found))
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
        box.open(identity, desired())
        facts = [ModelFacts(name="e-minillm", key=key, source=f"/models/{key}", tags={"mean": "1.5"}) for key in keys]
        with box.change(identity) as record:
            record.models = facts
        finish(box, identity)
        return box

    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{free_port()}")
    away = flow_run("first", "a")
    assert not away.close()
    left = json.loads((store / "tracking" / "first.json").read_text(encoding="utf-8"))
    (store / "tracking" / "first.json").write_text(json.dumps({**left, "owner": "of-a-dead-process"}), encoding="utf-8")
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


def test_a_process_killed_while_it_makes_the_database_leaves_nothing_in_the_way(new_store: Path):
    program = f"import pathlib, tasks.tracking.sender; tasks.tracking.sender.connect(pathlib.Path({str(new_store)!r}))"
    maker = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT)
    wait_for(lambda: any(path.stat().st_size > 100_000 for path in new_store.rglob("mlflow.db")), 60)
    maker.kill()
    maker.wait()
    assert not (new_store / "mlflow.db").exists(), "it was not finished"
    assert [found.name for found in connect(new_store).search_experiments()] == ["Default"]
    assert [path.name for path in new_store.glob("mlflow*")] == ["mlflow.db"]


def test_first_use_by_several_threads_makes_one_database(new_store: Path):
    failures: list[BaseException] = []

    def begin() -> None:
        try:
            Sender(new_store)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=begin) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
